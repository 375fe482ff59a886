"""The trusted kernel: proofs in floating point that a rival is not reached, of the stored numbers and nothing else.

The classifier *is* its float64 buffers: score_k(z) = −‖A_k(z−μ_k)‖² + 2 log|det A_k| + 2 (log π_k + what all share).
With v_k = z−μ_k, P = AᵀA, W = P_r − P_p, b = P_r v_r − P_p v_p, m the margin of prediction p over rival r, any g ≥ 0,
    m(z+δ) + g(‖δ‖² − R²) = [δ; 1]ᵀ M [δ; 1],    M = [[gI + W, b], [bᵀ, m − gR²]],

so M ≻ 0 proves m > 0 wherever ‖δ‖ ≤ R, and everywhere if g = 0. (METHOD's M(t, R²) over t; g = 1/t, as rounded, is the
g of the proof.) Rounding, with u = 2⁻⁵³ and γ_k = ku/(1−ku), in any order of summation, fused or blocked:

1. Entries. n_j = ‖A e_j‖ gives |P| ≤ |A|ᵀ|A| ≤ nnᵀ and ‖|A||v|‖ ≤ h = nᵀ|v|. So |Ŵ − W| ≤ γ_{d+1}(n_r n_rᵀ + n_p n_pᵀ),
   |b̂ − b| ≤ γ_{2d+4} (n_r h_r + n_p h_p), and ‖ŷ − y‖ ≤ γ_{d+1} h for y = A v. 2⁻⁴⁸⁰ added to n, h pays for underflow.
2. Logarithms are taken to be right to 2 units in the last place, and are added without error (`math.fsum`).
3. Errors enter as quadratic forms. D = diag(M̂) > 0, y_j = √D_j |x_j| for any x, r_j = n_j/√D_j, f_j = e_j/√(D_j D_0)
   for the border's error e: Σ_ij n_i n_j |x_i x_j| = (Σ r_j y_j)² ≤ Σ p_i · Σ r_j² y_j²/p_j and 2|x_0| Σ e_j |x_j| =
   2 y_0 Σ f_j y_j ≤ Σ q_j y_j² + y_0² Σ f_j²/q_j for any p, q > 0: relative errors of D, in the sense that matters.
4. Cholesky (Demmel; Higham 10.1; Rump, BIT 2006): if it runs to its end on Ã, then LLᵀ = Ã + Δ with
   |Δ_ij| ≤ γ_{min(i,j)+2}/(1−γ) √(ã_ii ã_jj), divisions by way of a reciprocal included, whence |xᵀΔx| ≤
   (n(n+1)/2 + 2n) 1.01u Σ D_j x_j². Scales drop out: nothing is balanced. Underflow is below one more unit if D is from
   2⁻⁵⁰⁰ to 2¹⁰⁰⁰; four pay for the diagonal's own rounding. So M ≻ 0 if Cholesky succeeds on M̂ with each D_j multiplied
   by 1 − θ_j, θ the sum of 3 and 4. Bounds are computed in float64, too: :func:`rounding` has two per cent to spare.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ellips.gaussians import Mixture

_TINY, _LOW, _HIGH, KEPT = 2.0**-480, 2.0**-500, 2.0**1000, 2**25  # numbers of precisions that are kept: 256 MB


def rounding(operations: float) -> float:
    """Return a bound on γ_k, with two per cent for its own use in float64."""
    return 1.02 * operations * 2.0**-53


def positive_definite(matrix: Tensor, error: Tensor) -> Tensor:
    """Prove matrices ``(M, n, n)``, given by their lower triangles and overwritten, positive definite.

    ``error``, ``(M, n)``, holds e with |xᵀ(exact − matrix)x| ≤ Σ e_j matrix_jj x_j² for every x.
    """
    n, diagonal = matrix.shape[-1], matrix.diagonal(dim1=-2, dim2=-1)
    shift = 1.01 * error + rounding(n * ((n + 1) / 2 + 8))
    usable = ((diagonal >= _LOW) & (diagonal <= _HIGH) & (shift < 1)).all(-1)
    diagonal *= 1 - shift
    lower, info = torch.linalg.cholesky_ex(matrix)
    least, most = lower.diagonal(dim1=-2, dim2=-1).aminmax(dim=-1)  # not positive or not finite where an entry is not
    proven: Tensor = usable & (info == 0) & (least > 0) & (most < math.inf)
    return proven


class Kernel:
    """The stored mixture, copied to the processor, and what can be proven of it: True is proven, False is not known."""

    def __init__(self, mixture: Mixture) -> None:
        if float(torch.tensor(2.0**-1074, dtype=torch.float64) * 1.0) == 0:
            raise RuntimeError("Expected IEEE arithmetic but subnormals are flushed: torch.set_flush_denormal(False).")
        self.means, factors, self.log_priors = (x.detach().to("cpu", torch.float64, copy=True) for x in mixture.stored)
        self.classes, self.dim = self.means.shape
        self.diagonal, self.factors = factors.ndim == 2, factors if factors.ndim == 2 else factors.tril_()
        self.terms = 1 if self.diagonal else self.dim  # of each sum in A v
        self.entries, self.ops = self.dim + 1, 2 * self.dim + 6  # operations behind an entry of W, and of b
        self.balance = 1.0  # in the choice of q: any positive number proves, smaller ones near a singular gI + W
        pivots = factors if self.diagonal else factors.diagonal(dim1=1, dim2=2)
        logs = torch.cat([pivots.abs().log(), self.log_priors.unsqueeze(1)], dim=1)
        sums = [2 * math.fsum(row) if all(map(math.isfinite, row)) else math.nan for row in logs.tolist()]
        self.offsets, self.sizes = torch.tensor(sums, dtype=torch.float64), 2 * logs.abs().sum(1)
        self.columns = (factors.abs() if self.diagonal else torch.linalg.vector_norm(factors, dim=1)) + _TINY  # n
        self.shapes, alike = torch.arange(self.classes), dict[bytes, list[int]]()  # equal only where the factors are
        for k in range(self.classes):
            (others := alike.setdefault(pivots[k].contiguous().numpy().tobytes(), [])).append(k)
            self.shapes[k] = next((j for j in others if torch.equal(factors[j], factors[k])), k)
        kept = factors[:0] if self.diagonal or factors.numel() > KEPT else factors
        self.bordered = torch.nn.functional.pad(kept.mT @ kept, (0, 1, 0, 1))  # P

    def whiten(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return y = A(z−μ), shape ``(K, N, d)``, with scores and bounds on their errors, shapes ``(N, K)``."""
        v = z - self.means.unsqueeze(1)
        y = v * self.factors.unsqueeze(1) if self.diagonal else v @ self.factors.mT
        slip = rounding(self.terms + 2) * ((v.abs() @ self.columns.unsqueeze(-1)).squeeze(-1) + _TINY)
        square = y.square().sum(-1)
        error = rounding(self.dim + 4) * square + 2.02 * (square.sqrt() + _TINY) * slip + 1.02 * slip.square()
        error += rounding(8) * self.sizes.unsqueeze(1) + _TINY**2
        return y, (self.offsets.unsqueeze(1) - square).mT, error.mT

    def margins(self, scores: Tensor, errors: Tensor, prediction: Tensor) -> tuple[Tensor, Tensor]:
        """Return bounds on every margin from below and above, shapes ``(N, K)``; predictions must be in range."""
        own, slack = (x.gather(1, prediction.unsqueeze(1)) for x in (scores, errors))
        error = 1.01 * (errors + slack + rounding(4) * (scores.abs() + own.abs()))
        return own - scores - error, own - scores + error

    def unreached(self, z: Tensor, pair: tuple[Tensor, Tensor], margin: Tensor, t: Tensor, radius: Tensor) -> Tensor:
        """Prove that rivals are not reached within radii of z ``(M, d)``; the others are ``(M,)``.

        Of ``pair``, prediction and rival, ``margin`` bounds m from below; t = 1/g > 0, ``inf`` where never reached.
        """
        p, r, g = *(k.clamp(0, self.classes - 1) for k in pair), t.reciprocal()
        drop = torch.where(g == 0, 0.0, (1 + rounding(8)) * g * radius.square() + (g + 1) * _TINY**2)
        corner = margin - drop - rounding(3) * (margin.abs() + drop)
        valid = (p == pair[0]) & (r == pair[1]) & (p != r) & (t > 0) & g.isfinite() & (radius >= 0)
        same, found = self.shapes[p] == self.shapes[r], torch.zeros_like(valid)
        full = (same, self._flat), (~same & (corner > 0), self._dense)
        for kind, prove in ((valid, self._diagonal),) if self.diagonal else full:
            rows = (kind & valid).nonzero().squeeze(1)
            if len(rows):
                found[rows] = prove(z[rows], p[rows], r[rows], g[rows, None], corner[rows])
        return found

    def _dense(self, z: Tensor, p: Tensor, r: Tensor, g: Tensor, corner: Tensor) -> Tensor:
        d, pair = self.dim, torch.stack([r, p])
        v, n = z - self.means[pair], self.columns[pair]
        matrix, pull = self._written(pair, v)
        matrix[:, d, :d], matrix[:, d, d] = pull[0] - pull[1], corner
        diagonal = matrix.diagonal(dim1=1, dim2=2)[:, :d].add_(g)
        f = rounding(self.ops) * (n * ((n * v.abs()).sum(2, True) + _TINY)).sum(0) / (diagonal * corner[:, None]).sqrt()
        x = n * n / diagonal
        error = rounding(self.entries) * 5 * d * (x / (1 + 4 * d * x / x.sum(2, True))).sum(0)
        q = torch.maximum((error + rounding(d * d)) / 4, self.balance * d**0.5 * f)  # p = 1 + 4d r²/Σr²
        return positive_definite(matrix, torch.cat([error + q, (f * f / q).sum(1, True)], dim=1))

    def _written(self, pair: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        power, d = self.bordered.index_select(0, pair.flatten()).unflatten(0, pair.shape), self.dim
        away = v.unsqueeze(2)  # torch's own product of small matrices is slow
        pull = torch.linalg.vecdot(power[..., :d, :d], away) if d < 20 else (away @ power[..., :d, :d]).squeeze(2)
        return power[0].sub_(power[1]), pull  # W with a border of zeros, and P v of both

    def _flat(self, z: Tensor, p: Tensor, r: Tensor, g: Tensor, corner: Tensor) -> Tensor:
        n, factors, w = self.columns[r], self.factors[r], self.means[p] - self.means[r]  # W = 0, b = P w exactly
        b = (factors.mT @ (factors @ w.unsqueeze(-1))).squeeze(-1).abs()
        b += rounding(2 * self.dim + 4) * n * ((n * w.abs()).sum(1, True) + _TINY)
        return ((w == 0).all(1) & (self.log_priors[p] > self.log_priors[r])) | _arrow(g.expand_as(b), b, corner)

    def _diagonal(self, z: Tensor, p: Tensor, r: Tensor, g: Tensor, corner: Tensor) -> Tensor:
        """W is diagonal; errors go by component, and are 0 where factors agree: there b = P_r (μ_p−μ_r)."""
        near, far, bent = self.factors[r].square(), self.factors[p].square(), self.factors[r] != self.factors[p]
        apart = bent | (self.means[p] != self.means[r])  # if nowhere, m is twice what the priors say
        w, v = torch.where(bent, z, self.means[p]) - self.means[r], bent * (z - self.means[p])
        stiff, b, tiny = g + (near - far), near * w - far * v, _TINY**2
        stiff -= bent * (rounding(1) * (near + far + (near - far).abs() + tiny) + rounding(2) * stiff.abs() + tiny)
        error = apart * (rounding(5) * ((near + tiny) * w.abs() + (far + tiny) * v.abs()) + tiny)
        return (~apart.any(1) & (self.log_priors[p] > self.log_priors[r])) | _arrow(stiff, b.abs() + error, corner)


def _arrow(stiff: Tensor, b: Tensor, corner: Tensor) -> Tensor:
    """Complete squares: Σ (stiff_j δ_j² − 2 b_j |δ_j|) + corner ≥ corner − Σ b_j²/stiff_j, rounded up."""
    fall = torch.where(b == 0, 0.0, b * (b / stiff) + (1 + b) * _TINY**2).sum(1)
    return ((stiff > 0) | ((stiff >= 0) & (b == 0))).all(1) & (corner > (1 + rounding(b.shape[1] + 16)) * fall)
