"""The tab-separated per-image file that the field's analysis scripts read (Cohen et al. 2019).

Its header is ``idx label predict radius correct time``, an abstention is prediction −1 with radius 0.0 and correct 0.
Its radius is rounded *down* here, so that no written radius exceeds the certified one.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from decimal import ROUND_DOWN, Context, Decimal
from pathlib import Path

from ellips.files.atomic import read_text, replace_file
from ellips.files.records import ImageRecord

TSV_HEADER = ("idx", "label", "predict", "radius", "correct", "time")
_TIME = re.compile(r"(?:(?P<days>\d+) days?, )?(?P<hours>\d+):(?P<minutes>\d\d):(?P<seconds>\d\d(?:\.\d+)?)")


def write_tsv(path: str | Path, records: Iterable[ImageRecord], digits: int = 6) -> None:
    """Write the tab-separated file, in the order given, replacing one that is there.

    Args:
        path: The file.
        records: Records of one series.
        digits: Significant digits of the radius; what lies beyond them is cut off, never rounded up.
    """
    lines = ["\t".join(TSV_HEADER), *(tsv_line(record, digits) for record in records)]
    replace_file(Path(path), "\n".join(lines) + "\n")


def tsv_line(record: ImageRecord, digits: int = 6) -> str:
    """Return one line of the tab-separated file, without its end."""
    radius = round_down_text(record.radius, digits)
    cells = (record.index, record.label, record.prediction, radius, int(record.correct), format_time(record.seconds))
    return "\t".join(str(cell) for cell in cells)


def read_tsv(path: str | Path) -> list[ImageRecord]:
    """Read a tab-separated file of this or another tool, which does not say what its radii may claim: ``estimated``.

    Raises:
        ValueError: If the header is another, a row is malformed, ``correct`` is anything but 0 or 1 or contradicts the
            prediction, or an index comes twice; the message names file and line.
    """
    lines = read_text(path).splitlines()
    header = tuple(lines[0].split("\t")) if lines else ()
    if header != TSV_HEADER:
        raise ValueError(f"{path}: expected the header {TSV_HEADER} but got {header}.")
    records: list[ImageRecord] = []
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        try:
            records.append(_parse_tsv_line(line))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    twice = [index for index, count in Counter(r.index for r in records).items() if count > 1]
    if twice:
        raise ValueError(f"{path}: expected every index once but got these more often: {twice[:10]}.")
    return records


def _parse_tsv_line(line: str) -> ImageRecord:
    cells = line.split("\t")
    if len(cells) != len(TSV_HEADER):
        raise ValueError(f"expected {len(TSV_HEADER)} columns but got {len(cells)}.")
    index, label, predict, radius, correct, time = cells
    if correct not in ("0", "1"):
        raise ValueError(f"expected `correct` to be 0 or 1 but got {correct!r}; is it a running count?")
    record = ImageRecord(
        index=int(index),
        label=int(label),
        prediction=int(predict),
        radius=float(radius),
        seconds=parse_time(time),
        soundness="estimated",
    )
    if record.correct != bool(int(correct)):
        raise ValueError(f"expected `correct` to say whether {predict} equals {label} but got {correct}.")
    return record


def round_down_text(value: float, digits: int) -> str:
    """Write a non-negative number with at most so many significant digits, cutting off the rest."""
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0.0"
    return f"{Context(prec=digits, rounding=ROUND_DOWN).create_decimal(Decimal(value)).normalize():f}"


def format_time(seconds: float) -> str:
    """Write a duration as ``H:MM:SS.ffffff``."""
    micros = round(seconds * 1_000_000)
    minutes, micros = divmod(micros, 60_000_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{micros // 1_000_000:02d}.{micros % 1_000_000:06d}"


def parse_time(text: str) -> float:
    """Read a duration in seconds, from ``H:MM:SS.ffffff`` or from a number of seconds.

    Raises:
        ValueError: If it is neither.
    """
    match = _TIME.fullmatch(text.strip())
    if match is None:
        try:
            return float(text)
        except ValueError:
            raise ValueError(f"expected `time` as H:MM:SS.ffffff or in seconds but got {text!r}.") from None
    days, hours, minutes, seconds = (float(match[name] or 0) for name in ("days", "hours", "minutes", "seconds"))
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
