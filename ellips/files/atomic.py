"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a name to write to; what was written takes the place of ``path`` at the end, in one step.

    Whoever reads ``path`` sees the old file or the new one, never a part, also after a crash of the machine. Where an
    error ends the block, the old file stays and what was written is removed.

    Args:
        path: The file; its folder is made if it is missing.

    Yields:
        A path in the same folder, of the same suffix.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    host = socket.gethostname()
    _remove_leftovers(path, host)
    partial = path.with_name(f".{path.stem}.{host}-{os.getpid()}.partial{path.suffix}")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def _remove_leftovers(path: Path, host: str) -> None:
    """Remove what processes of this machine were writing to this file when they were killed."""
    start, end = f".{path.stem}.{host}-", f".partial{path.suffix}"
    for leftover in path.parent.glob(f"{escape(start)}*{escape(end)}"):
        process = leftover.name.removeprefix(start).removesuffix(end)
        if process.isdecimal() and not Path("/proc", process).exists() and Path("/proc/self").exists():
            leftover.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Put a folder's list of names on the disk, so that a new name survives a crash of the machine."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_text(path: str | Path) -> str:
    """Read a text file, UTF-8.

    Raises:
        ValueError: If it is no text; the message names it.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected a text in UTF-8 but {error}.") from error


def replace_file(path: str | Path, text: str) -> None:
    """Write a text file, UTF-8, in the place of one that may be there; see :func:`replacing`.

    Names of files that are no text (:func:`os.fsdecode` makes surrogates of them) are written with their bytes escaped.
    """
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")
