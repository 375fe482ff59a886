"""The tab-separated file that the field's scripts read."""

import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ellips.files import ImageRecord, read_tsv, write_tsv
from ellips.files.tsv import format_time, parse_time, round_down_text

HEADER = "idx\tlabel\tpredict\tradius\tcorrect\ttime\n"


def record(index: int = 0, **changes: object) -> ImageRecord:
    values = {"index": index, "label": 1, "prediction": 1, "radius": 0.5, "seconds": 0.25, **changes}
    return ImageRecord(**values)


def analysis_of_the_original(text: str, radius: float) -> float:
    """What the randomised-smoothing repository's script computes: mean(correct & (radius >= r))."""
    names, *rows = [line.split("\t") for line in text.splitlines()]
    table = [dict(zip(names, row, strict=True)) for row in rows]
    return sum(int(r["correct"]) & (float(r["radius"]) >= radius) for r in table) / len(table)


def test_the_file_is_read_by_the_original_analysis(tmp_path: Path) -> None:
    records = [record(0), record(20, radius=1.996), record(40, prediction=-1, radius=0.0), record(60, prediction=2)]
    write_tsv(tmp_path / "a.tsv", records, digits=3)
    text = (tmp_path / "a.tsv").read_text()
    assert text.startswith(HEADER)
    assert text.splitlines()[2] == "20\t1\t1\t1.99\t1\t0:00:00.250000"
    assert text.splitlines()[3] == "40\t1\t-1\t0.0\t0\t0:00:00.250000"
    assert [analysis_of_the_original(text, r) for r in (0.0, 0.5, 0.51, 1.99, 2.0)] == [0.5, 0.5, 0.25, 0.25, 0.0]


def test_the_file_reads_back(tmp_path: Path) -> None:
    records = [record(3, radius=math.inf), record(1, seconds=3723.5), record(2, prediction=-1, radius=0.0)]
    write_tsv(tmp_path / "a.tsv", records)
    # What the radii may claim is not in the file, and so is not claimed.
    assert read_tsv(tmp_path / "a.tsv") == [replace(row, soundness="estimated") for row in records]


@given(st.floats(0, allow_nan=False, allow_infinity=False), st.integers(1, 12))
def test_a_written_radius_never_exceeds_the_certified_one(radius: float, digits: int) -> None:
    written = round_down_text(radius, digits)
    assert Fraction(written) <= Fraction(radius)
    assert float(written) <= radius
    if radius > 1e-300:
        assert float(written) >= radius * (1 - 10.0 ** (1 - digits)) * (1 - 1e-15)


@given(st.floats(0, 1e6))
def test_times_are_written_and_read(seconds: float) -> None:
    assert parse_time(format_time(seconds)) == pytest.approx(seconds, abs=6e-7)


@pytest.mark.parametrize(
    ("text", "seconds"), [("0:02:31.238689", 151.238689), ("0:00:03", 3.0), ("1 day, 1:00:00", 90000.0), ("2.5", 2.5)]
)
def test_both_ways_of_writing_time_are_read(text: str, seconds: float) -> None:
    assert parse_time(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEADER + "0\t1\t1\t0.5\t1\t0:00:01.0\n20\t1\t1\t0.5\t2\t0:00:01.0\n", r"line 3.*0 or 1.*running count"),
        (HEADER + "0\t1\t1\t0.5\t0.5\t1\n", "0 or 1"),
        (HEADER + "0\t1\t2\t0.5\t1\t1\n", "whether 2 equals 1"),
        (HEADER + "0\t1\t1\t0.5\t1\t1\n" * 2, "every index once"),
        (HEADER + "0\t1\t1\t-0.5\t1\t1\n", "at least 0"),
        (HEADER + "0\t1\t1\tnan\t1\t1\n", "at least 0"),
        (HEADER + "0\t1\t1\t0.5\t1\n", "6 columns"),
        (HEADER + "0\t1\t1\t0.5\t1\tnoon\n", "time"),
        ("idx,label\n", "header"),
        ("", "header"),
    ],
)
def test_files_that_cannot_be_right_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.tsv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_tsv(tmp_path / "a.tsv")
