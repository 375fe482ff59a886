"""How far a radius is off because the mixture is estimated: the rate, an experiment, and an interval per image.

[E26] (arXiv 2605.25352) Theorem 4.2 bounds |R̂ − R| by a constant times (d/n)^{1/4} with n samples per class. Solved for
n that is n = O(d/ε⁴), not the O(d^{1/4}/ε^{1/4}) that is printed. Away from the points where the radius has no
derivative the error is smaller, of order (d/n)^{1/2}, which :func:`radius_errors` measures and
:func:`radius_interval` turns into an interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from scipy.stats import norm
from torch import Tensor

from ellips.certificates import worst_case_perturbation
from ellips.classifier import Ellips
from ellips.gaussians import Mixture, Moments, Regularization
from ellips.validation import at_least, fraction, one_of, positive

IntervalMethod = Literal["delta", "bootstrap"]


def radius_error_rate(count: float, dim: int, constant: float = 1.0) -> float:
    """Return C·(d/n)^{1/4}, the rate of [E26] Theorem 4.2 for |R̂ − R|.

    Args:
        count: n, samples per class.
        dim: d.
        constant: C, which depends on the mixture and is not known.
    """
    return float(constant * (dim / count) ** 0.25)


def samples_needed(error: float, dim: int, constant: float = 1.0) -> float:
    """Return the n at which C·(d/n)^{1/4} is ``error``: C⁴·d/ε⁴ ([E26] Theorem 4.2, corrected).

    Args:
        error: ε, positive.
        dim: d.
        constant: C.

    Raises:
        ValueError: If the error is not positive.
    """
    positive(error=error, finite=False)
    return float(dim * (constant / error) ** 4)


# ------------------------------------------------------------------ one image's interval


@dataclass(frozen=True)
class RadiusInterval:
    """Exact latent radii with intervals for the estimation of the mixture.

    Attributes:
        radius: Shape ``(N,)``, the radius R̂ of the estimated mixture's classifier.
        lower: Shape ``(N,)``, lower end for the radius R of the true mixture's classifier and the same class; 0 where
            that classifier may predict another class.
        upper: Shape ``(N,)``.
        standard_error: Shape ``(N,)``.
        prediction: Shape ``(N,)``.
        method: ``"delta"`` or ``"bootstrap"``.
        confidence: Nominal coverage.
    """

    radius: Tensor
    lower: Tensor
    upper: Tensor
    standard_error: Tensor
    prediction: Tensor
    method: IntervalMethod
    confidence: float


def radius_interval(
    ellips: Ellips,
    z: Tensor,
    count: Tensor,
    *,
    method: IntervalMethod = "delta",
    confidence: float = 0.95,
    num_bootstrap: int = 200,
    seed: int = 0,
) -> RadiusInterval:
    """Return an interval for each exact radius that accounts for the mixture having been estimated.

    R̂ certifies the classifier at hand whatever the truth is; the interval says how much R̂ would change with another
    training set of the same size. Classes are taken for Gaussian.

    ``delta``: the boundary point z* moves by dR = dm(z*)/‖∇m(z*)‖ when the margin m changes, and for Gaussian classes
    the variance of a score at z* is known in closed form: with q = (z*−μ)ᵀP(z*−μ), 4q/n from the mean,
    2(q² − 2q + d)/(n − 1) from the covariance, and 4/n from the class share. First order only: it needs n ≫ d², below
    which the error is mostly bias. ``bootstrap``: training sets of the same size are drawn from the fitted mixture,
    refitted with the same regularisation and certified; the basic interval 2R̂ − R* corrects bias to first order.

    Args:
        ellips: The fitted classifier.
        z: Latents, shape ``(N, d)``.
        count: Training samples per class, shape ``(K,)``.
        method: ``"delta"`` (only without pooling and shrinkage, full covariances) or ``"bootstrap"``.
        confidence: Coverage.
        num_bootstrap: Refits of the bootstrap.
        seed: Its seed.

    Raises:
        ValueError: If an option is unknown or out of range, or ``delta`` is asked of a regularised classifier.
        NotFittedError: If there is no mixture.
    """
    one_of(get_args(IntervalMethod), method=method)
    fraction(confidence=confidence, ends=False)
    at_least(2, num_bootstrap=num_bootstrap)
    if count.shape != (ellips.num_classes,) or not bool((count >= 2).all()):
        raise ValueError(f"Expected `count` to be {ellips.num_classes} numbers of at least 2 but got {count.tolist()}.")
    if method == "delta":
        return _delta_interval(ellips, z, count.to(z.device).double(), confidence)
    return _bootstrap_interval(ellips, z, count.cpu(), confidence, num_bootstrap, seed)


def _delta_interval(ellips: Ellips, z: Tensor, count: Tensor, confidence: float) -> RadiusInterval:
    if ellips.regularization != Regularization() or ellips.covariance_type != "full":
        raise ValueError(
            "Expected a classifier with full covariances and neither pooling nor shrinkage for method='delta' but got "
            f"{ellips.extra_repr()}; use method='bootstrap'."
        )
    with torch.no_grad():
        found = ellips.certify(z, "exact")
        boundary = ellips.validate(z) + worst_case_perturbation(ellips, z, found)
        variance = torch.zeros_like(found.radius)
        for classes in (found.rival, found.prediction):
            n = count[classes]
            q = ((boundary - ellips.means[classes]) * ellips.pull(boundary, classes)).sum(1)
            variance += (4 * q + 4) / n + 2 * (q.square() - 2 * q + ellips.dim) / (n - 1)
        half_gradient_norm = ellips.half_gradient(boundary, found.prediction, found.rival).norm(dim=1)
        error = torch.where(found.radius.isfinite(), variance.sqrt() / (2 * half_gradient_norm), torch.inf)
        width = float(norm.ppf((1 + confidence) / 2)) * error
        lower = torch.where(found.radius.isfinite(), (found.radius - width).clamp(min=0), 0.0)
    return RadiusInterval(found.radius, lower, found.radius + width, error, found.prediction, "delta", confidence)


def _bootstrap_interval(
    ellips: Ellips, z: Tensor, count: Tensor, confidence: float, replicates: int, seed: int
) -> RadiusInterval:
    generator = torch.Generator().manual_seed(seed)
    own = ellips.certify(z, "exact").detach()
    truth = _Generating.of(ellips)
    draws = torch.stack(
        [signed_radius(_refit(ellips, truth.moments(count, generator)), z, own.prediction) for _ in range(replicates)]
    )
    tail = (1 - confidence) / 2
    low, high = (draws.quantile(level, dim=0) for level in (tail, 1 - tail))
    lower, upper = ((2 * own.radius - end).nan_to_num(nan=math.inf).clamp(min=0) for end in (high, low))
    lower = torch.where(own.radius.isfinite(), lower, 0.0)
    return RadiusInterval(own.radius, lower, upper, draws.std(0), own.prediction, "bootstrap", confidence)


def _refit(ellips: Ellips, moments: Moments) -> Ellips:
    fresh = Ellips(
        ellips.num_classes,
        ellips.dim,
        covariance_type=ellips.covariance_type,
        rank=ellips.rank,
        **asdict(ellips.regularization),
    )
    return fresh.fit_moments(*moments).to(ellips.means.device)


def signed_radius(ellips: Ellips, z: Tensor, prediction: Tensor) -> Tensor:
    """Return exact radii, negative where the classifier predicts another class than given, shape ``(N,)``."""
    with torch.no_grad():
        found = ellips.certify(z, "exact")
    return torch.where(found.prediction == prediction, found.radius, -found.radius)


@dataclass(frozen=True)
class _Generating:
    """A mixture from which moments of whole training sets are drawn, without drawing the samples."""

    means: Tensor
    roots: Tensor
    priors: Tensor

    @staticmethod
    def of(mixture: Mixture) -> _Generating:
        with torch.no_grad():
            roots = torch.linalg.cholesky(mixture.covariances.cpu())
            return _Generating(mixture.means.cpu(), roots, mixture.priors.cpu())

    def moments(self, count: Tensor, generator: torch.Generator, stratified: bool = False) -> Moments:
        """Draw count, mean and scatter of a training set with ``count.sum()`` samples."""
        classes, dim = self.means.shape
        if not stratified:
            drawn = torch.multinomial(self.priors, int(count.sum()), replacement=True, generator=generator)
            count = torch.bincount(drawn, minlength=classes)
        noise = torch.randn(classes, dim, 1, generator=generator, dtype=torch.float64)
        means = self.means + (self.roots @ noise).squeeze(-1) / count.double().sqrt().unsqueeze(-1)
        factors = torch.stack([_wishart_root(int(n) - 1, dim, generator) for n in count])
        half = self.roots @ factors
        return Moments(count, means, half @ half.mT)


def _wishart_root(degrees: int, dim: int, generator: torch.Generator) -> Tensor:
    """Return A of shape ``(d, d)`` with AAᵀ from the Wishart distribution of scale I (Bartlett 1933)."""
    if degrees < dim:
        x = torch.randn(dim, max(degrees, 0), generator=generator, dtype=torch.float64)
        return torch.cat([x, x.new_zeros(dim, dim - x.shape[1])], 1)
    normals = torch.randn(dim, dim, generator=generator, dtype=torch.float64).tril(-1)
    freedom = degrees - torch.arange(dim, dtype=torch.float64)
    # torch's own gamma draws cannot be seeded by a generator.
    seed = int(torch.randint(2**31, (1,), generator=generator))
    chi = np.sqrt(np.random.default_rng(seed).chisquare(freedom.numpy()))
    return normals + torch.diag(torch.from_numpy(chi))


# ------------------------------------------------------------------ the experiment


def radius_errors(
    dims: Sequence[int] = (2, 10, 100),
    sizes: Sequence[int] = (10, 100, 500, 1000),
    *,
    classes: int = 3,
    separation: float = 4.0,
    points: int = 200,
    repetitions: int = 10,
    shrinkage: float = 0.1,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Measure |R̂ − R| over dimensions and training set sizes (the experiment of [E26] Theorem 4.2).

    Mixtures: means ``separation`` apart from the origin in random directions, covariances with random axes and
    variances between 0.5 and 1.5. Where n < 2d covariances are singular or nearly so; there the fit is shrunk, as one
    has to, and the entry is marked as not fit for the regression.

    Args:
        dims: Dimensions d.
        sizes: Training samples per class n.
        classes: K.
        separation: Norm of the means.
        points: Test points per repetition.
        repetitions: Mixtures and training sets per entry.
        shrinkage: Where n < 2d.
        seed: Seed.

    Returns:
        Per d and n: ``dim``, ``n``, ``median_error``, ``median_relative_error``, ``in_regression``.
    """
    rows = []
    for dim in dims:
        generator = torch.Generator().manual_seed(seed + dim)
        errors: dict[int, list[Tensor]] = {n: [] for n in sizes}
        relative: dict[int, list[Tensor]] = {n: [] for n in sizes}
        for _ in range(repetitions):
            truth = _random_mixture(classes, dim, separation, generator)
            z, _ = truth.sample(points, generator)
            own = truth.certify(z, "exact").detach()
            for n in sizes:
                moments = _Generating.of(truth).moments(torch.full((classes,), n), generator, stratified=True)
                fitted = Ellips(classes, dim, shrinkage=shrinkage if n < 2 * dim else 0.0).fit_moments(*moments)
                error = (signed_radius(fitted, z, own.prediction) - own.radius).abs()
                errors[n].append(error)
                relative[n].append(error / own.radius)
        rows += [
            {
                "dim": dim,
                "n": n,
                "median_error": float(torch.cat(errors[n]).median()),
                "median_relative_error": float(torch.cat(relative[n]).median()),
                "in_regression": n >= 2 * dim,
            }
            for n in sizes
        ]
    return rows


