"""``configs``: copy the shipped configurations into a folder of one's own."""

from __future__ import annotations

import shutil
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

import ellips


def shipped() -> Path:
    """Return the folder of the shipped configurations: in the wheel inside the package, in a clone beside it."""
    package = Path(ellips.__file__).parent
    return next(folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir())


def main(args: Sequence[str] | None = None) -> int:
    """Copy; nothing that is there is written over."""
    parser = ArgumentParser(prog="ellips configs", description="Copy the shipped configurations into a folder.")
    parser.add_argument("folder", type=Path, help="Where to; made if it is missing.")
    target: Path = parser.parse_args(args).folder
    source = shipped()
    files = [path.relative_to(source) for path in sorted(source.rglob("*")) if path.is_file()]
    there = [str(file) for file in files if (target / file).exists()]
    if there:
        print(f"Expected {target} without {there[:5]}, so that nothing is written over; name another folder.")
        return 2
    for file in files:
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / file, target / file)
    print(f"{len(files)} files in {target}")
    return 0
