"""What the fitted Gaussians look like: latents with their ellipses, spectra of covariances, radii by class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Ellipse
from matplotlib.ticker import LogFormatter
from numpy.typing import NDArray
from scipy.stats import chi2
from torch import Tensor

from ellips.gaussians import Mixture
from ellips.metrics.functional import validate_certified
from ellips.metrics.plotting import COLOURS, new_axes
from ellips.reporting.curves import AXES, CLAIMS
from ellips.types import Soundness, Space
from ellips.validation import at_least, fraction

MOST_CLASSES = 10
"""Of more classes a figure shows the first, and says so."""

Rows = tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.int64]]
"""Radius, whether the prediction is right, and class, each ``(N,)``."""

_MARKERS = ("o", "s", "^")
_LINES = ("-", "--", ":")


def plot_latents(
    mixture: Mixture,
    z: Tensor,
    labels: Tensor,
    names: Sequence[str] | None = None,
    *,
    masses: Sequence[float] = (0.5, 0.95),
    most_classes: int = MOST_CLASSES,
) -> Figure:
    """Draw latents and the ellipses of the Gaussians fitted to them, in the plane that tells the classes best apart.

    Of latents with more than two dimensions the plane is that of the two leading linear discriminants (Fisher 1936) of
    the classes shown: directions in units of the pooled standard deviation in which the means differ most. A Gaussian's
    shadow on a plane is a Gaussian, so the ellipses are those of the very mixture that certifies, and not of a fit to
    the points that are seen.

    Args:
        mixture: Fitted, of at least two dimensions.
        z: Shape ``(N, d)``, latents.
        labels: Shape ``(N,)``, their classes.
        names: Of the classes; None: their numbers.
        masses: Shares of a class's probability that its ellipses hold.
        most_classes: Of more classes the first are shown.

    Raises:
        ValueError: If latents have one dimension, or an argument is out of its range.
    """
    at_least(2, dim=mixture.dim, most_classes=most_classes)
    fraction(ends=False, **{f"masses[{i}]": mass for i, mass in enumerate(masses)})
    shown = _shown(mixture.num_classes, most_classes)
    means, covariances = mixture.means[shown].detach().cpu(), _covariances(mixture, shown)
    plane = _plane(means, covariances) if mixture.dim > 2 else torch.eye(2, dtype=torch.float64)
    points = mixture.validate(z.to(mixture.means.device)).detach().cpu() @ plane
    axes = new_axes(6.4, 4.8)
    for style, k in enumerate(shown.tolist()):
        colour, marker = COLOURS[style % len(COLOURS)], _MARKERS[style // len(COLOURS) % len(_MARKERS)]
        x, y = points[labels.cpu() == k].T
        # A million points stay one picture within a drawing of lines.
        axes.scatter(x, y, s=14, color=colour, marker=marker, alpha=0.6, linewidths=0, rasterized=True)
        for mass in masses:
            ellipse = _ellipse(means[style] @ plane, plane.T @ covariances[style] @ plane, mass)
            ellipse.set(edgecolor=colour, facecolor="none", linewidth=1.2, linestyle=_LINES[style // len(COLOURS) % 3])
            axes.add_patch(ellipse)
    handles = _handles(len(shown))
    axes.legend(handles, _names(names, shown), fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    coordinates = ("discriminant 1", "discriminant 2") if mixture.dim > 2 else ("latent 1", "latent 2")
    axes.set(xlabel=coordinates[0], ylabel=coordinates[1])
    axes.set_aspect("equal", "datalim")
    axes.autoscale_view()
    shares = " and ".join(f"{mass:.0%}" for mass in masses)
    axes.set_title(_title(f"Latents; ellipses hold {shares} of each Gaussian", shown, mixture), fontsize="medium")
    axes.grid(alpha=0.3)
    return axes.figure.figure


class _PlainNumbers(LogFormatter):
    """Writes 0.1 and not 1e-01."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        """Return the number where the logarithmic axis has one."""
        return f"{x:g}" if super().__call__(x, pos) else ""


def plot_spectra(mixture: Mixture, names: Sequence[str] | None = None, *, most_classes: int = MOST_CLASSES) -> Figure:
    """Draw the standard deviations of each class's Gaussian along its principal axes, largest first.

    Flat lines are round classes, steep ones flat ellipsoids; where lines of two classes part, their boundary is curved.

    Args:
        mixture: Fitted.
        names: Of the classes; None: their numbers.
        most_classes: Of more classes the first are shown.

    Raises:
        ValueError: If `most_classes` is less than 1.
    """
    at_least(1, most_classes=most_classes)
    shown = _shown(mixture.num_classes, most_classes)
    axes = new_axes()
    for style, spectrum in enumerate(_deviations(mixture, shown)):
        colour, line = COLOURS[style % len(COLOURS)], _LINES[style // len(COLOURS) % 3]
        axes.plot(np.arange(1, mixture.dim + 1), spectrum.numpy(), marker=".", color=colour, linestyle=line)
    axes.legend(axes.get_lines(), _names(names, shown), fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(_PlainNumbers())
    axes.yaxis.set_minor_formatter(_PlainNumbers(minor_thresholds=(1, 0.4)))
    axes.set(xlabel="principal axis", ylabel="standard deviation")
    axes.set_title(_title("Spectra of the class covariances", shown, mixture), fontsize="medium")
    axes.grid(alpha=0.3)
    return axes.figure.figure


def plot_radii_by_class(
    radius: Tensor,
    prediction: Tensor,
    target: Tensor,
    names: Sequence[str] | None = None,
    *,
    space: Space,
    soundness: Soundness,
    most_classes: int = MOST_CLASSES,
) -> Figure:
    """Draw how the radii of each class are distributed, those of right and of wrong predictions told apart.

    Args:
        radius: Shape ``(N,)``, certified ℓ2 radii, all of one series.
        prediction: Shape ``(N,)``, integer classes, −1 for an abstention.
        target: Shape ``(N,)``, integer classes.
        names: Of the classes; None: their numbers.
        space: Where the radii are measured.
        soundness: What they may claim.
        most_classes: Of more classes those with the smallest mean radius are shown, wrong predictions counting as 0.

    Raises:
        ValueError: If there are no radii, their shapes disagree, or `most_classes` is less than 1.
    """
    at_least(1, most_classes=most_classes)
    validate_certified(radius, prediction, target)
    if not len(radius):
        raise ValueError("Expected at least one radius but got none.")
    right = prediction == target
    rows: Rows = (radius.detach().double().cpu().numpy(), right.cpu().numpy(), target.cpu().numpy())
    classes, weakest = _weakest(rows, most_classes)
    reach = float(np.where(np.isfinite(rows[0]), rows[0], 0).max()) or 1.0
    edges = np.linspace(0, reach, 41)
    axes = new_axes(6.4, max(2.4, 0.42 * len(weakest) + 1.2))
    for place, k in enumerate(weakest):
        _draw_class(axes, rows, k, edges, len(weakest) - 1 - place)
    axes.set_yticks(range(len(weakest)), _names(names, torch.tensor(weakest))[::-1])
    axes.set(xlabel=AXES[space], ylabel="class", xlim=(0, reach), ylim=(-0.1, len(weakest)))
    handles = [Line2D([], [], color=colour, linewidth=6, label=label) for colour, label in _KINDS]
    axes.legend(handles=handles, fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    more = "" if len(weakest) == classes else f" ({len(weakest)} weakest of {classes})"
    axes.set_title(f"Radii by class{more}\n{soundness}: {CLAIMS[soundness]}", fontsize="medium")
    axes.grid(alpha=0.3, axis="x")
    return axes.figure.figure


_KINDS = ((COLOURS[0], "right"), (COLOURS[1], "wrong"))


def _draw_class(axes: Axes, rows: Rows, k: int, edges: NDArray[np.float64], level: int) -> None:
    """Draw one class's histogram above its level; the tallest bin is 0.85 high. Without limit is the last bin."""
    radius, right, target = rows
    chosen = np.minimum(radius, edges[-1]), target == k
    counts = [np.histogram(chosen[0][chosen[1] & part], edges)[0] for part in (right, ~right)]
    unit = 0.85 / max(1, (counts[0] + counts[1]).max())
    low = np.full(len(edges) - 1, float(level))
    for count, (colour, _) in zip(counts, _KINDS, strict=True):
        axes.stairs(low + unit * count, edges, baseline=low, fill=True, color=colour)
        low = low + unit * count


