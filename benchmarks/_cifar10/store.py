"""Finished parts of a run, each a file that is written at once: a run that was stopped goes on from them."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from ellips.files import replace_file, replacing


class Store:
    """A folder with the parts of one run.

    Args:
        folder: Made if it is missing.
        settings: What the parts depend on; a folder that was begun with others is refused.

    Raises:
        ValueError: If the folder holds a run with other settings.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder = folder / "parts"
        path, text = folder / "settings.json", json.dumps(settings, indent=1, sort_keys=True) + "\n"
        if path.is_file() and path.read_text(encoding="utf-8") != text:
            raise ValueError(
                f"Expected {folder} to be empty, or to hold a run with the same pictures and options, but its "
                f"{path.name} has others; name another folder with --out, or give the options that it was begun with."
            )
        replace_file(path, text)

    def part(self, name: str, compute: Callable[[], Any]) -> Any:  # noqa: ANN401 - whatever JSON holds
        """Return a part, as JSON gives it back: from its file, or computed and written."""
        path = self.folder / f"{name}.json"
        if not path.is_file():
            start = time.process_time()
            value = compute()
            replace_file(path, json.dumps(value) + "\n")
            _say(name, time.process_time() - start)
        return json.loads(path.read_text(encoding="utf-8"))

    def rows(self, name: str, count: int, size: int, compute: Callable[[slice], list[Any]]) -> list[Any]:
        """Return the rows of ``count`` images, ``size`` of them in each file; those of fewer images stay of use."""
        found = []
        for start in range(0, count, size):
            part = slice(start, min(start + size, count))
            found += self.part(f"{name}/{part.start:05d}-{part.stop:05d}", partial(compute, part))
        return found

    def tensors(self, name: str, compute: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Return tensors by name: from their file, or computed and written."""
        path = self.folder / f"{name}.safetensors"
        if not path.is_file():
            start = time.process_time()
            found = {key: value.contiguous() for key, value in compute().items()}
            with replacing(path) as unfinished:
                save_file(found, unfinished)
            _say(name, time.process_time() - start)
        return load_file(path)


def _say(name: str, seconds: float) -> None:
    print(f"{name}: {seconds:.1f} s of processor time", file=sys.stderr, flush=True)


def even_rows(total: int, count: int) -> list[int]:
    """Return ``count`` rows, at equal distances: of classes that lie one after the other, all come."""
    count = min(count, total)
    return [i * total // count for i in range(count)]


def spread_rows(total: int, count: int) -> list[int]:
    """Return ``count`` rows in an order whose every beginning is spread over all of them (van der Corput's)."""
    bits = max(1, (total - 1).bit_length())
    order = (int(f"{i:0{bits}b}"[::-1], 2) for i in range(2**bits))
    return [row for row in order if row < total][:count]
