"""The full-precision table."""

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ellips.files import ImageRecord, read_table, write_table
from ellips.files.table import table_lines
from ellips.types import Series


def record(index: int = 0, **changes: object) -> ImageRecord:
    values = {"index": index, "label": 1, "prediction": 1, "radius": 0.5, "seconds": 0.25, **changes}
    return ImageRecord(**values)


def bits(value: float) -> bytes:
    return struct.pack("<d", value)


@given(st.lists(st.floats(0, allow_nan=False), min_size=1, max_size=5))
def test_the_table_keeps_every_bit(tmp_path_factory: pytest.TempPathFactory, radii: list[float]) -> None:
    path = tmp_path_factory.mktemp("t") / "t.csv"
    records = [
        record(i, radius=r, margin=r, lipschitz=r, source="a, b", diagnostics={"p": r}) for i, r in enumerate(radii)
    ]
    write_table(path, records)
    for one, other in zip(records, read_table(path), strict=True):
        assert one.source == other.source
        assert other.latent_radius is None
        assert [bits(x) for x in (one.radius, one.margin, one.lipschitz, one.diagnostics["p"])] == [
            bits(x) for x in (other.radius, other.margin, other.lipschitz, other.diagnostics["p"])
        ]


@pytest.mark.parametrize(
    "series",
    [Series("latent", "exact"), Series("input", "exact", "known-constant-2"), ImageRecord(0, 0, 0, 0, 0).series],
)
def test_the_table_keeps_every_field(series: Series, tmp_path: Path) -> None:
    rows = [
        record(
            prediction=2,
            series=series,
            soundness="deterministic",
            margin=1.5,
            rival=3,
            multiplier=0.25,
            latent_radius=0.125,
            lipschitz=2.0,
            ball_radius=float("inf"),
            source="SpectralProduct(dense_limit=4096)",
            seed=7,
            lowered=0.25,
            corrected=True,
            confirmed=False,
            diagnostics={"residual": 1e-3},
        )
    ]
    write_table(tmp_path / "t.csv", rows)
    assert read_table(tmp_path / "t.csv") == rows


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("latent-exact,latent", "latent-exact,outer", "line 2.*`space` to be one of"),
        (",exact,0.5", ",sure,0.5", "line 2.*`soundness` to be one of"),
        (",0.5,", ",much,", "line 2.*could not convert"),
        (",radius,", ",size,", "expected the columns"),
    ],
)
def test_a_row_that_cannot_be_right_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "t.csv"
    text = table_lines([record(series=Series("latent", "exact"), margin=0.5)], header=True)
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        read_table(path)


def test_a_cut_off_line_is_left_out_when_asked_and_refused_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    whole = table_lines([record(0), record(1)], header=True)
    path.write_text(whole)
    assert [r.index for r in read_table(path)] == [0, 1]
    path.write_text(whole[:-9])
    assert [r.index for r in read_table(path, allow_partial=True)] == [0]
    with pytest.raises(ValueError, match="line 3"):
        read_table(path)
    path.write_text(whole[:4])
    assert read_table(path, allow_partial=True) == []