def _weakest(rows: Rows, most: int) -> tuple[int, list[int]]:
    """Return how many classes there are, and those to show, in order."""
    radius, right, target = rows
    present = np.unique(target)
    if len(present) <= most:
        return len(present), present.tolist()
    means = [np.where(right, radius, 0)[target == k].mean() for k in present]
    return len(present), sorted(present[np.argsort(means, kind="stable")[:most]].tolist())


def _shown(num_classes: int, most: int) -> Tensor:
    return torch.arange(min(num_classes, most))


def _title(text: str, shown: Tensor, mixture: Mixture) -> str:
    return text if len(shown) == mixture.num_classes else f"{text} ({len(shown)} of {mixture.num_classes} classes)"


def _names(names: Sequence[str] | None, shown: Tensor) -> list[str]:
    # matplotlib takes what stands between two dollar signs for a formula.
    return [str(k) if names is None else str(names[k]).replace("$", r"\$") for k in shown.tolist()]


def _handles(count: int) -> list[Line2D]:
    looks = [(COLOURS[i % len(COLOURS)], _MARKERS[i // len(COLOURS) % len(_MARKERS)]) for i in range(count)]
    return [Line2D([], [], color=colour, marker=marker, linestyle="none", markersize=5) for colour, marker in looks]


def _covariances(mixture: Mixture, shown: Tensor) -> Tensor:
    """Return Σ_k of the classes shown alone, shape ``(k, d, d)``: all of a thousand classes would fill the memory."""
    precisions = mixture.structure.detached().precisions(shown.to(mixture.means.device))
    return torch.cholesky_inverse(torch.linalg.cholesky(precisions)).cpu()


def _deviations(mixture: Mixture, shown: Tensor) -> Tensor:
    """Return the standard deviations along principal axes, largest first, shape ``(k, d)``."""
    factors = mixture.structure.detached().factor(shown.to(mixture.means.device))
    deviations: Tensor = torch.linalg.svdvals(factors).reciprocal().flip(1).cpu()
    return deviations


def _plane(means: Tensor, covariances: Tensor) -> Tensor:
    """Return the two leading linear discriminants, shape ``(d, 2)``."""
    root = torch.linalg.cholesky(covariances.mean(0))
    whitened = torch.linalg.solve_triangular(root, (means - means.mean(0)).mT, upper=False)
    directions, _, _ = torch.linalg.svd(whitened, full_matrices=True)
    plane: Tensor = torch.linalg.solve_triangular(root.mT, directions[:, :2], upper=True)
    return plane


def _ellipse(mean: Tensor, covariance: Tensor, mass: float) -> Ellipse:
    """Return the ellipse that holds a share of a two-dimensional Gaussian."""
    variances, axes = torch.linalg.eigh(covariance)
    reach = 2 * (variances * chi2.ppf(mass, 2)).sqrt()
    angle = torch.atan2(axes[1, 1], axes[0, 1]).rad2deg()
    return Ellipse((float(mean[0]), float(mean[1])), float(reach[1]), float(reach[0]), angle=float(angle))
