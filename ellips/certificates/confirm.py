"""Certificates as they may be written down: every claim proven by the verified kernel, or lowered until it is."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ellips.certificates.certificate import Certificate, round_down
from ellips.certificates.check import Prover, claimed_radius, prover_of, require_method
from ellips.certificates.multipliers import find_multipliers
from ellips.gaussians import Mixture

# What is tried, in this order, where a radius is not proven as it is; then half of it, and so on, then 0.
_LOSSES = tuple(2.0**-k for k in (46, 43, 40, 37, 34, 31, 28, 24, 20, 16, 12, 8, 5, 3))
_HALVINGS = 6
_FAR = 2.0**20  # times the distance to the farthest mean: what is tried in the place of an infinite radius


def confirm(mixture: Mixture, z: Tensor, certificate: Certificate, prover: Prover | None = None) -> Certificate:
    """Return certificates whose radii the verified kernel has proven, lowered where it could not as they are.

    With a lowered radius comes the multiplier that proves it. Where nothing is left of a radius, two classes are level
    up to rounding, and the class that float64 found highest need not be the one that is. There the prediction becomes
    that of the stored numbers in exact arithmetic: the class of the highest score, and of exactly equal ones the lowest
    index, as :meth:`Mixture.predict` has it. Its rival is then the class that stood there before, its margin 0.

    Diagnostics are added: ``lowered``, by how much of itself the radius was lowered (0: not at all; 1: to nothing, or
    from infinity); ``corrected``, 1 where the prediction is another than before; ``confirmed``, 1 where
    :func:`ellips.certificates.check` proves what is left. That is 0 only where the winner cannot be decided, as where a
    number of the classifier is not finite. Such a certificate has radius 0 and claims nothing.

    In input space the latent radius is confirmed, and the radius lowered to what follows from it.

    Args:
        mixture: The fitted classifier.
        z: Latents the certificates are for, shape ``(N, d)``.
        certificate: What to confirm, of the same length.
        prover: Of this mixture as it is now, where many batches share one; None: made here.

    Raises:
        ValueError: As :func:`ellips.certificates.check`, or if a certificate in input space lacks its latent radius.
    """
    require_method(certificate)
    z = mixture.validate(z).detach()
    certificate, prover = certificate.detach(), prover_of(mixture, prover)
    if certificate.space == "latent":
        return _noted(prover, z, certificate, _confirmed(mixture, prover, z, certificate))
    latent, constant, ball = certificate.latent_radius, certificate.lipschitz, certificate.ball_radius
    if latent is None or constant is None or ball is None:
        raise ValueError("Expected a certificate in input space to have a latent radius, a constant and a ball.")
    whole = claimed_radius(certificate).nan_to_num(0.0, posinf=torch.inf)
    inner = _confirmed(mixture, prover, z, replace(certificate, radius=whole))
    error = torch.zeros_like(latent) if certificate.latent_error is None else certificate.latent_error
    left = torch.where(inner.radius < whole, inner.less(error.clamp_min(0).nan_to_num(0)).radius, latent)
    follows = torch.where(constant == 0, torch.inf, round_down(left / constant)).nan_to_num(0.0, posinf=torch.inf)
    follows = torch.where(left > 0, torch.minimum(follows, ball), 0.0)
    outer = torch.where(left < latent, torch.minimum(certificate.radius, follows), certificate.radius)
    follows = prover.check(z, replace(inner, radius=outer, latent_radius=left)).to(outer.device)
    outer = torch.where(follows, outer, 0.0)
    return _noted(prover, z, certificate, replace(inner, radius=outer, latent_radius=left))


def _noted(prover: Prover, z: Tensor, before: Certificate, after: Certificate) -> Certificate:
    lowered = torch.where(after.radius < before.radius, 1 - after.radius / before.radius, 0.0)
    corrected = (after.prediction != before.prediction).to(lowered)
    found = {"lowered": lowered, "corrected": corrected, "confirmed": prover.check(z, after).to(lowered)}
    return replace(after, diagnostics={**before.diagnostics, **found})


def _confirmed(mixture: Mixture, prover: Prover, z: Tensor, certificate: Certificate) -> Certificate:
    """Confirm radii as latent ones, and predictions where nothing is left of them."""
    lowered = _lowered(mixture, prover, z, certificate)
    known = (lowered.prediction >= 0) & (lowered.prediction < mixture.num_classes)
    rows = ((lowered.radius == 0) & known).nonzero().squeeze(1)
    found = prover.winners(z[rows.to(z.device)]).to(rows)
    other = (found >= 0) & (found != lowered.prediction[rows])
    rows, found = rows[other], found[other]
    return replace(
        lowered,
        prediction=lowered.prediction.index_copy(0, rows, found),
        rival=lowered.rival.index_copy(0, rows, lowered.prediction[rows]),
        margin=lowered.margin.index_fill(0, rows, 0.0),
    )


def _lowered(mixture: Mixture, prover: Prover, z: Tensor, certificate: Certificate) -> Certificate:
    """Lower radii until they are proven as latent ones."""
    held, z = certificate.cpu(), z.cpu()
    radius, multiplier = (x.to(torch.float64, copy=True) for x in (held.radius, held.multiplier))

    def prove(rows: Tensor, t: Tensor, r: Tensor) -> Tensor:
        """Take over what is proven, and return the rows that are left."""
        proven = prover.prove(z[rows], held.prediction[rows], held.rival[rows], t, r)
        radius[rows[proven]], multiplier[rows[proven]] = r[proven], t[proven]
        return rows[~proven]

    rows = prove(torch.arange(len(z)), multiplier, radius)
    if not len(rows):
        return certificate
    radius[rows] = 0.0  # unless more is proven
    means, norms = mixture.means.detach().cpu(), mixture.structure.factor_norms.detach().cpu()
    away = torch.cdist(z, means).amax(1) + norms.reciprocal().amax()
    start = torch.where(held.radius.isinf(), _FAR * away, held.radius)
    known = rows[(held.prediction[rows] >= 0) & (held.rival[rows] >= 0)]
    known = known[(held.prediction[known] < len(means)) & (held.rival[known] < len(means))]
    best = torch.full_like(multiplier, torch.nan)
    best[known] = find_multipliers(
        mixture, z[known], held.prediction[known], torch.arange(len(known)), held.rival[known], 0 * start[known]
    )
    rows = rows[start[rows] > 0]
    for factor in (1.0, *(1 - loss for loss in _LOSSES), *(0.5**k for k in range(1, _HALVINGS + 1))):
        loss = 1 - factor  # near its end D(t) is flat, or (the hard case) t ends where I + tW is singular
        for t in (held.multiplier, best, best * (1 - loss / 64), best * (1 - 0.5 * loss**0.5)):
            rows = prove(rows, t[rows], factor * start[rows])
    device = certificate.radius.device  # in float64: narrower types would round a proven radius to nearest
    return replace(certificate, radius=radius.to(device), multiplier=multiplier.to(device))
