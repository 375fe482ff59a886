"""Tables for the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ellips.reporting.curves import AXES, CLAIMS, LabelledCurve, radius_text, single_claim

_SHORTEST_NAME: Final = 12
"""Columns of the terminal that a name gets at least."""


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
    columns = [("clean" if radius == 0 else radius_text(radius), list[str]()) for radius in grid.tolist()]
    for row in rows:
        for (_, cells), value, low, high in zip(
            columns, row.curve.accuracy.tolist(), row.curve.lower.tolist(), row.curve.upper.tolist(), strict=True
        ):
            cells.append(f"{100 * value:.1f}\n[dim]{math.floor(100 * low)}–{math.ceil(100 * high)}[/dim]")
    table = FoldedTable("method", [escape(row.label) for row in rows], [*columns, *extra])
    heading = f"\n[b]{title}[/b]\n{AXES[space]} · [b]{soundness}[/b]: {CLAIMS[soundness]}"
    # Headings of a rich table are wrapped to its width; these are lines of their own.
    return Group(heading, table, f"[dim]in %; beneath, the {confidence:.0%} interval, rounded outwards[/dim]")


@dataclass(frozen=True)
class FoldedTable:
    """A table whose columns go on beneath where the terminal has no room for all of them; nothing is cut off.

    Attributes:
        heading: Of the first column.
        names: The first column, a name for each row.
        columns: The others: a heading, and a cell for each row.
    """

    heading: str
    names: Sequence[str]
    columns: Sequence[tuple[str, Sequence[str]]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield one table after the other."""
        widths = [2 + max(map(_width, (heading, *cells))) for heading, cells in self.columns]
        # Long names are folded, before figures are moved beneath.
        first = min(max(map(_width, (self.heading, *self.names))), max(options.max_width // 4, _SHORTEST_NAME))
        room, start = options.max_width - first - 4, 0  # a name has its padding, and a table an empty edge
        while start < len(self.columns):
            stop = start + 1
            while stop < len(self.columns) and sum(widths[start : stop + 1]) <= room:
                stop += 1
            table = Table(box=SIMPLE_HEAD, pad_edge=False)
            table.add_column(self.heading, overflow="fold", min_width=min(first, _SHORTEST_NAME))
            for heading, _ in self.columns[start:stop]:
                table.add_column(heading, justify="right", no_wrap=True)
            for i, name in enumerate(self.names):
                table.add_row(name, *(cells[i] for _, cells in self.columns[start:stop]))
            yield table
            start = stop


def _width(text: str) -> int:
    """The width of the widest line."""
    return max(line.cell_len for line in Text.from_markup(text).split("\n", allow_blank=True))
