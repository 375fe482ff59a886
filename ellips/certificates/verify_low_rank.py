"""The trusted kernel for covariances of low rank: the same proofs, of P_k = Aᵀ(I − Q_kᵀE_kQ_k)A as it is stored.

Rows of Q_k are the stored directions, E_k = 1 − s_k², and score_k(z) = −‖y‖² + Σ_j E_kj (q_kj·y)² + 2 Σ_j log|s_kj|
+ 2 log π_k + what all share, y = A(z−μ_k). Directions need not be orthonormal for a proof: it is one of these formulas.

Rounding, in the notation of :mod:`ellips.certificates.verify`, n_j = ‖A e_j‖, h = nᵀ|v| ≥ ‖A v‖; lengths ‖q_j‖ are from
1/2 to 2 and scales not above 2¹⁰⁰, or nothing is proven. With a_j = |Ê_j| + 2(1 + s_j²)/d, |E_j| ≤ a_j, and
|Ê_j − E_j| ≤ γ_d a_j. With κ = Σ_j a_j ‖q_j‖², and κ' = κ or ρ √(Σ_j a_j²‖q_j‖²), ρ ≥ ‖Q‖, whichever is less (‖Q‖²
is at most the largest sum of a row of |QQᵀ|; κ ≤ √r κ', so that γ_d² κ is nothing beside one operation on κ'):

1. V = QA: |V̂_ji − V_ji| ≤ γ_d ‖q_j‖ n_i, and √(Σ_j V_ji²) ≤ ρ n_i, so Σ_j a_j ‖q_j‖ n_i |V_jl| ≤ κ' n_i n_l (Cauchy and
   Schwarz; κ for |V_jl| ≤ ‖q_j‖ n_l). P_k − P = −VᵀEV, and what classes share, P = AᵀA, drops out of W exactly: one
   sum of 2r terms, off by γ_{3d+2r+2} (κ'_r + κ'_p) n nᵀ.
2. ŷ is off by γ_{d+1} h, c_j = q_j·y by γ_{2d+1} ‖q_j‖ h, Ê_jĉ_j by γ_{3d+2} a_j ‖q_j‖ h, y − Σ q_j E_j c_j, which
   is at most (1 + κ') h for ‖c‖ ≤ ρh, by γ_{3d+r+3} (1 + κ') h, and Aᵀ of it, P_k v, by γ_{4d+r+4} (1 + κ') n h in each
   component.

So with √(1 + κ') n in the place of n both are errors of the form that the kernel takes, with more operations. Scores:

3. ĉ_j is off by ‖q_j‖ε, ε = γ_{d+1} h + γ_d ‖ŷ‖, and by Cauchy and Schwarz Σ_j E_j c_j² is off by
   2ε √(κ Σ a_j ĉ_j²) + κε² + γ_{d+r+3} Σ a_j ĉ_j².
"""

from __future__ import annotations

import torch
from torch import Tensor

from ellips.certificates.bounds import FarRivals
from ellips.certificates.verify import KEPT, Kernel, _arrow, positive_definite, rounding
from ellips.gaussians import Mixture

_TINY = 2.0**-480
_CLASSES = 32  # looked at together


