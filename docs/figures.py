"""Draws the figures of the pages from the library, so that they can be drawn again: ``make figures``."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from torch import Tensor

from ellips import Ellips, FrozenEncoder
from ellips.certificates import METHODS
from ellips.metrics import certified_accuracy_curve
from ellips.metrics.plotting import COLOURS, new_axes
from ellips.reporting import LabelledCurve, plot_curves, plot_latents, plot_spectra, save_figure
from ellips.smoothing.confidence import clopper_pearson_lower, radius_of
from ellips.splits import digits_part

IMAGES = Path(__file__).parent / "images"


def plane_mixture() -> Ellips:
    """Three classes in the plane: a round one, a long one and a wide one."""
    means = torch.tensor([[-1.6, 0.0], [1.5, 1.0], [0.9, -1.7]], dtype=torch.float64)
    covariances = torch.tensor([[[0.5, 0.0], [0.0, 0.5]], [[1.1, 0.5], [0.5, 0.5]], [[0.9, -0.2], [-0.2, 0.3]]])
    return Ellips.from_parameters(means, covariances, torch.full((3,), 1 / 3))


def draw_certificates() -> Figure:
    """Three radii of one point, over the regions in which each class wins."""
    ellips, point = plane_mixture(), torch.tensor([[-0.9, 0.5]], dtype=torch.float64)
    axes = new_axes(6.4, 4.0)
    x, y = np.linspace(-2.5, 1.5, 161), np.linspace(-1.3, 1.6, 121)
    grid = torch.tensor(np.stack(np.meshgrid(x, y), -1).reshape(-1, 2))
    winner = ellips.predict(grid).reshape(len(y), len(x)).numpy()
    axes.contourf(x, y, winner, levels=[-0.5, 0.5, 1.5, 2.5], colors=COLOURS[:3], alpha=0.18)
    axes.contour(x, y, winner, levels=[0.5, 1.5], colors="#888888", linewidths=0.8)
    axes.plot(*ellips.means.T.numpy(), "+", color="#555555", markersize=9, label="class means")
    for method, colour, dash in zip(METHODS, COLOURS[:3], ("-", "--", ":"), strict=True):
        radius = float(ellips.certify(point, method=method).radius)
        label = f"{method}: {radius:.2f}"
        axes.add_patch(Circle(point[0].tolist(), radius, fill=False, color=colour, linestyle=dash, lw=2, label=label))
    axes.plot(*point[0].tolist(), "o", color="#000000", label="latent")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), title="radius")
    axes.set_aspect("equal")
    axes.set(xlabel="latent 1", ylabel="latent 2", xlim=(x[0], x[-1]), ylim=(y[0], y[-1]))
    return axes.figure.figure


def draw_curves() -> Figure:
    """Certified accuracy by each certificate, on points drawn from the mixture."""
    ellips = plane_mixture()
    z, labels = ellips.sample(4000, generator=torch.Generator().manual_seed(0))
    curves = []
    for method in reversed(METHODS):
        certificate = ellips.certify(z, method=method)
        curve = certified_accuracy_curve(certificate.radius, certificate.prediction, labels, max_radius=2.0)
        curves.append(LabelledCurve(method, curve, "latent", "exact"))
    return plot_curves(curves)


def digits_head() -> tuple[Ellips, Tensor, Tensor]:
    """Gaussians on the shipped encoder's features of the digits, with the test split's features."""
    encoder = FrozenEncoder("digits")
    train, test = digits_part("train"), digits_part("test")
    ellips = Ellips(10, encoder.feature_dim, pooling=0.3, shrinkage=0.1).fit(encoder(train[0]), train[1])
    return ellips, encoder(test[0]), test[1]


def draw_votes() -> Figure:
    """The largest radius that votes can prove, by how many vote for the class."""
    axes = new_axes(6.0, 3.8)
    for style, draws in enumerate((100, 1000, 10_000)):
        share = np.linspace(0.5, 1, 101)
        lower = [clopper_pearson_lower(round(p * draws), draws, 0.001) for p in share]
        axes.plot(share, [radius_of(p, 1.0) for p in lower], color=COLOURS[style], label=f"{draws:,} draws")
    axes.set(xlabel="share of votes", ylabel="proven radius, in units of sigma", xlim=(0.5, 1.005), ylim=(0, None))
    axes.legend(title="alpha = 0.001")
    axes.grid(alpha=0.3)
    return axes.figure.figure


def draw(folder: Path) -> list[Path]:
    """Draw every figure into a folder."""
    with mpl.rc_context({"svg.fonttype": "path"}):
        ellips, z, labels = digits_head()
        figures = {
            "method_radii": draw_certificates(),
            "method_curves": draw_curves(),
            "method_latents": plot_latents(ellips, z, labels),
            "method_spectra": plot_spectra(ellips),
            "method_votes": draw_votes(),
        }
        return [path for name, figure in figures.items() for path in save_figure(figure, folder / f"{name}.svg")]


if __name__ == "__main__":
    print("\n".join(map(str, draw(Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGES))))
