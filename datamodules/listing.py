"""Which pictures there are in folders of classes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def find_class_names(folder: Path) -> list[str]:
    """Sorted names of the sub-folders of a folder.

    Raises:
        FileNotFoundError: If the folder is missing or has none.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"Expected {folder.absolute()} to be a folder with one sub-folder per class; it is missing."
        )
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise FileNotFoundError(f"Expected {folder.absolute()} to have one sub-folder per class but it has none.")
    return names


def list_images(folder: Path, class_names: Sequence[str]) -> tuple[list[str], NDArray[np.int64]]:
    """Every picture below the class folders.

    Passed over are names that start with a dot, and files that say by their ending that they are something else, such
    as ``notes.txt`` and ``Thumbs.db``, unless they begin as a picture does. A picture by its ending, or without one,
    that cannot be read is found when it is read.

    Args:
        folder: Holds one sub-folder per class.
        class_names: The classes it must have, in the order of their labels.

    Returns:
        Paths relative to ``folder``, sorted within each class, and labels.

    Raises:
        ValueError: If the folder has other classes, or a class folder is empty.
    """
    found, expected = set(find_class_names(folder)), set(class_names)
    if found != expected:
        raise ValueError(
            f"Expected {folder} to have the classes of the training folder but it lacks {_some(expected - found)} and "
            f"has {_some(found - expected)} besides."
        )
    seen: dict[tuple[int, int], str] = {}
    pairs = [(path, label) for label, name in enumerate(class_names) for path in _files_below(str(folder / name), seen)]
    labels = np.array([label for _, label in pairs], dtype=np.int64)
    empty = [str(folder / name) for label, name in enumerate(class_names) if not (labels == label).any()]
    if empty:
        raise ValueError(f"Expected images in every class folder but these are empty: {_some(empty)}.")
    return [os.path.relpath(path, folder) for path, _ in pairs], labels


def _files_below(top: str, seen: dict[tuple[int, int], str]) -> Iterator[str]:
    """Yield the files below a folder in the order of their folders' paths and their names, through links to folders.

    Raises:
        ValueError: If a folder is met a second time: its images would count twice, or without end.
    """
    listed = []
    for folder, _, names in os.walk(top, followlinks=True):
        found = os.stat(folder)
        first = seen.setdefault((found.st_dev, found.st_ino), folder)
        if first != folder:
            raise ValueError(f"Expected every folder once but {folder} leads to {first} again; remove one of the two.")
        listed.append((folder, names))
    for folder, names in sorted(listed):
        paths = (os.path.join(folder, name) for name in sorted(names) if not name.startswith("."))
        yield from (path for path in paths if is_picture(path))


@cache
def _endings() -> frozenset[str]:
    Image.init()
    return frozenset(Image.registered_extensions())


def is_picture(path: str | Path) -> bool:
    """Whether a file is a picture by its ending or, where it has another one, by its first bytes."""
    ending = os.path.splitext(path)[1].lower()
    if not ending or ending in _endings() or not os.path.isfile(path):
        return True
    try:
        with Image.open(path):
            return True
    except Exception:  # Pillow's plug-ins raise whatever a file leads them to
        return False


def _some(names: Sequence[str] | set[str]) -> str:
    listed = sorted(names)
    return f"{listed[:5]}" + (f" and {len(listed) - 5} more" if len(listed) > 5 else "") if listed else "none"
