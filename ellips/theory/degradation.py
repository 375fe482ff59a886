"""What misfit costs: certified accuracy on the truth from that on the fitted mixture ([E26] Theorem 5.1, part 2).

With P the true distribution of latent and label and Q the fitted mixture, CertAcc(P) ≥ CertAcc(Q) − TV(P, Q), because
"right and certified at least that far" is an event. TV is bounded by KL(P‖Q): Pinsker's √(KL/2), which [E26] uses and
which says nothing from KL = 2 on, or √(1 − exp(−KL)) (Bretagnolle and Huber 1979), which always says something. The
smaller one is taken and named.

The bound is about the population. A certificate of a single image does not depend on P at all. And it is only as good
as the estimate of KL: see :mod:`ellips.theory.divergence` for what that is worth in high dimension.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ellips.certificates import Method
from ellips.classifier import Ellips
from ellips.metrics import CertifiedCurve, certified_accuracy_curve
from ellips.theory.divergence import KLEstimate, kl_knn, kl_likelihood
from ellips.validation import one_of

Estimator = Literal["knn", "likelihood"]


def pinsker(kl: float) -> float:
    """Return Pinsker's bound on the total variation distance, √(KL/2), at most 1."""
    return min(1.0, math.sqrt(_divergence(kl) / 2))


def bretagnolle_huber(kl: float) -> float:
    """Return the bound of Bretagnolle and Huber (1979) on the total variation distance, √(1 − exp(−KL))."""
    return math.sqrt(-math.expm1(-_divergence(kl)))


def total_variation_bound(kl: float) -> tuple[float, str]:
    """Return the smaller of both bounds on the total variation distance, and its name.

    Args:
        kl: KL(P‖Q) in nats; estimates below 0 count as 0.

    Returns:
        The bound, and ``"pinsker"`` or ``"bretagnolle_huber"``.

    Raises:
        ValueError: If ``kl`` is NaN.
    """
    bounds = {"pinsker": pinsker(kl), "bretagnolle_huber": bretagnolle_huber(kl)}
    name = min(bounds, key=lambda key: bounds[key])
    return bounds[name], name


def mixture_certified_accuracy(
    ellips: Ellips,
    radii: Sequence[float],
    *,
    method: Method = "exact",
    num_samples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> CertifiedCurve:
    """Estimate CertAcc(Q): the classifier's certified accuracy on draws from its own mixture, in latent space.

    Args:
        ellips: A fitted classifier.
        radii: Ascending latent radii.
        method: Kind of certificate.
        num_samples: Draws.
        confidence: Coverage of the Clopper–Pearson interval at each radius.
        seed: Seed of the draws.

    Returns:
        Accuracy and interval at each radius, on the CPU.

    Raises:
        NotFittedError: If there is no mixture.
        ValueError: If an option is out of range.
    """
    generator = torch.Generator(device=ellips.means.device).manual_seed(seed)
    z, labels = ellips.sample(num_samples, generator)
    return _curve(ellips, z, labels, radii, method, confidence)


@dataclass(frozen=True)
class Degradation:
    """The degradation bound, what it is made of, and what it is a bound for.

    Attributes:
        fitted: CertAcc(Q), sampled, with intervals.
        measured: CertAcc(P), measured on the held-out latents, with Clopper–Pearson intervals.
        kl: The estimate of KL(P‖Q).
        total_variation: Bound on TV(P, Q) at the estimate.
        total_variation_upper: The same at the upper end of the interval of KL.
        inequality: ``"pinsker"`` or ``"bretagnolle_huber"``: which one ``total_variation`` is.
        bound: Shape ``(R,)``, CertAcc(Q) − TV at the point estimates, at least 0.
        bound_lower: Shape ``(R,)``, the same with the lower end of CertAcc(Q) and the upper end of KL.
        method: Kind of certificate.
    """

    fitted: CertifiedCurve
    measured: CertifiedCurve
    kl: KLEstimate
    total_variation: float
    total_variation_upper: float
    inequality: str
    bound: Tensor
    bound_lower: Tensor
    method: str

    def to_dict(self) -> dict[str, Any]:
        """Return every number, ready for JSON."""
        plain = {k: v for k, v in vars(self).items() if isinstance(v, str | float)}
        curves = {k: {n: t.tolist() for n, t in getattr(self, k)._asdict().items()} for k in ("fitted", "measured")}
        bounds = {"bound": self.bound.tolist(), "bound_lower": self.bound_lower.tolist()}
        return {**plain, **curves, **bounds, "kl": self.kl.to_dict(), "space": "latent"}


def degradation(
    ellips: Ellips,
    z: Tensor,
    labels: Tensor,
    radii: Sequence[float],
    *,
    estimator: Estimator = "knn",
    method: Method = "exact",
    num_samples: int = 10_000,
    confidence: float = 0.95,
    max_per_class: int | None = None,
    seed: int = 0,
) -> Degradation:
    """Bound the certified accuracy on the truth and put the measured one beside it ([E26] Theorem 5.1, part 2).

    Args:
        ellips: The fitted classifier.
        z: Held-out latents, shape ``(N, d)``: not those it was fitted to.
        labels: Shape ``(N,)``.
        radii: Ascending latent radii.
        estimator: ``"knn"`` or ``"likelihood"``, see :mod:`ellips.theory.divergence`.
        method: Kind of certificate.
        num_samples: Draws from the mixture for CertAcc(Q).
        confidence: Coverage of all intervals.
        max_per_class: Use at most that many latents of each class for the KL estimate.
        seed: Seed.

    Raises:
        ValueError: If latents or labels are of the wrong kind, a class has too few latents, or an option is unknown.
        NotFittedError: If there is no mixture.
    """
    one_of(get_args(Estimator), estimator=estimator)
    estimate = kl_knn if estimator == "knn" else kl_likelihood
    kl = estimate(ellips, z, labels, confidence=confidence, max_per_class=max_per_class, seed=seed)
    fitted = mixture_certified_accuracy(
        ellips, radii, method=method, num_samples=num_samples, confidence=confidence, seed=seed
    )
    distance, name = total_variation_bound(kl.value)
    upper, _ = total_variation_bound(kl.upper)
    return Degradation(
        fitted=fitted,
        measured=_curve(ellips, z, labels, radii, method, confidence),
        kl=kl,
        total_variation=distance,
        total_variation_upper=upper,
        inequality=name,
        bound=(fitted.accuracy - distance).clamp(min=0),
        bound_lower=(fitted.lower - upper).clamp(min=0),
        method=method,
    )


def _curve(
    ellips: Ellips, z: Tensor, labels: Tensor, radii: Sequence[float], method: Method, confidence: float
) -> CertifiedCurve:
    with torch.no_grad():
        found = ellips.certify(z, method).cpu()
    return certified_accuracy_curve(found.radius, found.prediction, labels.cpu(), radii=radii, confidence=confidence)


def _divergence(kl: float) -> float:
    if math.isnan(kl):
        raise ValueError("Expected `kl` to be a number but got NaN.")
    return max(0.0, kl)
