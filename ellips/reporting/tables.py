"""Tables for the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from ellips.reporting.curves import AXES, CLAIMS, LabelledCurve, single_claim


def accuracy_table(
    rows: Sequence[LabelledCurve],
    title: str,
    confidence: float = 0.95,
    extra: Sequence[tuple[str, Sequence[str]]] = (),
) -> Group:
    """Lay out certified accuracies side by side: a row per curve, a column per radius.

    Args:
        rows: Curves of one space, one soundness class and one grid; accuracy at radius 0 is headed "clean".
        title: Heading; space and soundness are added to it.
        confidence: Coverage of the rows' intervals, for the caption.
        extra: Further columns at the end: heading and one cell per row.

    Raises:
        ValueError: If the rows differ in space, soundness or grid.
    """
    space, soundness = single_claim(rows)
    grid = rows[0].curve.radii
    if any(not torch.equal(row.curve.radii, grid) for row in rows):
        raise ValueError("Expected all rows of a table to share one grid of radii but they differ.")
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("method", overflow="fold", min_width=8)
    for radius in grid.tolist():
        table.add_column("clean" if radius == 0 else f"{radius:.4g}", justify="right", no_wrap=True)
    for name, _ in extra:
        table.add_column(name, justify="right", no_wrap=True)
    for i, row in enumerate(rows):
        cells = [
            f"{100 * value:.1f}\n[dim]{math.floor(100 * low)}–{math.ceil(100 * high)}[/dim]"
            for value, low, high in zip(
                row.curve.accuracy.tolist(), row.curve.lower.tolist(), row.curve.upper.tolist(), strict=True
            )
        ]
        table.add_row(escape(row.label), *cells, *(column[i] for _, column in extra))
    heading = f"\n[b]{title}[/b]\n{AXES[space]} · [b]{soundness}[/b]: {CLAIMS[soundness]}"
    # Headings of a rich table are wrapped to its width; these are lines of their own.
    return Group(heading, table, f"[dim]in %; beneath, the {confidence:.0%} interval, rounded outwards[/dim]")
