"""The change of the latent that a certificate's radius is about: the nearest point of the decision boundary."""

from __future__ import annotations

import torch
from torch import Tensor

from ellips.certificates.certificate import Certificate
from ellips.gaussians import Mixture

_BATCH_ELEMENTS = 2**22  # of the matrices factorised in one go: 32 MB in float64
_POLISH = 2  # Newton steps on the multiplier
_NEAR = 1e-3  # relative: a Newton step beyond it does not polish a solved multiplier but flees the hard case
_SHORT = 1e-7  # of R²: what δ may lack of the boundary by rounding; more is the hard case


def worst_case_perturbation(mixture: Mixture, z: Tensor, certificate: Certificate) -> Tensor:
    """Return δ with z + δ on the boundary to the named rival, for certificates by the exact method.

    With the optimal multiplier t it is the primal point −t (I + tW)⁻¹ b. In the hard case (b orthogonal to the lowest
    eigenspace of W, t at the end of its interval) that point falls short of the boundary, and the rest of the way goes
    along that eigenspace.

    Args:
        mixture: The fitted mixture.
        z: Latents, shape ``(N, d)``.
        certificate: Certificates of these latents, in latent space, method ``"exact"``.

    Returns:
        Shape ``(N, d)``; ‖δ‖ is the radius up to rounding. Zero where the radius is 0 or infinite.

    Raises:
        ValueError: If the certificate is of another method, space or length.
    """
    if certificate.method != "exact" or certificate.space != "latent":
        raise ValueError(
            "Expected certificates by method 'exact' in latent space but got method "
            f"{certificate.method!r} in {certificate.space} space."
        )
    z = mixture.validate(z).detach()
    if len(z) != len(certificate):
        raise ValueError(f"Expected {len(z)} certificates, one per latent, but got {len(certificate)}.")
    rows = max(1, _BATCH_ELEMENTS // mixture.dim**2)
    with torch.no_grad():
        index = torch.arange(len(z), device=z.device).split(rows)
        parts = [_nearest_point(mixture, z[part], certificate[part]) for part in index]
    return torch.cat(parts)


def _nearest_point(mixture: Mixture, z: Tensor, certificate: Certificate) -> Tensor:
    pair = certificate.prediction, certificate.rival
    curvature, half_gradient = mixture.curvature(*pair), mixture.half_gradient(z, *pair)
    finite = certificate.radius.isfinite() & (certificate.radius > 0)
    t = torch.where(finite, certificate.multiplier, 0.0)
    delta = _primal(curvature, half_gradient, t)[0]
    for _ in range(_POLISH):
        t, delta = _newton_step(curvature, half_gradient, certificate.margin, t, delta)
    gap = certificate.radius.square() - delta.square().sum(-1)
    short = (finite & (gap > _SHORT * certificate.radius.square())).nonzero().flatten()
    if len(short):
        delta[short] += _along_lowest(curvature[short], half_gradient[short], delta[short], gap[short].sqrt())
    return delta


def _primal(curvature: Tensor, half_gradient: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """−t (I + tW)⁻¹ b with the Cholesky factor, and whether there is one."""
    eye = torch.eye(curvature.shape[-1], dtype=curvature.dtype, device=curvature.device)
    lower, info = torch.linalg.cholesky_ex(eye + t.view(-1, 1, 1) * curvature)
    lower = torch.where((info == 0).view(-1, 1, 1), lower, eye)
    solved = torch.cholesky_solve(half_gradient.unsqueeze(-1), lower)
    return (-t.view(-1, 1, 1) * solved).squeeze(-1), lower, info == 0


def _newton_step(
    curvature: Tensor, half_gradient: Tensor, margin: Tensor, t: Tensor, delta: Tensor
) -> tuple[Tensor, Tensor]:
    """One step towards m(z+δ(t)) = 0, taken where it stays admissible (in the hard case it would not).

    A solver's t need only be good enough for the dual value, which is flat at its maximum; δ is not.
    """
    _, lower, definite = _primal(curvature, half_gradient, t)
    left = margin + (half_gradient * delta).sum(-1) - delta.square().sum(-1) / t
    half = torch.linalg.solve_triangular(lower, delta.unsqueeze(-1), upper=False).flatten(1).square().sum(1)
    new = t + left * t.square() / (2 * half)
    usable = definite & new.isfinite() & (new > 0)
    moved, _, admissible = _primal(curvature, half_gradient, torch.where(usable, new, 0.0))
    usable &= admissible & ((new - t).abs() < _NEAR * t)
    return torch.where(usable, new, t), torch.where(usable.unsqueeze(1), moved, delta)


def _along_lowest(curvature: Tensor, half_gradient: Tensor, delta: Tensor, length: Tensor) -> Tensor:
    vector: Tensor = torch.linalg.eigh(curvature)[1][..., 0]
    slope = ((half_gradient + (curvature @ delta.unsqueeze(-1)).squeeze(-1)) * vector).sum(-1)
    return vector * torch.where(slope > 0, -length, length).unsqueeze(-1)
