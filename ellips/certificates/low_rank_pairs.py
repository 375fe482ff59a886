"""Spectra of P_i − P_j of mixtures of low rank: at most 2r eigenvalues, and one (0) for everything else."""

from __future__ import annotations

import torch
from torch import Tensor

from ellips.certificates.pairs import PairSpectra, Spectra
from ellips.certificates.parts import Parts
from ellips.certificates.rounding import UNDERFLOW, gamma
from ellips.gaussians.low_rank import LowRank


class LowRankPairs(PairSpectra):
    """Pairs of precisions P_k = P − V_kᵀE_kV_k.

    W = P_high − P_low = USUᵀ with U = [V_lowᵀ, V_highᵀ] and S = diag(E_low, −E_high). Outside of the span of U, b does
    not depend on z, and all of it there is one term of the secular equation.

    Args:
        geometry: The mixture.
        structure: Its precisions.
        reach: What bounds the rounding of P_kν_k, shape ``(K,)``.
    """

    def __init__(self, geometry: Parts, structure: LowRank, reach: Tensor) -> None:
        self._structure, self._reach = structure, reach
        self._width = min(2 * structure.scales.shape[1], geometry.dim)
        super().__init__(geometry, geometry.dim * (self._width + 1))

    def _decompose(self, low: Tensor, high: Tensor) -> Spectra:
        """See :class:`PairSpectra`; errors are bounded from the residuals."""
        geometry, structure = self._geometry, self._structure
        u = torch.cat([structure.directions[low], structure.directions[high]], dim=1) @ structure.shared
        u, s = u.mT, torch.cat([structure.weights[low], -structure.weights[high]], dim=1)
        vectors, values = self._eigen(u, s)
        error, skew = _residual_error(u, s, vectors, values)
        power = geometry.energies[low] + geometry.energies[high]
        largest = values.abs().amax(-1) if self._width else torch.zeros_like(error)
        # Of V twice and of E once: see `energies`.
        error = error + gamma(3 * geometry.dim + 24) * power + gamma(4 * geometry.dim + 24) * self._width**0.5 * largest
        gain_error = error + (skew + gamma(geometry.dim + 4) * geometry.dim**0.5) * largest
        force = self._force(low, high)
        shift = (vectors.mT @ force.unsqueeze(-1)).squeeze(-1)
        reach = self._reach[low] + self._reach[high]
        size = (gamma(2 * geometry.dim + 8) * (self._width + 1) ** 0.5 + 2 * skew) * force.norm(dim=1)
        shift_error = gamma(6 * geometry.dim + 4 * self._width + 32) * reach + size * (1 + 1e-6)
        shift_error = shift_error + UNDERFLOW[torch.float64]
        # Classes of one shape have W = 0 exactly (the boundary is a hyperplane); of one place too, b = 0 exactly.
        same_shape = (structure.scales[low] == structure.scales[high]).all(1)
        same_shape &= (structure.directions[low] == structure.directions[high]).flatten(1).all(1)
        same_place = same_shape & (geometry.offsets_from_center[low] == geometry.offsets_from_center[high]).all(1)
        values = values.masked_fill(same_shape.unsqueeze(-1), 0.0)
        error, gain_error = (e.masked_fill(same_shape, 0.0) for e in (error, gain_error))
        rotation = vectors * values.unsqueeze(1)
        if self._width < geometry.dim:
            rest = (force - (vectors @ shift.unsqueeze(-1)).squeeze(-1)).norm(dim=1, keepdim=True)
            rotation, values, vectors, shift = _with_rest(rotation, values, vectors, shift, rest)
        ends = torch.stack([vectors[..., 0], vectors[..., -1]], dim=1)
        return Spectra(rotation, values, ends, shift, error, gain_error, shift_error.masked_fill(same_place, 0.0))

    def _eigen(self, u: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Return eigenvectors of USUᵀ within the span of U, shape ``(n, d, q)``, and eigenvalues, ascending."""
        if self._width == u.shape[1]:
            values, vectors = torch.linalg.eigh((u * s.unsqueeze(1)) @ u.mT)
            return vectors, values
        basis, triangle = torch.linalg.qr(u)
        values, vectors = torch.linalg.eigh((triangle * s.unsqueeze(1)) @ triangle.mT)
        return basis @ vectors, values

    def _force(self, low: Tensor, high: Tensor) -> Tensor:
        """P_high ν_high − P_low ν_low, the common part taken once, shape ``(n, d)``."""
        structure, means = self._structure, self._geometry.offsets_from_center
        total = (means[high] - means[low]) @ structure.shared.mT
        for k, sign in ((high, -1), (low, 1)):
            q, white = structure.directions[k], (means[k] @ structure.shared.mT).unsqueeze(-1)
            bend = structure.weights[k].unsqueeze(-1) * (q @ white)
            total = total + sign * (q.mT @ bend).squeeze(-1)
        return total @ structure.shared


def _residual_error(u: Tensor, s: Tensor, vectors: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Bound ‖USUᵀ − XΛXᵀ‖ with X the nearest orthonormal vectors, and what the computed ones lack in orthogonality.

    USUᵀ − QΛQᵀ = (U − QC)SUᵀ + Q(CSUᵀ − ΛQᵀ) for any C; QᵀU as computed is taken. Of products of matrices X and Y the
    rounding is at most γ ‖X‖_F‖Y‖_F, ‖Q‖_F = √width, ‖C‖_F = ‖U‖_F and ‖CS‖_F = ‖US‖_F but for the skew; twice that is.
    """
    (d, width), terms = vectors.shape[1:], u.shape[2]
    if not width:
        zero = u.new_zeros(len(u))
        return zero, zero
    within = vectors.mT @ u
    strength, size = (u * s.unsqueeze(1)).flatten(1).norm(dim=1), u.flatten(1).norm(dim=1)
    outside = (u - vectors @ within).flatten(1).norm(dim=1) + gamma(2 * width + 8) * width**0.5 * size
    inside = within * s.unsqueeze(1) @ u.mT - values.unsqueeze(-1) * vectors.mT
    largest = values.abs().amax(-1)
    inner = inside.flatten(1).norm(dim=1) + gamma(2 * terms + 16) * (strength * size + width**0.5 * largest)
    eye = torch.eye(width, dtype=u.dtype, device=u.device)
    skew = (vectors.mT @ vectors - eye).flatten(1).norm(dim=1) + gamma(d + 2) * width
    return outside * strength + (1 + skew) * inner + 3 * skew * largest, skew


def _with_rest(
    rotation: Tensor, values: Tensor, vectors: Tensor, shift: Tensor, rest: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Add the eigenvalue 0 with all of b that lies outside of the span, in ascending order.

    Its vector is never asked for: it is only the lowest where nothing is below 0.
    """
    zero = values.new_zeros(len(values), 1)
    values, order = torch.cat([values, zero], dim=1).sort(dim=1, stable=True)
    shift = torch.cat([shift, rest], dim=1).gather(1, order)
    empty = zero.unsqueeze(1).expand(-1, rotation.shape[1], 1)
    columns = order.unsqueeze(1).expand(-1, rotation.shape[1], -1)
    rotation, vectors = (torch.cat([x, empty], dim=2).gather(2, columns) for x in (rotation, vectors))
    return rotation, values, vectors, shift
