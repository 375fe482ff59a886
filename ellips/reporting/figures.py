"""Figures of certified accuracy, drawn without pyplot so that nothing global is touched."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ellips.files import replacing
from ellips.metrics.plotting import draw_curve, new_axes
from ellips.reporting.curves import AXES, CLAIMS, LabelledCurve, single_claim


def plot_curves(curves: Sequence[LabelledCurve], title: str | None = None, confidence: float = 0.95) -> Figure:
    """Draw several curves of one space and one soundness class on one axis.

    Args:
        curves: The curves, in the order of the legend.
        title: Heading of the figure.
        confidence: Coverage of the curves' bands, for the caption.

    Raises:
        ValueError: If the curves differ in space or soundness.
    """
    axes = new_axes()
    draw_group(axes, curves, title, confidence)
    return axes.figure.figure


def plot_panels(groups: Sequence[Sequence[LabelledCurve]], confidence: float = 0.95) -> Figure:
    """Draw each group of curves on axes of its own, side by side.

    Args:
        groups: One group per panel, each of one space and one soundness class.
        confidence: Coverage of the curves' bands, for the caption.

    Raises:
        ValueError: If there are no groups, or the curves of one differ in space or soundness.
    """
    if not groups:
        raise ValueError("Expected at least one group of curves but got none.")
    figure = Figure(figsize=(6.4 * len(groups), 4.2), layout="constrained")
    for axes, group in zip(figure.subplots(1, len(groups), squeeze=False)[0], groups, strict=True):
        draw_group(axes, group, None, confidence)
    return figure


def draw_group(axes: Axes, curves: Sequence[LabelledCurve], title: str | None, confidence: float) -> None:
    """Draw curves of one space and one soundness class, with heading and legend.

    Raises:
        ValueError: If the curves differ in space or soundness.
    """
    space, soundness = single_claim(curves)
    for style, item in enumerate(curves):
        draw_curve(axes, item.curve, item.label, style)
    axes.set_xlim(0, max(float(item.curve.radii[-1]) for item in curves))
    axes.set_xlabel(AXES[space])
    axes.set_title((f"{title}\n" if title else "") + f"{soundness}: {CLAIMS[soundness]}", fontsize="medium")
    legend = axes.legend(title=f"band: {confidence:.0%} interval", fontsize="small", title_fontsize="small")
    legend.set_alignment("left")


def save_figure(figure: Figure, *paths: str | Path, dpi: int = 150) -> list[Path]:
    """Write a figure to files of the types that their suffixes name, making folders as needed.

    The same figure gives the same SVG: neither dates nor random names go into it.
    """
    written = [Path(path) for path in paths]
    with mpl.rc_context({"svg.hashsalt": "ellips", "svg.fonttype": "none"}):
        for path in written:
            metadata = {"Date": None} if path.suffix == ".svg" else None
            with replacing(path) as partial:
                figure.savefig(partial, dpi=dpi, metadata=metadata)
    return written
