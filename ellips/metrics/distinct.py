"""Rows of an evaluation, gathered over processes, each image once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from ellips.metrics.plotting import axes_or_new, draw_histogram
from ellips.validation import one_of


class DistinctRows(Metric):
    """Per-image values by the image's position, without the copies that samplers pad with.

    Args:
        **columns: By name, an empty tensor of shape ``(0, ...)`` that gives a column's width and type.

    Example:
        >>> seen = DistinctRows(radius=torch.empty(0, dtype=torch.float64))
        >>> seen.update(torch.tensor([2, 0, 2]), radius=torch.tensor([0.5, 1.0, 0.5]))
        >>> seen.rows()["radius"]
        tensor([1.0000, 0.5000], dtype=torch.float64)
    """

    full_state_update = False

    def __init__(self, **columns: Tensor) -> None:
        super().__init__()
        self.columns: Mapping[str, Tensor] = {"index": torch.empty(0, dtype=torch.int64), **columns}
        for name in self.columns:
            self.add_state(f"column_{name}", default=[], dist_reduce_fx="cat")
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        for name, empty in self.columns.items():
            # A process without rows takes part in the gathering all the same.
            setattr(self, f"column_{name}", [empty.to(self.device)])

    def update(self, index: Tensor, **columns: Tensor) -> None:
        """Add rows.

        Args:
            index: Shape ``(N,)``, the images' positions.
            **columns: Shape ``(N, ...)``, a value per image for each column.

        Raises:
            ValueError: If a column is missing, unknown or of another length.
        """
        given = {"index": index, **columns}
        lengths = {name: len(value) for name, value in given.items()}
        if given.keys() != self.columns.keys() or len(set(lengths.values())) > 1:
            raise ValueError(f"Expected one value per image for each of {list(self.columns)} but got {lengths}.")
        for name, value in given.items():
            # A copy: what a step returns may be written to by the next one.
            getattr(self, f"column_{name}").append(value.detach().to(self.columns[name].dtype, copy=True))

    def rows(self) -> dict[str, Tensor]:
        """Return the columns in the order of the positions, ``index`` among them, each position once.

        Every process calls it, and gets the rows of all.

        Returns:
            Tensors of shape ``(N, ...)``, as wide as the columns, also for one row or none.
        """
        # torchmetrics takes every dimension away from a value with a single element.
        return {name: value.view(-1, *self.columns[name].shape[1:]) for name, value in self.compute().items()}

    def compute(self) -> dict[str, Tensor]:
        """Return what :meth:`rows` returns, but of a single row as torchmetrics hands it out, without dimensions."""
        found: dict[str, Any] = {name: dim_zero_cat(getattr(self, f"column_{name}")) for name in self.columns}
        order = found["index"].argsort(stable=True)
        ordered = found["index"][order]
        first = torch.ones_like(ordered, dtype=torch.bool)
        first[1:] = ordered[1:] != ordered[:-1]
        return {name: value[order[first]] for name, value in found.items()}

    def plot(
        self, val: Mapping[str, Tensor] | None = None, ax: Axes | None = None, column: str | None = None
    ) -> tuple[Figure, Axes]:
        """Draw how the values of a column are distributed.

        Args:
            val: A result of :meth:`rows`; gathered if not given.
            ax: Axes to draw on; new ones if not given.
            column: One with a single value per image; None: the first of floating point.

        Returns:
            Figure and axes.

        Raises:
            ValueError: If there is no such column.
        """
        single = [name for name, empty in self.columns.items() if empty.ndim == 1]
        name = column or next((name for name in single if self.columns[name].is_floating_point()), None)
        one_of(single, column=name)
        figure, axes = axes_or_new(ax)
        draw_histogram(axes, (val if val is not None else self.rows())[str(name)], str(name))
        return figure, axes