class LowRankKernel(Kernel):
    """The stored mixture of low rank, and what can be proven of it; ``factors`` holds the common A alone.

    Numbers that are not usable make ``factors`` NaN, and nothing is proven.
    """

    def __init__(self, mixture: Mixture) -> None:
        factor, directions, scales = (
            x.detach().to("cpu", torch.float64, copy=True)
            for x in (mixture.precision_factors, mixture.directions, mixture.scales)
        )
        (classes, self.rank), dim = scales.shape, mixture.dim
        # Logarithms of scales and priors, which the offsets are made of, are those of a mixture with these numbers.
        logs = Mixture(classes, max(1, self.rank), covariance_type="diagonal")
        logs.precision_factors = scales if self.rank else torch.ones(classes, 1, dtype=torch.float64)
        logs.log_priors = mixture.log_priors.detach()
        super().__init__(logs)
        self.means, self.directions, self.scales = mixture.means.detach().to("cpu", torch.float64), directions, scales
        self.dim, self.diagonal, self.factors = dim, False, factor.tril_().unsqueeze(0)
        self.entries, self.ops = 3 * dim + 2 * self.rank + 8, 4 * dim + self.rank + 8
        lengths = directions.norm(dim=2)
        if not bool(((lengths >= 0.5) & (lengths <= 2.0)).all() & (scales.abs() <= 2.0**100).all()):  # NaN fails, too
            self.factors = torch.full_like(self.factors, torch.nan)
        self.weights = 1 - scales.square()  # E
        self.strengths = 1.01 * (self.weights.abs() + 2 * (1 + scales.square()) / dim)  # a
        self.kappas = 1.01 * (self.strengths * lengths.square()).sum(1)
        self.plain = factor.square().sum(0).sqrt() + _TINY  # n
        self.columns = (1.01 * (1 + self._pull_kappas(lengths))).sqrt().unsqueeze(1) * self.plain
        for k in range(classes):  # found by their scales
            if not torch.equal(directions[k], directions[int(self.shapes[k])]):
                self.shapes[k] = k

    def _pull_kappas(self, lengths: Tensor) -> Tensor:
        """κ', shape ``(K,)``."""
        rows = torch.ones_like(self.kappas)
        for k, q in enumerate(self.directions if self.rank else ()):
            rows[k] = (q @ q.mT).abs().sum(1).amax() + 4 * self.rank * rounding(self.dim + 4)
        return torch.minimum(self.kappas, 1.01 * rows.sqrt() * (self.strengths * lengths).norm(dim=1))

    def whiten(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See :class:`Kernel`; y = A(z−μ) here, for all classes with the same A."""
        v, d = z - self.means.unsqueeze(1), self.dim
        y = v @ self.factors[0].mT
        slip = rounding(d + 2) * (v.abs() @ self.plain + _TINY)
        square = y.square().sum(-1)
        size = square.sqrt() + _TINY
        error = rounding(d + 8) * square + 2.02 * size * slip + 1.02 * slip.square()
        square_along = (y @ self.directions.mT).square_()
        bend, power = ((square_along @ w.unsqueeze(-1)).squeeze(-1) for w in (self.weights, self.strengths))
        slip, kappa = 1.02 * (slip + rounding(d + 2) * size), self.kappas.unsqueeze(1)
        error += 2.04 * slip * ((kappa * power).sqrt() + kappa * slip) + rounding(d + self.rank + 12) * power
        error += rounding(8) * self.sizes.unsqueeze(1) + _TINY**2
        return y, (self.offsets.unsqueeze(1) - (square - bend)).mT, error.mT

    def _pull(self, k: Tensor, v: Tensor) -> Tensor:
        y, q = v @ self.factors[0].mT, self.directions[k]
        bends = (q @ y.unsqueeze(-1)).squeeze(-1) * self.weights[k]
        pull: Tensor = (y - (bends.unsqueeze(1) @ q).squeeze(1)) @ self.factors[0]
        return pull

    def _written(self, pair: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        (r, p), d = pair, self.dim
        u = torch.cat([self.directions[r], self.directions[p]], dim=1) @ self.factors[0]
        bent = u * torch.cat([-self.weights[r], self.weights[p]], dim=1).unsqueeze(-1)
        matrix = u.new_zeros(len(u), d + 1, d + 1)
        matrix[:, :d, :d] = bent.mT @ u
        return matrix, torch.stack([self._pull(k, away) for k, away in zip(pair, v, strict=True)])

    def _flat(self, z: Tensor, p: Tensor, r: Tensor, g: Tensor, corner: Tensor) -> Tensor:
        n, w = self.columns[r], self.means[p] - self.means[r]  # W = 0, b = P w exactly
        b = self._pull(r, w).abs() + rounding(self.ops) * n * ((n * w.abs()).sum(1, True) + _TINY)
        return ((w == 0).all(1) & (self.log_priors[p] > self.log_priors[r])) | _arrow(g.expand_as(b), b, corner)


class WideKernel(Kernel):
    """The kernel of so many and wide full covariances that their precisions are made when they are needed."""

    def _written(self, pair: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        found, where = pair.unique(return_inverse=True)
        power = self.factors.new_empty(len(found), self.dim, self.dim)
        for matrix, k in zip(power, found.tolist(), strict=True):  # with the errors that the kernel knows of P
            torch.mm(self.factors[k].mT, self.factors[k], out=matrix)
        pull = torch.stack([(away.unsqueeze(1) @ power[k]).squeeze(1) for k, away in zip(where, v, strict=True)])
        return torch.nn.functional.pad(power[where[0]] - power[where[1]], (0, 1, 0, 1)), pull


def kernel_of(mixture: Mixture) -> Kernel:
    """Return the kernel that goes with a mixture's covariances."""
    if mixture.covariance_type == "low_rank":
        return LowRankKernel(mixture)
    wide = mixture.covariance_type == "full" and mixture.precision_factors.numel() > KEPT
    return WideKernel(mixture) if wide else Kernel(mixture)


class LowRankFarRivals(FarRivals):
    """Proves rivals far by −λ_min(W) ≤ λ_max(V_pᵀE_p⁻V_p) + λ_max(V_rᵀE_r⁺V_r), E⁻ and E⁺ the parts of either sign.

    λ_max of VᵀEV is that of √E V Vᵀ √E, of order r, whose entries are off by γ_{3d+6} ρρᵀ, ρ_j = √E_j ‖q_j‖ ‖n‖.

    Args:
        kernel: The stored mixture.
        guess: What is taken for both, shape ``(2, K)``, from anywhere.
    """

    def __init__(self, kernel: LowRankKernel, guess: Tensor) -> None:
        super().__init__(kernel, guess)
        self._stored = kernel
        parts = [self._prove_bends(k) for k in torch.arange(kernel.classes).split(_CLASSES)]
        self._rises, self._falls = (1.01 * torch.cat(bounds) for bounds in zip(*parts, strict=True))

    def unwhiten(self, y: Tensor) -> tuple[Tensor, int]:
        """See :class:`FarRivals`."""
        kernel = self._stored
        along = y @ kernel.directions.mT * kernel.weights.unsqueeze(1)
        u: Tensor = (y - along @ kernel.directions) @ kernel.factors[0]
        return u.transpose(0, 1), kernel.ops

    def bend(self, prediction: Tensor) -> Tensor:
        """See :class:`FarRivals`, ``(N, K)``."""
        return self._rises[prediction].unsqueeze(1) + self._falls

    def _prove_bends(self, k: Tensor) -> tuple[Tensor, Tensor]:
        """Bound λ_max of VᵀE⁻V and of VᵀE⁺V for some classes."""
        kernel = self._stored
        v, slip = kernel.directions[k] @ kernel.factors[0], rounding(4) * (1 + kernel.scales[k].square())
        lengths = kernel.directions[k].norm(dim=2) * kernel.plain.norm()
        roots = ((sign * kernel.weights[k] + slip).clamp(min=0).sqrt() * (1 + rounding(8)) for sign in (-1, 1))
        rises, falls = (
            self._prove_one(root, v, 1.01 * root * lengths, g[k]) for root, g in zip(roots, self._guess, strict=True)
        )
        return rises, falls

    def _prove_one(self, root: Tensor, v: Tensor, rho: Tensor, guess: Tensor) -> Tensor:
        whole = 1.01 * rho.square().sum(1)
        if not rho.shape[1]:
            return whole
        v = v * root.unsqueeze(-1)
        top = guess * (1 + 1e-6) + 1e-12 * whole
        matrix = -(v @ v.mT)
        diagonal = matrix.diagonal(dim1=1, dim2=2)
        diagonal += top.unsqueeze(1)
        size = rho / diagonal.clamp(min=0).sqrt()
        error = rounding(3 * self._stored.dim + 8) * size * size.sum(1, keepdim=True)  # p = r
        bound: Tensor = torch.where(positive_definite(matrix, error), top, whole)
        return bound