def regress_errors(rows: Sequence[dict[str, Any]], quantity: str = "median_relative_error") -> dict[str, float]:
    """Fit log error = a + b log n + c log d by least squares over the entries marked for it.

    Args:
        rows: From :func:`radius_errors`.
        quantity: Which error.

    Returns:
        Slopes ``"n"`` and ``"d"``, ``"intercept"`` and ``"residual"`` (root mean square, in logarithms).

    Raises:
        ValueError: If fewer than four entries are fit for the regression.
    """
    used = [row for row in rows if row["in_regression"]]
    if len(used) < 4:
        raise ValueError(f"Expected at least four entries with n >= 2d but got {len(used)}.")
    design = np.array([[1.0, math.log(row["n"]), math.log(row["dim"])] for row in used])
    target = np.log([row[quantity] for row in used])
    solution = np.linalg.lstsq(design, target, rcond=None)[0]
    residual = float(np.sqrt(np.mean(np.square(target - design @ solution))))
    return {"n": float(solution[1]), "d": float(solution[2]), "intercept": float(solution[0]), "residual": residual}


def _random_mixture(classes: int, dim: int, separation: float, generator: torch.Generator) -> Ellips:
    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    means = separation * torch.nn.functional.normalize(normal(classes, dim), dim=1)
    axes = torch.linalg.qr(normal(classes, dim, dim)).Q
    variances = 0.5 + torch.rand(classes, 1, dim, generator=generator, dtype=torch.float64)
    covariances = (axes * variances) @ axes.mT
    return Ellips.from_parameters(means, (covariances + covariances.mT) / 2, torch.full((classes,), 1 / classes))
