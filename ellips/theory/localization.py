"""When does a robust classifier exist? Localisation of Gaussian classes ([E26] Theorems 3.1 and 3.2).

[E26] is arXiv 2605.25352; the notions are those of Pal, Sulam and Vidal (2023, 2024). With the ellipsoid
S_k = {z : (z−μ_k)ᵀΣ_k⁻¹(z−μ_k) ≤ r_k²}, class k is (C, ε, δ)-localised if it puts mass at least 1 − δ on an S_k of
volume at most C·exp(−ε), and the mixture is (C, ε, δ, γ)-strongly localised if moreover every class i puts at most
mass γ on the other classes' ellipsoids grown by 2ε. Then there is a classifier whose accuracy under every ℓ2 change of
size up to ε is at least 1 − δ − γ: the baseline "Pal et al.".

Two things differ from the text. The printed condition δ ≤ 1 − F(r²) of both theorems has its sign reversed: S_k has
mass F(r²) ≥ 1 − δ, so δ ≥ 1 − F(r²). And the printed γ, a non-central χ² distribution function, is right only where all
classes share one covariance; else (z−μ_j)ᵀΣ_j⁻¹(z−μ_j) under class i is a weighted sum of such variables, whose
distribution is used here (:mod:`ellips.theory.quadratic_form`); where covariances agree, it is the non-central χ².

Volumes are kept as logarithms: at d = 128 they leave the range of floating point numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import gammaln
from scipy.stats import chi2

from ellips.errors import NotFittedError
from ellips.gaussians import Mixture
from ellips.theory.quadratic_form import quadratic_form_cdf
from ellips.validation import at_least, fraction, one_of

Array = NDArray[np.float64]
Criterion = Literal["uniform", "average"]


def log_volume(radii: Array, log_dets: Array, dim: int) -> Array:
    """Return the log-volume of {z : zᵀΣ⁻¹z ≤ r²} = π^{d/2} r^d √det Σ / Γ(d/2 + 1).

    Args:
        radii: Mahalanobis radii r, at least 0.
        log_dets: log det Σ, of a shape that broadcasts against the radii.
        dim: d.
    """
    with np.errstate(divide="ignore"):
        log_radii = np.log(np.asarray(radii, dtype=np.float64))
    return np.asarray(dim / 2 * math.log(math.pi) - gammaln(dim / 2 + 1) + dim * log_radii + log_dets / 2)


def delta_of_radius(radii: Array, dim: int) -> Array:
    """Return the smallest δ of [E26] Theorem 3.1, corrected: the mass 1 − F_{χ²_d}(r²) outside the ellipsoid."""
    return np.asarray(chi2.sf(np.square(radii), dim), dtype=np.float64)


def radius_of_delta(delta: Array | float, dim: int) -> Array:
    """Return the smallest radius whose ellipsoid has mass 1 − δ; the inverse of :func:`delta_of_radius`."""
    return np.sqrt(np.asarray(chi2.isf(delta, dim), dtype=np.float64))


@dataclass(frozen=True)
class Localization:
    """How well a mixture is localised at one ε, with the ellipsoids that show it.

    Attributes:
        epsilon: Size of the ℓ2 changes, in latent units.
        radii: Shape ``(K,)``, Mahalanobis radii r_k of the ellipsoids S_k.
        delta: Shape ``(K,)``, mass of each class outside its own ellipsoid.
        gamma: Shape ``(K,)``, mass of each class on the others' ellipsoids grown by 2ε (their sum).
        log_volumes: Shape ``(K,)``, log-volumes of the ellipsoids.
        priors: Shape ``(K,)``.
        criterion: What was minimised: ``"uniform"`` (max δ + max γ, as the theorem has it) or ``"average"``.
    """

    epsilon: float
    radii: Array
    delta: Array
    gamma: Array
    log_volumes: Array
    priors: Array
    criterion: Criterion

    @property
    def error(self) -> float:
        """δ + γ: a bound on the robust error of the classifier that the theorem builds."""
        if self.criterion == "uniform":
            return float(self.delta.max() + self.gamma.max())
        return float(self.priors @ (self.delta + self.gamma))

    @property
    def certified_accuracy(self) -> float:
        """The baseline "Pal et al.": 1 − δ − γ, at least 0."""
        return max(0.0, 1 - self.error)

    @property
    def log_c(self) -> float:
        """Logarithm of the smallest C for which every class is (C, ε, δ)-localised on these ellipsoids."""
        return float((self.epsilon + self.log_volumes).max())

    def to_dict(self) -> dict[str, Any]:
        """Return every number, ready for JSON."""
        numbers = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in vars(self).items()}
        return {**numbers, "error": self.error, "certified_accuracy": self.certified_accuracy, "log_c": self.log_c}


class Localizer:
    """Localisation of one mixture; what does not depend on ε and the radii is computed once.

    The overlap of two classes with different covariances takes one eigendecomposition, so K classes in d dimensions
    cost K² times d³: seconds for ten classes in 128 dimensions, minutes for a hundred in 512.

    Args:
        mixture: A fitted mixture.
        num_radii: How many radii a search tries. Every radius is sound; a finer search only finds better ones.

    Raises:
        NotFittedError: If the mixture was not fitted.
        ValueError: If ``num_radii`` is less than 2.
    """

    def __init__(self, mixture: Mixture, num_radii: int = 512) -> None:
        if not mixture.is_fitted:
            raise NotFittedError("Expected a fitted mixture but this one was not; fit it or load a checkpoint.")
        at_least(2, num_radii=num_radii)
        with torch.no_grad():
            self.means = mixture.means.cpu().numpy().copy()
            self.covariances = mixture.covariances.cpu().numpy()
            self.factors = torch.linalg.inv(torch.linalg.cholesky(mixture.covariances.cpu())).numpy()
            self.log_dets = mixture.log_dets.cpu().numpy()
            self.priors = mixture.priors.cpu().numpy()
        self.classes, self.dim = self.means.shape
        self.smallest_scale = np.sqrt(np.linalg.eigvalsh(self.covariances)[:, 0])
        self.num_radii = num_radii

    # ------------------------------------------------------------------ Theorem 3.1: one class

    def smallest_delta(self, epsilon: float, log_c: float) -> Array:
        """Return the smallest δ with which each class is (C, ε, δ)-localised ([E26] Theorem 3.1), shape ``(K,)``.

        Args:
            epsilon: ε.
            log_c: log C.
        """
        return delta_of_radius(self._largest_radii(epsilon, log_c), self.dim)

    def largest_class_epsilon(self, delta: float, log_c: float) -> Array:
        """Return the largest ε with which each class is (C, ε, δ)-localised ([E26] Theorem 3.1), shape ``(K,)``."""
        fraction(delta=delta, ends=False)
        radius = radius_of_delta(delta, self.dim)
        return np.asarray(log_c - log_volume(radius, self.log_dets, self.dim))

    def _largest_radii(self, epsilon: float, log_c: float) -> Array:
        """The radii whose ellipsoids have volume C·exp(−ε)."""
        unit = log_volume(np.ones(self.classes), self.log_dets, self.dim)
        with np.errstate(over="ignore"):
            return np.asarray(np.exp((log_c - epsilon - unit) / self.dim))

    # ------------------------------------------------------------------ Theorem 3.2: the mixture

    def gamma(self, radii: Array, epsilon: float) -> Array:
        """Return each class's mass on the other classes' ellipsoids grown by 2ε ([E26] Theorem 3.2), shape ``(K,)``.

        The grown set lies in the ellipsoid of radius R_j = r_j + 2ε/√λ_min(Σ_j), whose mass is what is summed.
        """
        grown = self._grown(np.asarray(radii, dtype=np.float64), epsilon)
        masses = [
            [self._mass(i, j, grown[j : j + 1])[0] if i != j else 0.0 for j in range(self.classes)]
            for i in range(self.classes)
        ]
        return np.asarray(np.sum(masses, axis=1), dtype=np.float64)

    def at(self, radii: Array, epsilon: float, criterion: Criterion = "average") -> Localization:
        """Return the localisation with ellipsoids of given radii, shape ``(K,)``."""
        radii = np.asarray(radii, dtype=np.float64)
        one_of(get_args(Criterion), criterion=criterion)
        if radii.shape != (self.classes,) or not np.all(radii >= 0):
            raise ValueError(f"Expected `radii` to be {self.classes} numbers of at least 0 but got {radii}.")
        delta = delta_of_radius(radii, self.dim)
        volumes = log_volume(radii, self.log_dets, self.dim)
        return Localization(epsilon, radii, delta, self.gamma(radii, epsilon), volumes, self.priors, criterion)

    def best(self, epsilon: float, log_c: float = math.inf, criterion: Criterion = "average") -> Localization:
        """Return the localisation with the smallest δ + γ at a given ε, over the radii.

        ``uniform`` minimises max_k δ_k + max_k γ_k, the theorem's δ + γ: with the largest δ given, smaller ellipsoids
        only lower γ, so all classes share one radius. ``average`` minimises Σ_k π_k (δ_k + γ_k), which bounds the
        robust error just as well and separates into one search per ellipsoid.

        Args:
            epsilon: ε, at least 0.
            log_c: log C; by default volumes are not limited, which is all the existence of a robust classifier needs.
            criterion: ``"uniform"`` or ``"average"``.

        Raises:
            ValueError: If ε is negative or the criterion unknown.
        """
        at_least(0, epsilon=epsilon)
        one_of(get_args(Criterion), criterion=criterion)
        grid = self._grid
        limit = self._largest_radii(epsilon, log_c)
        masses = np.stack([self._table_mass(j, grid + 2 * epsilon / self.smallest_scale[j]) for j in self._all])
        outside = delta_of_radius(grid, self.dim)
        if criterion == "average":
            cost = self.priors[:, None] * outside + np.einsum("i,jir->jr", self.priors, masses)
        else:
            cost = np.broadcast_to(outside + masses.sum(0).max(0), (self.classes, len(grid)))
            limit = np.full(self.classes, limit.min())
        chosen = np.where(grid <= limit[:, None], cost, np.inf).argmin(1)
        # An ellipsoid smaller than the first step of the grid is its own best radius.
        return self.at(np.minimum(grid[chosen], limit), epsilon, criterion)

    def largest_epsilon(self, delta: float, gamma: float, log_c: float = math.inf) -> tuple[float, Array]:
        """Return the largest ε with which the mixture is (C, ε, δ, γ)-strongly localised, and per class.

        A class's own ε is the largest at which its mass on the others' grown ellipsoids stays within γ and its own
        ellipsoid within the volume C·exp(−ε); the mixture's is the smallest of them. −inf: at no ε ≥ 0.

        Args:
            delta: δ, in (0, 1).
            gamma: γ, in (0, 1).
            log_c: log C; by default volumes are not limited.
        """
        fraction(delta=delta, gamma=gamma, ends=False)
        radii = np.full(self.classes, radius_of_delta(delta, self.dim))
        limit = log_c - log_volume(radii, self.log_dets, self.dim)
        per_class = np.array([self._largest_class_epsilon(i, radii, gamma) for i in self._all])
        per_class = np.minimum(per_class, limit)
        per_class[per_class < 0] = -np.inf
        return float(per_class.min()), per_class

    def _largest_class_epsilon(self, i: int, radii: Array, gamma: float) -> float:
        def excess(epsilon: float) -> float:
            grown = self._grown(radii, epsilon)
            return float(sum(self._mass(i, j, grown[j : j + 1])[0] for j in self._all if j != i)) - gamma

        if excess(0.0) > 0:
            return -math.inf
        high = float(self.smallest_scale.max())
        while excess(high) <= 0:
            high *= 2
        return float(brentq(excess, 0.0, high, xtol=1e-10 * high))

    # ------------------------------------------------------------------ masses

    @property
    def _all(self) -> range:
        return range(self.classes)

    @cached_property
    def _grid(self) -> Array:
        """Radii to search: every δ from 1 to 1e-12, evenly in the radius, and none (an empty ellipsoid)."""
        low, high = radius_of_delta(1 - 1e-6, self.dim), radius_of_delta(1e-12, self.dim)
        return np.concatenate([[0.0], np.linspace(low, high, self.num_radii - 1)])

    def _grown(self, radii: Array, epsilon: float) -> Array:
        return np.asarray(radii + 2 * epsilon / self.smallest_scale)

    @cached_property
    def _forms(self) -> dict[tuple[int, int], tuple[Array, Array]]:
        return {}

    def _form(self, i: int, j: int) -> tuple[Array, Array]:
        """Weights and shifts of (z−μ_j)ᵀΣ_j⁻¹(z−μ_j) for z from class i."""
        if (i, j) not in self._forms:
            factor = self.factors[j]
            shift = factor @ (self.means[i] - self.means[j])
            if np.allclose(self.covariances[i], self.covariances[j], rtol=1e-12, atol=0):
                self._forms[i, j] = np.ones(self.dim), shift
            else:
                weights, vectors = np.linalg.eigh(factor @ self.covariances[i] @ factor.T)
                self._forms[i, j] = weights, vectors.T @ shift / np.sqrt(weights)
        return self._forms[i, j]

    def _mass(self, i: int, j: int, radii: Array, tolerance: float = 1e-8) -> Array:
        """Mass that class i puts on class j's ellipsoids of given radii, already grown."""
        return quadratic_form_cdf(np.square(radii), *self._form(i, j), tolerance)

    @cached_property
    def _tables(self) -> dict[int, tuple[Array, Array]]:
        return {}

    def _table_mass(self, j: int, radii: Array) -> Array:
        """Masses of all classes on class j's ellipsoids, shape ``(K, R)``, read from a table: for searching only."""
        top = float(radii[-1])
        if j not in self._tables or self._tables[j][0][-1] < top:
            steps = np.linspace(0, 1.5 * top, 2 * self.num_radii)
            masses = [self._mass(i, j, steps, 1e-4) if i != j else np.zeros_like(steps) for i in self._all]
            self._tables[j] = steps, np.stack(masses)
        steps, masses_at = self._tables[j]
        return np.stack([np.interp(radii, steps, row) for row in masses_at])


