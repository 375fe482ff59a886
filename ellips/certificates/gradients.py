"""Gradients of radii, by differentiating the condition that defines them instead of the search that found them."""

from __future__ import annotations

import torch
from torch import Tensor

from ellips.certificates.certificate import Certificate
from ellips.certificates.direction import worst_case_perturbation
from ellips.certificates.geometry import Geometry
from ellips.gaussians import Mixture


def differentiable_radius(mixture: Mixture, geometry: Geometry, z: Tensor, certificate: Certificate) -> Tensor:
    """Return the radii of a certificate with gradients to the latents and to a trainable mixture.

    Exact: R² is the optimum of min ‖δ‖² s.t. m(z+δ) ≤ 0, so by the envelope theorem dR² = t dm(z+δ), with δ and the
    multiplier t held fixed; for R → 0, where t/2R → 1/(2‖b‖), this is the gradient of m/(2‖b‖).
    Pairwise: R solves ℓR² + 2cR = m, so 2(c + ℓR) dR = dm − 2R dc − R² dℓ.

    Radii that are infinite have gradient 0.

    Args:
        mixture: The fitted mixture, possibly trainable.
        geometry: Its geometry.
        z: Latents, shape ``(N, d)``, float64.
        certificate: Their certificates, by method ``"exact"`` or ``"pairwise"``.

    Returns:
        Shape ``(N,)``, equal to ``certificate.radius``.
    """
    radius = certificate.radius.clone()
    rows = radius.isfinite().nonzero().squeeze(1)
    moving = certificate[rows]
    change = _exact_change if certificate.method == "exact" else _pairwise_change
    change_ = change(mixture, geometry, z[rows], moving)
    # Its value is 0 up to rounding; only its gradient is wanted.
    return radius.index_put((rows,), radius[rows] + (change_ - change_.detach()))


def _margin(mixture: Mixture, z: Tensor, certificate: Certificate) -> Tensor:
    scores: Tensor = mixture(z)
    own, other = (scores.gather(1, k.unsqueeze(1)).squeeze(1) for k in (certificate.prediction, certificate.rival))
    return own - other


def _exact_change(mixture: Mixture, geometry: Geometry, z: Tensor, certificate: Certificate) -> Tensor:
    with torch.no_grad():
        delta = worst_case_perturbation(mixture, z, certificate)
        half_gradient_norm = mixture.half_gradient(z, certificate.prediction, certificate.rival).norm(dim=1)
        radius = certificate.radius
        weight = torch.where(radius > 0, certificate.multiplier / (2 * radius), 1 / (2 * half_gradient_norm))
        weight = torch.where(weight.isfinite(), weight, 0.0)
    return weight * _margin(mixture, z + delta, certificate)


def _pairwise_change(mixture: Mixture, geometry: Geometry, z: Tensor, certificate: Certificate) -> Tensor:
    radius = certificate.radius
    half_gradient_norm = mixture.half_gradient(z, certificate.prediction, certificate.rival).norm(dim=1)
    concavity = _concavity(mixture, geometry, certificate)
    with torch.no_grad():
        weight = 1 / (2 * (half_gradient_norm + concavity * radius))
        weight = torch.where(weight.isfinite(), weight, 0.0)
    needed = 2 * radius * half_gradient_norm + radius.square() * concavity
    change: Tensor = weight * (_margin(mixture, z, certificate) - needed)
    return change


def _concavity(mixture: Mixture, geometry: Geometry, certificate: Certificate) -> Tensor:
    """(−λ_min(W))₊, or Weyl's bound on it, as quadratic forms of the factors in fixed eigenvectors."""
    prediction, rival = certificate.prediction, certificate.rival
    with torch.no_grad():
        active = geometry.concavity[prediction, rival] > 0
        vector = geometry.pairs.lowest_vector(prediction, rival) if geometry.affordable else None
    if vector is None:
        energy = geometry.bound_energy(mixture.structure, prediction, rival)
    else:
        energy = mixture.structure.energy(vector, prediction) - mixture.structure.energy(vector, rival)
    concavity: Tensor = torch.where(active, energy, 0.0)
    return concavity
