"""Certified accuracy and the average certified radius as torchmetrics classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torchmetrics import Metric

from ellips.metrics.functional import (
    CertifiedCurve,
    certified_counts,
    certified_radius_sum,
    check_radii,
    clopper_pearson,
    curve_from_counts,
    even_grid,
    validate_certified,
)
from ellips.metrics.plotting import axes_or_new, draw_accuracies, draw_accuracies_over_steps, draw_curve
from ellips.validation import fraction


class _CertifiedCounts(Metric):
    """Counts, per radius of a fixed grid, of the points that are right and certified at least that far."""

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    certified: Tensor
    total: Tensor

    def __init__(self, grid: tuple[float, ...], confidence: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        fraction(confidence=confidence, ends=False)
        self.radii = grid
        self.confidence = confidence
        self.add_state("certified", default=torch.zeros(len(grid), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("total", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, radius: Tensor, prediction: Tensor, target: Tensor) -> None:
        """Count a batch.

        Args:
            radius: Shape ``(N,)``, certified ℓ2 radii.
            prediction: Shape ``(N,)``, integer classes, −1 for an abstention.
            target: Shape ``(N,)``, integer classes.

        Raises:
            ValueError: If the shapes disagree, a radius is negative or NaN, or a target is negative.
        """
        self.certified += certified_counts(radius, prediction, target, self.radii)
        self.total += len(radius)


class CertifiedAccuracy(_CertifiedCounts):
    """Certified accuracy at each of several radii: ``mean(correct and radius >= r)``, inclusive.

    Args:
        radii: Strictly ascending radii of at least 0, in the units of the certificates.
        confidence: Coverage of :meth:`interval`.
        kwargs: Keyword arguments of :class:`torchmetrics.Metric`.

    Raises:
        ValueError: If `radii` or `confidence` is out of range.

    Example:
        >>> metric = CertifiedAccuracy(radii=[0.5, 1.0])
        >>> metric(torch.tensor([0.5, 2.0]), torch.tensor([1, 0]), torch.tensor([1, 0]))
        tensor([1.0000, 0.5000], dtype=torch.float64)
    """

    def __init__(self, radii: Sequence[float], confidence: float = 0.95, **kwargs: Any) -> None:
        super().__init__(check_radii(radii), confidence, **kwargs)

    def compute(self) -> Tensor:
        """Return the certified accuracies, shape ``(R,)``, float64; NaN before the first point."""
        return self.certified.double() / self.total

    def interval(self) -> tuple[Tensor, Tensor]:
        """Return lower and upper ends of the Clopper–Pearson intervals of this process's counts, each ``(R,)``.

        Inside ``compute`` and after ``sync`` the counts are those of all processes.
        """
        return clopper_pearson(self.certified, self.total, self.confidence)

    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: Axes | None = None) -> tuple[Figure, Axes]:
        """Draw the accuracies over the radius or, of several results, each radius' accuracy over the results.

        Args:
            val: A result of ``compute`` or ``forward``, or several in order. Without it the result is computed, and
                its Clopper–Pearson intervals are drawn as well.
            ax: Axes to draw on; new ones if not given.

        Returns:
            Figure and axes.

        Raises:
            ValueError: If there is nothing to draw, or a result has not one value for each radius.
        """
        if val is None and int(self.total) == 0:
            raise ValueError("Expected at least one certified point but got none; call `update` first.")
        results = [self.compute()] if val is None else [val] if isinstance(val, Tensor) else list(val)
        expected = (len(self.radii),)
        if not results or any(result.shape != expected for result in results):
            got = [tuple(result.shape) for result in results]
            raise ValueError(f"Expected results of shape {expected}, one value for each radius, but got {got}.")
        figure, axes = axes_or_new(ax)
        if val is None or isinstance(val, Tensor):
            draw_accuracies(axes, self.radii, results[0], self.interval() if val is None else None)
        else:
            draw_accuracies_over_steps(axes, self.radii, results)
        return figure, axes


class CertifiedAccuracyCurve(_CertifiedCounts):
    """The curve of certified accuracy over the radius, with its pointwise Clopper–Pearson intervals.

    Args:
        max_radius: Where the evenly spaced grid ends; it starts at 0.
        num_points: Number of grid points.
        radii: A grid of your own in place of the even one.
        confidence: Coverage of the interval at each radius.
        kwargs: Keyword arguments of :class:`torchmetrics.Metric`.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        max_radius: float = 2.0,
        num_points: int = 101,
        *,
        radii: Sequence[float] | None = None,
        confidence: float = 0.95,
        **kwargs: Any,
    ) -> None:
        grid = check_radii(radii) if radii is not None else even_grid(max_radius, num_points)
        super().__init__(grid, confidence, **kwargs)

    def compute(self) -> CertifiedCurve:
        """Return the curve.

        Raises:
            ValueError: If nothing was counted yet.
        """
        if int(self.total) == 0:
            raise ValueError("Expected at least one certified point but got none; call `update` first.")
        return curve_from_counts(self.certified, self.total, self.radii, self.confidence)

    def plot(
        self, val: CertifiedCurve | None = None, ax: Axes | None = None, label: str | None = None
    ) -> tuple[Figure, Axes]:
        """Draw the curve as the step function it is, with its intervals as a band.

        Args:
            val: A result of ``compute``; computed if not given.
            ax: Axes to draw on; new ones if not given.
            label: Name in the legend.

        Returns:
            Figure and axes.
        """
        figure, axes = axes_or_new(ax)
        draw_curve(axes, val if val is not None else self.compute(), label)
        return figure, axes


class AverageCertifiedRadius(Metric):
    """Mean certified radius over all points, those not rightly predicted counting as 0 (Zhai et al. 2020).

    A single easy point can dominate it: show the curve first, and this beside it.

    Args:
        kwargs: Keyword arguments of :class:`torchmetrics.Metric`.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    plot_lower_bound = 0.0

    radius_sum: Tensor
    total: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("radius_sum", default=torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("total", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, radius: Tensor, prediction: Tensor, target: Tensor) -> None:
        """Add a batch.

        Args:
            radius: Shape ``(N,)``, certified ℓ2 radii.
            prediction: Shape ``(N,)``, integer classes, −1 for an abstention.
            target: Shape ``(N,)``, integer classes.

        Raises:
            ValueError: If the shapes disagree, a radius is negative or NaN, or a target is negative.
        """
        validate_certified(radius, prediction, target)
        self.radius_sum += certified_radius_sum(radius, prediction, target)
        self.total += len(radius)

    def compute(self) -> Tensor:
        """Return the mean radius, a float64 scalar; NaN before the first point, ``inf`` if a right one is unbounded."""
        return self.radius_sum / self.total

    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: Axes | None = None) -> tuple[Figure, Axes]:
        """Draw the mean radius or, of several results, the means in order.

        Args:
            val: A result of ``compute`` or ``forward``, or several in order; computed if not given.
            ax: Axes to draw on; new ones if not given.

        Returns:
            Figure and axes.
        """
        figure, axes = axes_or_new(ax)
        self._plot(val, axes)  # torchmetrics makes a figure of pyplot's only where it is given no axes
        return figure, axes
