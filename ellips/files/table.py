"""The full-precision per-image table: a CSV with every column known, whose floats read back bit for bit."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any

from ellips.files.atomic import read_text, replace_file
from ellips.files.checksums import CURE, checksum
from ellips.files.records import CARRIED, ImageRecord
from ellips.types import SOUNDNESS_ORDER, SPACES, Series
from ellips.validation import one_of

_LEADING = ("index", "label", "series")
_SERIES_COLUMNS = ("series", "space", "method", "series_source")
TABLE_HEADER = ("index", "label", *_SERIES_COLUMNS, *(f.name for f in fields(ImageRecord) if f.name not in _LEADING))
_HEADER_0_1 = (
    *("index", "label", "prediction", "radius", "seconds", "series", "space", "soundness", "method", "margin", "rival"),
    *("multiplier", *CARRIED, "source", "seed", "diagnostics"),
)
"""The columns of version 0.1, where the name of a series in input space was ``input-<source>``."""


def write_table(path: str | Path, records: Iterable[ImageRecord]) -> None:
    """Write the full-precision table (CSV), replacing one that is there."""
    replace_file(Path(path), table_lines([], header=True) + table_lines(records))


def table_lines(records: Iterable[ImageRecord], header: bool = False, key: bytes | None = None) -> str:
    """Return records, or the header, as CSV text ending in a line feed; with a key, each row with its checksum."""
    buffer = _Lines()
    writer = csv.writer(buffer, lineterminator="\n")
    if header:
        writer.writerow(TABLE_HEADER if key is None else (*TABLE_HEADER, _CHECKSUM))
    for record in records:
        row = {item.name: getattr(record, item.name) for item in fields(record)}
        row |= dict(zip(_SERIES_COLUMNS, (record.series.name, *astuple(record.series)), strict=True))
        row["diagnostics"] = json.dumps(record.diagnostics, sort_keys=True) if record.diagnostics else ""
        values = (row[name] for name in TABLE_HEADER)
        # repr of a float is the shortest text that reads back to the same float.
        writer.writerow("" if v is None else repr(v) if isinstance(v, float) else v for v in values)
    if key is None or header:
        return "".join(buffer.parts)
    return "".join(f"{line}{checksum(line.encode(), key).hex()}\n" for line in _with_comma(buffer.parts))


def _with_comma(lines: Iterable[str]) -> Iterator[str]:
    return (line.removesuffix("\n") + "," for line in lines)


_CHECKSUM = "checksum"
_CHECKED = (*TABLE_HEADER, _CHECKSUM)


class _Lines:
    """A file that keeps what is written."""

    def __init__(self) -> None:
        self.parts: list[str] = []

    def write(self, text: str) -> int:
        self.parts.append(text)
        return len(text)


def read_table(path: str | Path, *, allow_partial: bool = False, key: bytes | None = None) -> list[ImageRecord]:
    """Read the full-precision table, also one that version 0.1 wrote.

    Args:
        path: The file.
        allow_partial: Leave out a last line that was cut off, as a killed process leaves it.
        key: Each row must have its checksum with this key; None: checksums are passed over.

    Raises:
        ValueError: If the header or a row is malformed or damaged; the message names file and line.
    """
    text = read_text(path)
    if allow_partial and not text.endswith("\n"):
        text = text[: text.rfind("\n") + 1]
    lines = text.removesuffix("\n").split("\n")
    rows = csv.reader(lines)
    header = tuple(next(rows, ()))
    if header not in ((TABLE_HEADER, _HEADER_0_1, _CHECKED) if key is None else (_CHECKED,)):
        if allow_partial and not header:
            return []
        raise ValueError(f"{path}: expected the columns {TABLE_HEADER} but got {header}.")
    if key is not None:
        _refuse_damage(path, lines[1:], key)
    try:
        return list(_parse_table(rows, header, path))
    except csv.Error as error:
        raise ValueError(f"{path}: expected a table but {error}.") from error


def _refuse_damage(path: str | Path, lines: Iterable[str], key: bytes) -> None:
    for number, line in enumerate(lines, start=2):
        row, comma, digits = line.rpartition(",")
        if checksum((row + comma).encode(), key).hex() != digits:
            raise ValueError(f"{path}, line {number}: expected the row to have its checksum but {CURE}")


def _parse_table(rows: Iterable[list[str]], header: Sequence[str], path: str | Path) -> Iterator[ImageRecord]:
    for number, row in enumerate(rows, start=2):
        try:
            yield _parse_table_row(dict(zip(header, row, strict=True)))
        except (ValueError, KeyError) as error:
            raise ValueError(f"{path}, line {number}: {error}") from error


def _parse_table_row(row: dict[str, str]) -> ImageRecord:
    one_of(SPACES, space=row["space"])
    one_of(SOUNDNESS_ORDER, soundness=row["soundness"])
    values: dict[str, Any] = {
        **{name: int(row[name]) for name in ("index", "label", "prediction", "rival", "seed")},
        **{name: float(row[name]) for name in ("radius", "seconds", "margin", "multiplier")},
        **{name: float(row[name]) if row.get(name) else None for name in (*CARRIED, "lowered")},
        **{name: row[name] == "True" if row.get(name) else None for name in ("corrected", "confirmed")},
        "series": _parse_series(row),
        "soundness": row["soundness"],
        "source": row["source"] or None,
        "diagnostics": json.loads(row["diagnostics"]) if row["diagnostics"] else {},
    }
    return ImageRecord(**values)


def _parse_series(row: dict[str, str]) -> Series:
    space: Any = row["space"]
    in_name = row["series"].removeprefix("input-") if space == "input" else None
    return Series(space, row["method"], row.get("series_source", in_name) or None)
