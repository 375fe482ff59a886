"""From per-image records to curves and to the summary that a run leaves behind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ellips.certificates import WEYL
from ellips.files import ImageRecord, records_to_tensors
from ellips.metrics.functional import average_certified_radius, certified_accuracy_curve, check_radii, even_grid
from ellips.metrics.radii import radii_of_data
from ellips.reporting.curves import LabelledCurve
from ellips.types import DEFAULT_RADII, SPACES, Series, Space

GivenRadii = Mapping[Space, Sequence[float] | None]
"""For each space, the radii to tabulate, from 0 to the largest of which curves go; None: those of the data."""


def records_by_series(records: Sequence[ImageRecord]) -> dict[Series, list[ImageRecord]]:
    """Sort records into series, in order of appearance.

    Raises:
        ValueError: If the records of one series differ in soundness.
    """
    series: dict[Series, list[ImageRecord]] = {}
    for record in records:
        series.setdefault(record.series, []).append(record)
    for name, rows in series.items():
        claims = {row.soundness for row in rows}
        if len(claims) > 1:
            raise ValueError(f"Expected the series {name} to make one kind of claim but it makes {sorted(claims)}.")
    return series


def tabulated_radii(records: Sequence[ImageRecord], given: GivenRadii) -> dict[Space, tuple[float, ...]]:
    """Return the radii to tabulate of each space: as given, or those of the data, the same for all series of a space.

    Args:
        records: Of all series that are shown together; see :func:`ellips.metrics.radii.radii_of_data`.
        given: What was asked for.
    """
    radii: dict[Space, tuple[float, ...]] = {}
    for space in SPACES:
        asked = given.get(space)
        rows = [record for record in records if record.space == space]
        found = [records_to_tensors(rows)] if rows else []
        radii[space] = radii_of_data(found, DEFAULT_RADII[space]) if asked is None else check_radii(asked)
    return radii


def label_of(series: Series, records: Sequence[ImageRecord]) -> str:
    """Return a series' name for tables and plots, with a word where closed forms are smaller than the paper's.

    See :func:`ellips.certificates.by_weyl`.
    """
    return label_with(series, any(record.diagnostics.get(WEYL) for record in records))


def label_with(series: Series, weyl: bool) -> str:
    """Return a series' name for tables and plots."""
    return f"{series.label} (Weyl)" if weyl else series.label


def curve_of(
    records: Sequence[ImageRecord],
    label: str,
    *,
    radii: Sequence[float] | None = None,
    max_radius: float = 2.0,
    num_points: int = 201,
    confidence: float = 0.95,
) -> LabelledCurve:
    """Return the curve of one series, on a grid of its own or an even one.

    Raises:
        ValueError: If there are no records or the grid is none.
    """
    grid = check_radii(radii) if radii is not None else even_grid(max_radius, num_points)
    curve = certified_accuracy_curve(*records_to_tensors(records), radii=grid, confidence=confidence)
    return LabelledCurve(label, curve, records[0].space, records[0].soundness)


def completeness(records: Sequence[ImageRecord], expected: Sequence[int], listed: int = 100) -> dict[str, Any]:
    """Say whether every expected position is there exactly once in one series.

    Args:
        records: Records of one series.
        expected: Positions that should be there.
        listed: At most so many positions of each kind are named.
    """
    counts = Counter(record.index for record in records)
    wanted = set(expected)
    missing = sorted(wanted - counts.keys())
    repeated = sorted(index for index, count in counts.items() if count > 1)
    unexpected = sorted(counts.keys() - wanted)
    return {
        "complete": not (missing or repeated or unexpected),
        "expected": len(wanted),
        "present": len(wanted & counts.keys()),
        "missing_count": len(missing),
        "missing": missing[:listed],
        "repeated": repeated[:listed],
        "unexpected": unexpected[:listed],
    }


def summarize(
    records: Sequence[ImageRecord],
    expected: Sequence[int],
    radii: GivenRadii,
    *,
    confidence: float = 0.95,
    num_points: int = 201,
) -> dict[str, Any]:
    """Summarise a run, ready for JSON.

    Args:
        records: Records of all series.
        expected: Positions that every series should hold.
        radii: See :data:`GivenRadii`.
        confidence: Coverage of the Clopper–Pearson intervals.
        num_points: Grid points of the curve.

    Returns:
        ``complete``, ``confidence``, ``radii`` (which, and whether they were given) and, for each of ``series``, its
        claim, what is missing, clean and certified accuracy with intervals, curve, average certified radius,
        abstentions and time per image.
    """
    grids = tabulated_radii(records, radii)
    series = {
        key.name: {
            **_claim(rows),
            **completeness(rows, expected),
            **_accuracy(rows, grids[rows[0].space], confidence, num_points),
            "abstentions": sum(row.prediction < 0 for row in rows),
            "lowered": sum(bool(row.lowered) for row in rows),
            "corrected": sum(bool(row.corrected) for row in rows),
            "unconfirmed": sum(row.confirmed is False for row in rows),
            "seconds_per_image": _times(rows),
        }
        for key, rows in records_by_series(records).items()
    }
    return {
        "complete": bool(series) and all(entry["complete"] for entry in series.values()),
        "expected": len(set(expected)),
        "confidence": confidence,
        "radii": {space: {"radii": list(grids[space]), "chosen": _chooser(radii, space)} for space in _spaces(records)},
        "series": series,
    }


def _spaces(records: Sequence[ImageRecord]) -> list[Space]:
    return [space for space in SPACES if any(record.space == space for record in records)]


def _chooser(given: GivenRadii, space: Space) -> str:
    return "quantiles of the radii found" if given.get(space) is None else "as given"


def _claim(rows: Sequence[ImageRecord]) -> dict[str, Any]:
    sources = sorted({row.source for row in rows if row.source is not None})
    return {
        "space": rows[0].space,
        "soundness": rows[0].soundness,
        "method": rows[0].series.method,
        "label": label_of(rows[0].series, rows),
        "source": "; ".join(sources) or None,
    }


def _accuracy(
    rows: Sequence[ImageRecord], radii: Sequence[float], confidence: float, num_points: int
) -> dict[str, Any]:
    grid = sorted({0.0, *radii})
    table = curve_of(rows, "", radii=grid, confidence=confidence).curve
    points = [
        dict(zip(("radius", "accuracy", "lower", "upper"), values, strict=True))
        for values in zip(*(column.tolist() for column in table), strict=True)
    ]
    curve = curve_of(rows, "", max_radius=grid[-1], num_points=num_points, confidence=confidence).curve
    return {
        "clean_accuracy": {name: points[0][name] for name in ("accuracy", "lower", "upper")},
        "certified_accuracy": points[1:],
        "average_certified_radius": average_certified_radius(*records_to_tensors(rows)).item(),
        "curve": {name: column.tolist() for name, column in curve._asdict().items()},
    }


def _times(rows: Sequence[ImageRecord]) -> dict[str, float]:
    seconds = torch.tensor([row.seconds for row in rows], dtype=torch.float64)
    return {"median": seconds.quantile(0.5).item(), "p95": seconds.quantile(0.95).item()}
