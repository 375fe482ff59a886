"""The journal of a certification run: rows are on disk as soon as they exist, and a killed run goes on where it was.

Every process appends to a file of its own; an image's rows, one per series, are written in one piece. A process that is
killed leaves at most one image cut off at the end of its file, which counts as not done. Every row and every latent has
a checksum that is bound to the run's settings: a damaged file, and one of another run, is refused by name.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ellips.files.atomic import replace_file
from ellips.files.checksums import key_of
from ellips.files.folders import ResultsFolder
from ellips.files.latents import latent_entries, whole_bytes, write_latent
from ellips.files.lines import CHECKSUMS, as_stored, lock, read_json, refuse_other_settings
from ellips.files.records import ImageRecord
from ellips.files.table import read_table, table_lines
from ellips.types import Series


class Journal:
    """What a run has certified so far, in a folder.

    Args:
        folder: The run's folder.
        series: The series; an image is done when all of them are there.
        settings: Everything that the rows depend on, as JSON can hold it. A folder keeps the rows of one setting only.

    Raises:
        ValueError: If there are no series, or the folder holds a run with other settings, or of unknown ones; what
            differs is named.
    """

    def __init__(self, folder: ResultsFolder, series: Sequence[Series], settings: Mapping[str, Any]) -> None:
        if not series or len(set(series)) != len(series):
            raise ValueError(f"Expected at least one series, and each once, but got {[str(s) for s in series]}.")
        self.results = folder
        self.folder = folder.journal
        self.series = tuple(series)
        self.settings: dict[str, Any] = as_stored({k: v for k, v in settings.items() if k != CHECKSUMS})
        self._refuse_unknown_settings()
        refuse_other_settings(folder.settings, self.settings, folder.path)
        # A journal that was begun before there were checksums goes on without: what it holds cannot be checked.
        began = read_json(folder.settings) if folder.settings.exists() else {CHECKSUMS: True}
        self._checked = CHECKSUMS in began
        self._key = key_of(self.settings)
        self._rows: BinaryIO | None = None
        self._latents: BinaryIO | None = None
        self._lock: BinaryIO | None = None
        self._kept: dict[Series, BinaryIO] = {}
        self._rank = 0

    # ------------------------------------------------------------------ writing

    def open(self, rank: int) -> Journal:
        """Open this process's files for appending, after cutting off what a killed process left unfinished.

        Raises:
            ValueError: If another run writes to the folder, or a file is damaged.
        """
        self._lock = lock(self.folder / f".lock-{rank}")
        if rank == 0 or not self.results.settings.exists():  # before any row, whichever process is first
            marked = self.settings | ({CHECKSUMS: True} if self._checked else {})
            replace_file(self.results.settings, json.dumps(marked, indent=1))
        path = self._rows_file(rank)
        done = self._complete(path) if path.exists() else []
        replace_file(path, table_lines([], header=True, key=self._write_key) + table_lines(done, key=self._write_key))
        self._rank = rank
        self._rows = path.open("ab")
        self._latents = self._latents_file(rank).open("ab")
        return self

    @property
    def _write_key(self) -> bytes | None:
        return self._key if self._checked else None

    def _refuse_unknown_settings(self) -> None:
        if not self.results.settings.exists() and (found := sorted(self.folder.glob("*-*"))):
            raise ValueError(
                f"Expected {self.results.settings}, which says what the rows of {found[0].name} depend on, but it is "
                "missing; put it back, start anew (--overwrite true), or take another folder."
            )

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the files; nothing is lost if this never happens."""
        files = (self._lock, self._rows, self._latents, *self._kept.values())
        self._rows = self._latents = self._lock = None
        self._kept = {}
        with ExitStack() as stack:  # all of them, also where the disk is full and one cannot be flushed
            for file in files:
                if file is not None:
                    stack.callback(file.close)

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
            write_latent(self._kept[series], index, about, self._write_key)
        write_latent(self._latents, index, latent, self._write_key)
        self._rows.write(table_lines(records, key=self._write_key).encode())
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
        names = {series: f"kept-{series.name}-rank-*.bin" for series in self.series}
        # Also where a file is there and has no whole entry: its images are not done then.
        return {series: self._read_latents(name) for series, name in names.items() if any(self.folder.glob(name))}

    def _read_latents(self, pattern: str) -> dict[int, Tensor]:
        found: dict[int, Tensor] = {}
        for path in sorted(self.folder.glob(pattern)):
            found.update((index, torch.tensor(values)) for index, values in latent_entries(path, self._write_key))
        return found

    def _complete(self, path: Path) -> list[ImageRecord]:
        """Return the rows of a file up to the first image that was cut off."""
        rows = read_table(path, allow_partial=True, key=self._write_key)
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
            os.truncate(path, whole_bytes(path, self._write_key))
        return path