@dataclass(frozen=True)
class Existence:
    """Answer to "does a robust classifier exist here?".

    Attributes:
        exists: Whether Theorem 3.2 shows that one exists. False means that it does not show it, not that none does.
        accuracy: The certified accuracy that was asked for.
        localization: The numbers behind it.
    """

    exists: bool
    accuracy: float
    localization: Localization

    def __str__(self) -> str:
        found = self.localization
        claim = "exists" if self.exists else "is not shown to exist"
        return (
            f"A classifier with certified accuracy {self.accuracy:.1%} at latent ε = {found.epsilon:g} {claim}: "
            f"1 − δ − γ = {found.certified_accuracy:.1%} "
            f"(δ ≤ {found.delta.max():.3g}, γ ≤ {found.gamma.max():.3g}, log C ≥ {found.log_c:.4g})."
        )


def robust_classifier_exists(
    mixture: Mixture, epsilon: float, accuracy: float, *, log_c: float = math.inf, criterion: Criterion = "average"
) -> Existence:
    """Answer whether the mixture admits a classifier of a given certified accuracy ([E26] Theorem 3.2).

    The condition is sufficient only: the mixture is taken for the truth, and a "no" proves nothing.

    Args:
        mixture: A fitted mixture.
        epsilon: Size of the ℓ2 changes, in latent units.
        accuracy: Certified accuracy asked for, in (0, 1).
        log_c: log C; by default volumes are not limited.
        criterion: See :meth:`Localizer.best`.

    Raises:
        ValueError: If an argument is out of its range.
        NotFittedError: If the mixture was not fitted.
    """
    fraction(accuracy=accuracy, ends=False)
    found = Localizer(mixture).best(epsilon, log_c, criterion)
    return Existence(1 - found.error >= accuracy, accuracy, found)
