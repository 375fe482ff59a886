"""Multipliers that may prove a radius, by the solvers: nothing here has to be trusted."""

from __future__ import annotations

import torch
from torch import Tensor

from ellips.certificates.geometries import geometry_of
from ellips.certificates.screen import screen
from ellips.certificates.solve import DecomposedSolver, IterativeSolver, screening_dtype
from ellips.gaussians import Mixture

_ENOUGH = 1.001  # times the radius asked for: what lies beyond is not worth the search


def find_multipliers(
    mixture: Mixture, z: Tensor, prediction: Tensor, points: Tensor, rivals: Tensor, radius: Tensor
) -> Tensor:
    """Return multipliers t at which problems may be proven up to their radii.

    Args:
        mixture: The fitted classifier.
        z: Shape ``(N, d)``.
        prediction: Shape ``(N,)``.
        points: Shape ``(M,)``: the row of each problem.
        rivals: Shape ``(M,)``.
        radius: Shape ``(M,)``; 0: as far as it goes.

    Returns:
        Shape ``(M,)``; NaN where the solvers predict another class.
    """
    device = mixture.means.device
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
        multiplier = torch.full_like(radius, torch.nan)  # here: of inference mode it could not be written to
        geometry = geometry_of(mixture)
        if not all(bool(t.isfinite().all()) for t in (geometry.factor_norms, geometry.offsets_from_center)):
            return multiplier
        x, p = z.to(device), points.to(device)
        seen = screen(geometry, x, screening_dtype(geometry, x))
        usual = ((seen.prediction[p] == prediction.to(device)[p]) & (rivals.to(device) != seen.prediction[p])).cpu()
        solver = (DecomposedSolver if geometry.affordable else IterativeSolver)(geometry, x, seen)
        threshold = torch.where(radius > 0, (_ENOUGH * radius).square(), torch.inf)
        for part in usual.nonzero().squeeze(1).split(solver.batch) if bool(usual.any()) else ():
            found = solver.solve(p[part.to(device)], rivals[part].to(device), threshold[part].to(device))[0]
            multiplier[part] = found.to(multiplier)
    return multiplier
