"""A journal of results that are done one by one: each is a line on disk as soon as it exists."""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from ellips.files.atomic import read_text, replace_file
from ellips.files.checksums import CURE, SIZE, checksum, key_of

CHECKSUMS = "checksums"
"""Entry of a file with settings, beside them: what was written under them has checksums."""


def read_json(path: Path) -> dict[str, Any]:
    """Read a file with one JSON object.

    Raises:
        ValueError: If it holds anything else; the message names the file.
    """
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON but it could not be read: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object but got {type(content).__name__}.")
    return content


def lock(path: Path) -> BinaryIO:
    """Take a lock that ends with this process, or when the file is closed.

    Raises:
        ValueError: If another process has it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise ValueError(
            f"Expected nobody else to write to {path.parent} but another run does; wait for it, or take another folder."
        ) from error
    except OSError:  # a file system without locks
        pass
    return file


def as_stored(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as JSON gives them back, so that tuples and the like compare equal to what a file holds."""
    stored: dict[str, Any] = json.loads(json.dumps(dict(settings)))
    return stored


def refuse_other_settings(path: Path, settings: Mapping[str, Any], folder: Path) -> None:
    """Refuse a folder that was begun with other settings.

    Args:
        path: The file with its settings; none is there in a new folder.
        settings: As :func:`as_stored` returns them.
        folder: What the message is about.

    Raises:
        ValueError: If they differ; what differs is named.
    """
    if not path.exists():
        return
    found = read_json(path)
    found.pop(CHECKSUMS, None)
    differing = [
        f"{k} (there {found.get(k)!r}, here {settings.get(k)!r})"
        for k in sorted(found.keys() | settings.keys())
        if found.get(k) != settings.get(k)
    ]
    if differing:
        raise ValueError(
            f"Expected {folder} to be empty or to hold a run with the same settings but it differs in "
            f"{'; '.join(differing)}. Choose another folder, or delete this one."
        )


class LineJournal:
    """Results by name, from any number of processes; a killed run goes on where it was.

    Every process appends to a file of its own. A line that was cut off counts as not there.

    Args:
        folder: Of the journal alone; comes into being when it is opened.
        settings: Everything that the results depend on, as JSON can hold it.

    Raises:
        ValueError: If the folder holds results of other settings; what differs is named.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        self.settings = as_stored(settings)
        self._key = key_of(self.settings)
        self._file: BinaryIO | None = None
        self._lock: BinaryIO | None = None
        refuse_other_settings(self._settings_file, self.settings, folder)

    @property
    def _settings_file(self) -> Path:
        return self.folder / "settings.json"

    def open(self, rank: int) -> LineJournal:
        """Open this process's file for appending, without what a killed process left unfinished."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if rank == 0:
            replace_file(self._settings_file, json.dumps(self.settings, indent=1))
        self._lock = lock(self.folder / f".lock-{rank}")
        path = self.folder / f"lines-{rank}.jsonl"
        replace_file(path, "".join(f"{line}\n" for line in _whole_lines(path)))
        self._file = path.open("ab")
        return self

    def __enter__(self) -> LineJournal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        files = (self._lock, self._file)
        self._file = self._lock = None
        with contextlib.ExitStack() as stack:  # both, also where the disk is full and one cannot be flushed
            for file in files:
                if file is not None:
                    stack.callback(file.close)

    def append(self, name: str, result: Any) -> None:  # noqa: ANN401 - whatever JSON can hold
        """Put one result on disk.

        Raises:
            RuntimeError: If the journal is not open.
        """
        if self._file is None:
            raise RuntimeError("Expected the journal to be open but it is not; call `open` first.")
        line = json.dumps({"name": name, "result": result})
        self._file.write(f"{line}{checksum(line.encode(), self._key).hex()}\n".encode())
        self._file.flush()

    def results(self) -> dict[str, Any]:
        """Return everything that is done, by name.

        Raises:
            ValueError: If a line is damaged; the file is named.
        """
        found = [
            self._parse(path, line) for path in sorted(self.folder.glob("lines-*.jsonl")) for line in _whole_lines(path)
        ]
        return {line["name"]: line["result"] for line in found}

    def _parse(self, path: Path, line: str) -> dict[str, Any]:
        text, digits = line[: -2 * SIZE], line[-2 * SIZE :]
        if checksum(text.encode(), self._key).hex() != digits:
            raise ValueError(f"{path}: expected each line to have its checksum but {CURE}")
        try:
            parsed = json.loads(text)
        except (ValueError, RecursionError):
            parsed = None
        if not isinstance(parsed, dict) or parsed.keys() != {"name", "result"}:
            raise ValueError(f"{path}: expected each line to be JSON with `name` and `result` but {CURE}")
        return parsed

    def delete(self) -> None:
        """Remove the journal, when what it was kept for is written."""
        self.delete_from(self.folder)

    @staticmethod
    def delete_from(folder: Path) -> None:
        """Remove a journal from a folder, whatever its settings; files that are not the journal's stay."""
        for path in (folder / "settings.json", *folder.glob("lines-*.jsonl"), *folder.glob(".lock-*")):
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not there, or somebody else's files in it
            folder.rmdir()


def _whole_lines(path: Path) -> list[str]:
    return read_text(path).split("\n")[:-1] if path.exists() else []
