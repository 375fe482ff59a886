"""One curve of certified accuracy on an axis, drawn without pyplot so that nothing global is touched."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from ellips.metrics.functional import CertifiedCurve

# Okabe and Ito's palette, told apart with any colour vision; the dashes help in print and where lines overlap.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES = ("-", "--", "-.", ":")


def new_axes(width: float = 6.4, height: float = 4.2) -> Axes:
    """Return axes on a figure of their own, in inches."""
    return Figure(figsize=(width, height), layout="constrained").add_subplot()


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
    colour = _COLOURS[style % len(_COLOURS)]
    axes.step(radii, accuracy, where="pre", label=label, color=colour, linestyle=_DASHES[style % len(_DASHES)])
    axes.fill_between(radii, lower, upper, step="pre", color=colour, alpha=0.15, linewidth=0)
    axes.set_xlim(float(radii[0]), float(radii[-1]))
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylabel("certified accuracy")
    axes.grid(alpha=0.3)
