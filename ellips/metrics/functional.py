"""Certified accuracy and the average certified radius as plain functions.

A point counts at radius r if its prediction is right and certified at least that far: ``correct and radius >= r``,
inclusive. Abstentions (prediction −1) and wrong predictions stay in the denominator. Radii are compared in float64,
whatever type they come in.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from scipy.stats import beta
from torch import Tensor

from ellips.validation import all_at_least, at_least, fraction, positive

ABSTAIN = -1
"""The prediction of a classifier that abstains."""


class CertifiedCurve(NamedTuple):
    """Certified accuracy as a function of the radius.

    Attributes:
        radii: Shape ``(R,)``, float64, ascending.
        accuracy: Shape ``(R,)``, float64: the share of points that are right and certified at least that far.
        lower: Shape ``(R,)``: lower ends of the Clopper–Pearson intervals, one per radius.
        upper: Shape ``(R,)``: upper ends.
    """

    radii: Tensor
    accuracy: Tensor
    lower: Tensor
    upper: Tensor


def certified_accuracy(radius: Tensor, prediction: Tensor, target: Tensor, radii: Sequence[float] | Tensor) -> Tensor:
    """Compute the certified accuracy at each of several radii.

    Args:
        radius: Shape ``(N,)``, certified ℓ2 radii, at least 0, ``inf`` allowed.
        prediction: Shape ``(N,)``, integer classes, −1 for an abstention.
        target: Shape ``(N,)``, integer classes.
        radii: Radii at which to evaluate, at least 0.

    Returns:
        Shape ``(R,)``, float64. NaN if there are no points.

    Raises:
        ValueError: If the shapes disagree, a radius is negative or NaN, or a target is negative.

    Example:
        >>> certified_accuracy(torch.tensor([0.5, 2.0]), torch.tensor([1, 0]), torch.tensor([1, 0]), [0.5, 1.0])
        tensor([1.0000, 0.5000], dtype=torch.float64)
    """
    counts = certified_counts(radius, prediction, target, check_radii(radii))
    return counts.double() / torch.tensor(len(radius), device=counts.device)


def certified_accuracy_curve(
    radius: Tensor,
    prediction: Tensor,
    target: Tensor,
    *,
    max_radius: float = 2.0,
    num_points: int = 101,
    radii: Sequence[float] | None = None,
    confidence: float = 0.95,
) -> CertifiedCurve:
    """Compute the curve of certified accuracy over the radius, with its Clopper–Pearson intervals.

    Args:
        radius: Shape ``(N,)``, certified ℓ2 radii.
        prediction: Shape ``(N,)``, integer classes, −1 for an abstention.
        target: Shape ``(N,)``, integer classes.
        max_radius: Where the evenly spaced grid ends; it starts at 0.
        num_points: Number of grid points.
        radii: A grid of your own in place of the even one.
        confidence: Coverage of the interval at each radius (pointwise, not of the whole curve).

    Raises:
        ValueError: If the shapes disagree, there are no points, or an argument is out of its range.
    """
    grid = check_radii(radii) if radii is not None else even_grid(max_radius, num_points)
    counts = certified_counts(radius, prediction, target, grid)
    return curve_from_counts(counts, len(radius), grid, confidence)


def average_certified_radius(radius: Tensor, prediction: Tensor, target: Tensor) -> Tensor:
    """Compute the mean radius over all points, those not rightly predicted counting as 0 (Zhai et al. 2020).

    A single easy point can dominate it: show the curve first, and this beside it.

    Args:
        radius: Shape ``(N,)``, certified ℓ2 radii.
        prediction: Shape ``(N,)``, integer classes, −1 for an abstention.
        target: Shape ``(N,)``, integer classes.

    Returns:
        A float64 scalar, ``inf`` if a right prediction has an infinite radius; NaN if there are no points.

    Raises:
        ValueError: If the shapes disagree, a radius is negative or NaN, or a target is negative.
    """
    validate_certified(radius, prediction, target)
    return certified_radius_sum(radius, prediction, target) / torch.tensor(len(radius), device=radius.device)


def clopper_pearson(successes: Tensor | int, total: Tensor | int, confidence: float = 0.95) -> tuple[Tensor, Tensor]:
    """Compute the exact two-sided binomial interval of Clopper and Pearson (1934).

    Args:
        successes: Counts of successes, any shape.
        total: Number of trials, broadcast against `successes`, at least 1.
        confidence: Coverage, in (0, 1).

    Returns:
        Lower and upper ends of the interval for the success probability, float64, of the shape of `successes`.

    Raises:
        ValueError: If counts are not in ``0 <= successes <= total`` with a total of at least 1, or `confidence` is
            not in (0, 1).
    """
    fraction(confidence=confidence, ends=False)
    k = torch.as_tensor(successes).detach().double().cpu()
    n = torch.as_tensor(total).detach().double().cpu().expand_as(k)
    if not bool(((k >= 0) & (k <= n) & (n >= 1)).all()):
        raise ValueError(f"Expected 0 <= `successes` <= `total` and `total` >= 1 but got {successes} out of {total}.")
    tail = (1 - confidence) / 2
    # The quantiles of Beta(0, .) and Beta(., 0) are NaN in SciPy; the interval is closed there by definition.
    lower = torch.as_tensor(beta.ppf(tail, k.numpy(), (n - k + 1).numpy()), dtype=torch.float64)
    upper = torch.as_tensor(beta.ppf(1 - tail, (k + 1).numpy(), (n - k).numpy()), dtype=torch.float64)
    return torch.where(k == 0, 0.0, lower), torch.where(k == n, 1.0, upper)


# ------------------------------------------------------------------ what functions and classes share


def check_radii(radii: Sequence[float] | Tensor) -> tuple[float, ...]:
    """Return a grid of radii as numbers.

    Raises:
        ValueError: If it is empty, not strictly ascending, or has a negative or NaN value.
    """
    grid = tuple(float(r) for r in radii)
    if not grid or not all(r >= 0 for r in grid) or any(a >= b for a, b in pairwise(grid)):
        raise ValueError(f"Expected `radii` to be strictly ascending numbers of at least 0 but got {list(grid)}.")
    return grid


def even_grid(max_radius: float, num_points: int) -> tuple[float, ...]:
    """Return `num_points` evenly spaced radii from 0 to `max_radius`.

    Raises:
        ValueError: If `max_radius` is not a positive number or `num_points` is less than 2.
    """
    positive(max_radius=max_radius)
    at_least(2, num_points=num_points)
    return tuple(max_radius * i / (num_points - 1) for i in range(num_points))


def validate_certified(radius: Tensor, prediction: Tensor, target: Tensor) -> None:
    """Refuse certificates that cannot be counted.

    Raises:
        ValueError: If the shapes are not one ``(N,)``, types are not float, integer, integer, a radius is negative or
            NaN, a prediction is less than −1 or a target is negative.
    """
    shapes = {"radius": radius.shape, "prediction": prediction.shape, "target": target.shape}
    if radius.ndim != 1 or len(set(shapes.values())) > 1:
        got = ", ".join(f"{name} {tuple(shape)}" for name, shape in shapes.items())
        raise ValueError(f"Expected `radius`, `prediction` and `target` to have one shape (N,) but got {got}.")
    if not radius.is_floating_point():
        raise ValueError(f"Expected `radius` to be floating point but got {radius.dtype}.")
    for name, value in (("prediction", prediction), ("target", target)):
        if value.is_floating_point() or value.dtype == torch.bool:
            raise ValueError(f"Expected `{name}` to be an integer tensor but got {value.dtype}.")
    all_at_least(ABSTAIN, prediction=prediction)
    all_at_least(0, target=target, radius=radius)


def certified_counts(radius: Tensor, prediction: Tensor, target: Tensor, grid: Sequence[float]) -> Tensor:
    """Count the points that are right and certified at least as far as each radius of the grid: int64, ``(R,)``."""
    validate_certified(radius, prediction, target)
    levels = torch.tensor(grid, dtype=torch.float64, device=radius.device)
    reached = radius.double()[:, None] >= levels
    return (reached & (prediction == target)[:, None]).sum(0)


def certified_radius_sum(radius: Tensor, prediction: Tensor, target: Tensor) -> Tensor:
    """Add up the radii of the points that are right: a float64 scalar."""
    return torch.where(prediction == target, radius.double(), 0.0).sum()


def curve_from_counts(counts: Tensor, total: Tensor | int, grid: Sequence[float], confidence: float) -> CertifiedCurve:
    """Turn counts out of a total into the curve and its intervals."""
    lower, upper = clopper_pearson(counts, total, confidence)
    radii = torch.tensor(grid, dtype=torch.float64, device=counts.device)
    return CertifiedCurve(radii, counts.double() / int(total), lower.to(counts.device), upper.to(counts.device))
