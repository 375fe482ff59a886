"""Figures, tables and reports of certified accuracy; none of them mixes two spaces or two soundness classes."""

from ellips.reporting.curves import LabelledCurve, single_claim
from ellips.reporting.figures import plot_curves, save_figure
from ellips.reporting.latents import plot_latents, plot_radii_by_class, plot_spectra
from ellips.reporting.tables import accuracy_table

__all__ = [
    "LabelledCurve",
    "accuracy_table",
    "plot_curves",
    "plot_latents",
    "plot_radii_by_class",
    "plot_spectra",
    "save_figure",
    "single_claim",
]
