"""The journal of a certification run: rows are on disk as soon as they exist, and a killed run goes on where it was.

Every process appends to a file of its own; an image's rows, one per series, are written in one piece. A process that is
killed leaves at most one image cut off at the end of its file, which counts as not done.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from ellips.files.atomic import replace_file
from ellips.files.folders import ResultsFolder
from ellips.files.lines import as_stored, refuse_other_settings
from ellips.files.records import ImageRecord
from ellips.files.table import read_table, table_lines
from ellips.types import Series

_INDEX = struct.Struct("<q")


class Journal:
    """What a run has certified so far, in a folder.

    Args:
        folder: The run's folder.
        series: The series; an image is done when all of them are there.
        settings: Everything that the rows depend on, as JSON can hold it. A folder keeps the rows of one setting only.

    Raises:
        ValueError: If there are no series, or the folder holds a run with other settings; what differs is named.
    """

    def __init__(self, folder: ResultsFolder, series: Sequence[Series], settings: Mapping[str, Any]) -> None:
        if not series or len(set(series)) != len(series):
            raise ValueError(f"Expected at least one series, and each once, but got {[str(s) for s in series]}.")
        self.results = folder
        self.folder = folder.journal
        self.series = tuple(series)
        self.settings: dict[str, Any] = as_stored(settings)
        refuse_other_settings(folder.settings, self.settings, folder.path)
        self._rows: BinaryIO | None = None
        self._latents: BinaryIO | None = None
        self._kept: dict[Series, BinaryIO] = {}
        self._rank = 0

    # ------------------------------------------------------------------ writing

    def open(self, rank: int) -> Journal:
        """Open this process's files for appending, after cutting off what a killed process left unfinished."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if rank == 0:
            replace_file(self.results.settings, json.dumps(self.settings, indent=1))
        path = self._rows_file(rank)
        done = self._complete(path) if path.exists() else []
        replace_file(path, table_lines(done, header=True))
        self._rank = rank
        self._rows = path.open("ab")
        self._latents = self._latents_file(rank).open("ab")
        return self

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the files; nothing is lost if this never happens."""
        for file in (self._rows, self._latents, *self._kept.values()):
            if file is not None:
                file.close()
        self._rows = self._latents = None
        self._kept = {}

    def append(
        self, records: Sequence[ImageRecord], latent: Tensor, kept: Mapping[Series, Tensor] | None = None
    ) -> None:
        """Put one image's rows on disk.

        Args:
            records: One record of each series, all of one image.
            latent: Shape ``(d,)``, the latent that was certified.
            kept: By series, another latent ``(d,)`` that its latent radius was proven of.

        Raises:
            RuntimeError: If the journal is not open.
            ValueError: If the records are not one of each series of one image.
        """
        if self._rows is None or self._latents is None:
            raise RuntimeError("Expected the journal to be open but it is not; call `open` first.")
        index = records[0].index if records else -1
        if tuple(r.series for r in records) != self.series or any(r.index != index for r in records):
            raise ValueError(f"Expected one record of each of {self.series} for one image but got {list(records)}.")
        # Latents first: rows without their latents could not be checked afterwards.
        for series, about in (kept or {}).items():
            if series not in self._kept:
                self._kept[series] = self._latents_file(self._rank, series).open("ab")
            _write_latent(self._kept[series], index, about)
        _write_latent(self._latents, index, latent)
        self._rows.write(table_lines(records).encode())
        self._rows.flush()

    # ------------------------------------------------------------------ reading

    def done(self) -> set[int]:
        """Return the positions of the images that are done: their rows and their latents are there."""
        found = {record.index for record in self.records()} & self.latents().keys()
        for latents in self.kept().values():
            found &= latents.keys()
        return found

    def records(self) -> list[ImageRecord]:
        """Return the rows of all images that are done, in the order of position and series, each once.

        Raises:
            ValueError: If a file is damaged.
        """
        found: dict[int, list[ImageRecord]] = {}
        for path in sorted(self.folder.glob("rows-*.csv")):
            rows = self._complete(path)
            for start in range(0, len(rows), len(self.series)):
                found.setdefault(rows[start].index, rows[start : start + len(self.series)])
        return [record for index in sorted(found) for record in found[index]]

    def latents(self) -> dict[int, Tensor]:
        """Return the latents by position, each ``(d,)``, float64."""
        return self._read_latents("latents-[0-9]*.bin")

    def kept(self) -> dict[Series, dict[int, Tensor]]:
        """Return, for the series that were proven of other latents, those by position, each ``(d,)``, float64."""
        found = {series: self._read_latents(f"kept-{series.name}-rank-*.bin") for series in self.series}
        return {series: latents for series, latents in found.items() if latents}

    def _read_latents(self, pattern: str) -> dict[int, Tensor]:
        found: dict[int, Tensor] = {}
        for path in sorted(self.folder.glob(pattern)):
            found.update((index, torch.tensor(values)) for index, values in _latent_entries(path))
        return found

    def _complete(self, path: Path) -> list[ImageRecord]:
        """Return the rows of a file up to the first image that was cut off."""
        rows = read_table(path, allow_partial=True)
        count = len(self.series)
        whole: list[ImageRecord] = []
        for start in range(0, len(rows) - count + 1, count):
            part = rows[start : start + count]
            if tuple(r.series for r in part) != self.series or len({r.index for r in part}) > 1:
                raise ValueError(f"{path}: expected rows of {self.series} for each image but got {part}.")
            whole += part
        return whole

    def _rows_file(self, rank: int) -> Path:
        return self.folder / f"rows-{rank}.csv"

    def _latents_file(self, rank: int, series: Series | None = None) -> Path:
        """Return a file of latents, of all series or of one, after cutting off what was left unfinished."""
        path = self.folder / (f"latents-{rank}.bin" if series is None else f"kept-{series.name}-rank-{rank}.bin")
        if path.exists():
            os.truncate(path, sum(2 * _INDEX.size + 8 * len(values) for _, values in _latent_entries(path)))
        return path


def _write_latent(file: BinaryIO, index: int, latent: Tensor) -> None:
    values = np.asarray(latent.detach().cpu().double().numpy(), dtype="<f8")
    file.write(_INDEX.pack(index) + _INDEX.pack(len(values)) + values.tobytes())
    file.flush()


def _latent_entries(path: Path) -> list[tuple[int, np.ndarray[Any, np.dtype[np.float64]]]]:
    """Return position and latent of every whole entry; a cut-off last one is left out."""
    data = path.read_bytes()
    entries: list[tuple[int, np.ndarray[Any, np.dtype[np.float64]]]] = []
    place = 0
    while place + 2 * _INDEX.size <= len(data):
        (index,), (width,) = _INDEX.unpack_from(data, place), _INDEX.unpack_from(data, place + _INDEX.size)
        start = place + 2 * _INDEX.size
        place = start + 8 * width
        if place <= len(data):
            entries.append((index, np.frombuffer(data, "<f8", width, start)))
    return entries
