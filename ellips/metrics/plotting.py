"""What metrics look like on an axis, drawn without pyplot so that nothing global is touched."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from torch import Tensor

from ellips.metrics.functional import CertifiedCurve

COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"),
    *("#882255", "#999933", "#888888"),
)
"""Okabe and Ito's palette, told apart with any colour vision, and three more for ten classes."""

# They help in print and where lines overlap.
_DASHES = ("-", "--", "-.", ":")


def new_axes(width: float = 6.4, height: float = 4.2) -> Axes:
    """Return axes on a figure of their own, in inches."""
    return Figure(figsize=(width, height), layout="constrained").add_subplot()


def axes_or_new(ax: Axes | None) -> tuple[Figure, Axes]:
    """Return axes with their figure: those given, or new ones.

    Raises:
        ValueError: If the axes given belong to no figure.
    """
    axes = ax if ax is not None else new_axes()
    figure = axes.figure
    if figure is None:
        raise ValueError("Expected `ax` to belong to a figure but it belongs to none.")
    return figure.figure, axes


def draw_curve(axes: Axes, curve: CertifiedCurve, label: str | None = None, style: int = 0) -> None:
    """Draw one curve and the band of its intervals.

    Between two radii of the grid the drawn value is the one of the larger radius, which certified accuracy, never
    growing with the radius, is known to reach there.

    Args:
        axes: Where to draw.
        curve: The curve.
        label: Name in the legend.
        style: Which colour and dashes to use, counted through.
    """
    radii, accuracy, lower, upper = (value.cpu().numpy() for value in curve)
    colour = COLOURS[style % len(COLOURS)]
    axes.step(radii, accuracy, where="pre", label=label, color=colour, linestyle=_DASHES[style % len(_DASHES)])
    axes.fill_between(radii, lower, upper, step="pre", color=colour, alpha=0.15, linewidth=0)
    axes.set_xlim(float(radii[0]), float(radii[-1]))
    _label_accuracy(axes)


def draw_accuracies(
    axes: Axes, radii: Sequence[float], accuracy: Tensor, interval: tuple[Tensor, Tensor] | None = None
) -> None:
    """Draw certified accuracy at some radii as points, with their intervals if there are any.

    Args:
        axes: Where to draw.
        radii: R radii.
        accuracy: Shape ``(R,)``.
        interval: Lower and upper ends, each ``(R,)``.
    """
    values = accuracy.cpu()
    bars = None if interval is None else torch.stack((values - interval[0].cpu(), interval[1].cpu() - values)).numpy()
    axes.errorbar(radii, values.numpy(), yerr=bars, fmt="o", color=COLOURS[0], capsize=3)
    axes.set_xlabel("radius")
    _label_accuracy(axes)


def draw_accuracies_over_steps(axes: Axes, radii: Sequence[float], accuracies: Sequence[Tensor]) -> None:
    """Draw how certified accuracy at some radii came about: a line for each radius, a point for each result.

    Args:
        axes: Where to draw.
        radii: R radii.
        accuracies: Results in order, each of shape ``(R,)``.
    """
    for style, (radius, values) in enumerate(zip(radii, torch.stack([a.cpu() for a in accuracies]).T, strict=True)):
        colour, dashes = COLOURS[style % len(COLOURS)], _DASHES[style % len(_DASHES)]
        axes.plot(values.numpy(), marker="o", markersize=4, label=f"{radius:g}", color=colour, linestyle=dashes)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("result")
    axes.legend(title="radius", fontsize="small", title_fontsize="small")
    _label_accuracy(axes)


def draw_histogram(axes: Axes, values: Tensor, name: str) -> None:
    """Draw how finite values are distributed, and say in the axis' label how many are not finite.

    Args:
        axes: Where to draw.
        values: Shape ``(N,)``.
        name: Of the axis.
    """
    known = values.detach().cpu().double()
    finite = known[known.isfinite()]
    axes.hist(finite.numpy(), bins=min(50, max(1, round(len(finite) ** 0.5))), color=COLOURS[0])
    left = len(known) - len(finite)
    axes.set_xlabel(f"{name} ({left} not finite)" if left else name)
    axes.set_ylabel("rows")
    axes.grid(alpha=0.3)


def _label_accuracy(axes: Axes) -> None:
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylabel("certified accuracy")
    axes.grid(alpha=0.3)
