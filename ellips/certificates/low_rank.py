"""Mixtures of low rank as the solvers see them: everything happens in the few directions in which classes differ.

With w = A(z − c), η_k = Aν_k, c_k = Q_k(w − η_k), E_k = 1 − s_k² and V_k = Q_kA (rows), precisions are
P_k = P − V_kᵀE_kV_k, and of two classes' half gradients what they share drops out:

    b = (a − Pν_i) − V_iᵀE_ic_i,    a = Pν_* + V_*ᵀE_*c_*,    * the prediction, i the rival,
    ‖b‖² = ‖a − Pν_i‖² − 2 (V_ia − V_iPν_i)·E_ic_i + (E_ic_i)ᵀ V_iV_iᵀ (E_ic_i),

which takes one product with all directions beside that of the scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ellips.certificates.geometry import Geometry, Groups, apply_grouped, grouped
from ellips.certificates.low_rank_pairs import LowRankPairs
from ellips.certificates.pairs import PairSpectra
from ellips.certificates.parts import Scores
from ellips.certificates.rounding import UNDERFLOW, gamma
from ellips.gaussians import Mixture
from ellips.gaussians.low_rank import LowRank
from ellips.gaussians.structures import TILE_ROWS, Structure, class_tiles

_WIDE = torch.float64
_HELD_ELEMENTS = 2**24  # of what belongs to all classes of some points
# Of squared half gradients, what may be lost to underflow.
_FAINT = {torch.float32: 1e-34, torch.float64: UNDERFLOW[torch.float64] ** 2}


@dataclass
class LowRankGeometry(Geometry):
    """A mixture of low rank.

    Attributes:
        structure: Its precisions.
        whitened: η_k, shape ``(K, d)``.
        projected: Q_kη_k, shape ``(K, r)``.
    """

    structure: LowRank
    whitened: Tensor
    projected: Tensor

    @classmethod
    def of(cls, mixture: Mixture, structure: LowRank) -> LowRankGeometry:
        """Return the geometry of a fitted mixture."""
        center, whitened, projected = structure.centered(mixture.means)
        offsets = mixture.means - center
        return cls(center, offsets, mixture.offsets, mixture.offset_sizes, structure, whitened, projected)

    # ------------------------------------------------------------------ what is computed once

    @cached_property
    def lengths(self) -> Tensor:
        """‖q_kj‖, shape ``(K, r)``."""
        lengths: Tensor = self.structure.directions.norm(dim=2)
        return lengths

    @cached_property
    def strengths(self) -> Tensor:
        """At least |E_kj|, with what makes up for the rounding of 1 − s² beside d or more operations, ``(K, r)``."""
        return self.structure.weights.abs() + (1 + self.structure.scales.square()) * (2 / self.dim)

    @cached_property
    def sizes(self) -> Tensor:
        """κ_k = Σ_j |E_kj|‖q_kj‖², shape ``(K,)``: at least ‖Q_kᵀE_kQ_k‖, and what bounds its rounding."""
        return (self.strengths * self.lengths.square()).sum(1)

    @cached_property
    def pull_sizes(self) -> Tensor:
        """κ'_k = min(κ_k, ‖Q_k‖ √(Σ_j (E_kj ‖q_kj‖)²)), shape ``(K,)``: for products with vectors, as κ is for squares.

        ‖Q‖² is at most the largest sum of a row of |QQᵀ|, next to 1 where directions are orthonormal.
        """
        rows = self.lengths.new_ones(self.num_classes)
        for k, q in enumerate(self.structure.directions if self.structure.scales.shape[1] else ()):
            rows[k] = (q @ q.mT).abs().sum(1).amax() + gamma(self.dim + 4) * len(q) * self.lengths[k].amax().square()
        return torch.minimum(self.sizes, 1.001 * rows.sqrt() * self.spread)

    @cached_property
    def shared_norm(self) -> Tensor:
        """‖A‖_F, a scalar."""
        norm: Tensor = self.structure.shared.norm()
        return norm

    @cached_property
    def factor_norms(self) -> Tensor:
        """See :class:`Parts`."""
        return self.shared_norm * (1 + self.pull_sizes).sqrt()

    @cached_property
    def energies(self) -> Tensor:
        """See :class:`Parts`: the least of two bounds, for V_k = Q_kA is off by so much of ‖q_kj‖‖A‖_F.

        Σ_j |E_kj| ‖q_kj‖‖A‖_F ‖v_kj‖, and ‖V_k‖ √(Σ_j (E_kj ‖q_kj‖)²) ‖A‖_F + max_j |E_kj| ‖V_k‖² (Cauchy and Schwarz).
        """
        if not self.structure.scales.shape[1]:
            return torch.zeros_like(self.mean_norms)
        own = self.vectors(_WIDE).norm(dim=2)
        own = torch.maximum(own, self.lengths * self.shared_norm / self.dim)  # beside what rounding can do to it
        plain = (self.strengths * self.lengths * own).sum(1) * self.shared_norm
        size = (
            torch.linalg.eigvalsh(self.grams)[:, -1].clamp(min=0) + gamma(4 * self.dim) * own.square().sum(1)
        ).sqrt()
        joint = size * self.spread * self.shared_norm + self.strengths.amax(1) * size.square()
        return 1.25 * torch.minimum(plain, joint)  # r operations beside 4d

    @cached_property
    def spread(self) -> Tensor:
        """√(Σ_j (E_kj ‖q_kj‖)²), shape ``(K,)``."""
        spread: Tensor = (self.strengths * self.lengths).norm(dim=1)
        return spread

    def reach(self, norm: Tensor, classes: Tensor) -> Tensor:
        """Bound ‖P_k(z − μ_k)‖ in the sense in which its rounding goes with it, here and in the verified kernel.

        Args:
            norm: ‖z − c‖, of a shape that broadcasts with the classes.
            classes: Class indices.
        """
        return self.factor_norms[classes].square() * (norm + self.mean_norms[classes])

    @cached_property
    def pulled(self) -> Tensor:
        """Pν_k, shape ``(K, d)``."""
        return self.whitened @ self.structure.shared

    @cached_property
    def _vectors(self) -> dict[torch.dtype, Tensor]:
        return {}

    def vectors(self, dtype: torch.dtype) -> Tensor:
        """Return V_k, shape ``(K, r, d)``, in float32 or float64."""
        if dtype not in self._vectors:
            with torch.inference_mode(False):
                self._vectors[dtype] = self._make_vectors() if dtype == torch.float64 else self.vectors(_WIDE).to(dtype)
        return self._vectors[dtype]

    def _make_vectors(self) -> Tensor:
        made = torch.empty_like(self.structure.directions)
        for k, q in enumerate(self.structure.directions):  # one by one: nothing of their size is held beside them
            torch.mm(q, self.structure.shared, out=made[k])
        return made

    @cached_property
    def grams(self) -> Tensor:
        """V_kV_kᵀ, shape ``(K, r, r)``."""
        vectors = self.vectors(_WIDE)
        return vectors @ vectors.mT

    @cached_property
    def pulled_projections(self) -> Tensor:
        """V_kPν_k, shape ``(K, r)``."""
        return (self.vectors(_WIDE) @ self.pulled.unsqueeze(-1)).squeeze(-1)

    # ------------------------------------------------------------------ scores and half gradients

    def score(self, z: Tensor, dtype: torch.dtype) -> Scores:
        """See :class:`Geometry`."""
        structure, (points, rank) = self.structure, (len(z), self.structure.scales.shape[1])
        x = z - self.center
        w = x @ structure.shared.mT
        common = w.square().sum(1, keepdim=True) - 2 * w @ self.whitened.mT + self.whitened.square().sum(1)
        weights, powers = structure.weights, self.strengths
        bends = torch.empty(points, self.num_classes, rank, dtype=dtype, device=z.device)  # E_kc_k
        squares, power = common.clone(), torch.empty_like(common)
        for k, part in structure.projections(w, self.projected):
            bends[:, k] = part * weights[k]
            square = part.square_()
            squares[:, k] -= (square * weights[k]).sum(-1)
            power[:, k] = (square * powers[k]).sum(-1)
        scores = self.offsets - squares
        prediction, norms = scores.argmax(1), x.norm(dim=1)
        errors = self._score_errors(common.clamp(min=0), power, w.norm(dim=1, keepdim=True), norms.unsqueeze(1))
        return Scores(prediction, scores, errors, self._half_gradient_norms(bends, prediction, norms), norms)

    def _score_errors(self, common: Tensor, power: Tensor, whitened: Tensor, norm: Tensor) -> Tensor:
        """Bound the error of −‖y‖² + Σ_j E_j c_j² + offset; ``power`` is Σ_j |E_j| c_j² as computed.

        Where y stands for w − η as computed, it is off by ε, and c_j by ‖q_j‖ε'.
        """
        d, rank = self.dim, self.structure.scales.shape[1]
        size = whitened + self.whitened.norm(dim=1)
        slip = gamma(d + 6) * self.shared_norm * (norm + self.mean_norms)
        expanded = gamma(d + 8) * size.square()
        distance = (common + expanded).sqrt()
        error = (2 * distance + slip) * slip + expanded
        slip = slip + gamma(d + 6) * size
        error = error + 2 * slip * (self.sizes * power).sqrt() + 2 * self.sizes * slip.square()
        # Eight operations more than are done: what the verified kernel takes off for its own rounding.
        bound: Tensor = error * (1 + gamma(16)) + gamma(d + rank + 16) * power
        return bound + gamma(d + 12) * (common + self.offset_sizes)

    def _half_gradient_norms(self, bends: Tensor, prediction: Tensor, norms: Tensor) -> Tensor:
        """Bound ‖b_k‖ from above; see this module's description."""
        d, dtype, rows = self.dim, bends.dtype, torch.arange(len(bends), device=bends.device)
        own = bends[rows, prediction].double()
        a = self.pulled[prediction] + apply_grouped_transposed(self.vectors(_WIDE), own, prediction)
        far, near = a.norm(dim=1, keepdim=True), self.pulled.norm(dim=1)
        squares = far.square() - 2 * a @ self.pulled.mT + near.square()
        low, vectors = a.to(dtype), self.vectors(dtype)
        shifts, grams = self.pulled_projections.to(dtype), self.grams.to(dtype)
        for k in class_tiles(self.num_classes, bends.shape[2]):
            across = torch.addmm(shifts[k].reshape(1, -1), low, vectors[k].flatten(0, 1).mT, beta=-1)
            bend = bends[:, k]
            inner = (bend.transpose(0, 1) @ grams[k]).transpose(0, 1).sub_(across.view_as(bend), alpha=2)
            squares[:, k] += (inner * bend).sum(-1).double()
        # What float32 or float64 may have done to the terms, and float64 to a and η.
        bent = self.vector_norms * torch.linalg.vector_norm(bends, dim=-1).double()
        rounding = gamma(d + 2 * bends.shape[2] + 24, dtype) * bent * (bent + 2 * (far + near))
        rounding = rounding + gamma(d + 8) * (far + near).square()
        classes = torch.arange(self.num_classes, device=bends.device)
        slip = gamma(self._operations) * self.reach(norms.unsqueeze(1), classes)
        slip = slip + slip.gather(1, prediction.unsqueeze(1))
        # The prediction's own bends are those of `dtype`, of which a is made.
        slip = slip + gamma(2, dtype) * (self.vector_norms[prediction] * own.norm(dim=1)).unsqueeze(1)
        bound: Tensor = (squares + rounding + _FAINT[dtype]).clamp(min=0).sqrt() * (1 + gamma(16)) + slip
        return bound.nan_to_num(torch.inf, posinf=torch.inf)  # what overflows rules no rival out

    @cached_property
    def vector_norms(self) -> Tensor:
        """‖V_k‖_F, shape ``(K,)``, rounded up."""
        norms: Tensor = self.vectors(_WIDE).flatten(1).norm(dim=1)
        return norms * (1 + 1e-5)  # what float32 makes of them, too

    # ------------------------------------------------------------------ what single problems need

    def pull(self, x: Tensor, classes: Tensor) -> Tensor:
        """See :class:`Geometry`."""
        away = x - self.offsets_from_center[classes]
        return self.apply(away, grouped(classes)).sub_(self.pulled[classes])

    def apply(self, v: Tensor, groups: Groups) -> Tensor:
        """See :class:`Geometry`: −V_kᵀE_kV_k v."""
        vectors, weights = self.vectors(v.dtype), -self.structure.weights.to(v.dtype)
        return apply_grouped(
            lambda rows, k, out: torch.mm((rows @ vectors[k].mT).mul_(weights[k]), vectors[k], out=out), v, *groups
        )

    def half_gradient_error(self, norm: Tensor, prediction: Tensor, rival: Tensor) -> Tensor:
        """See :class:`Geometry`."""
        return gamma(self._operations) * (self.reach(norm, prediction) + self.reach(norm, rival))

    @property
    def _operations(self) -> int:
        """How many operations there are at most between the stored numbers and a half gradient."""
        return 4 * self.dim + 2 * self.structure.scales.shape[1] + 32

    @property
    def rows(self) -> int:
        """See :class:`Geometry`: E_kc_k of all classes wait until the prediction is known."""
        return min(TILE_ROWS, max(16, _HELD_ELEMENTS // (self.num_classes * (self.structure.scales.shape[1] + 8))))

    @property
    def narrow(self) -> tuple[float, float]:
        """See :class:`Geometry`: here products of half gradients are formed, too."""
        return 1e-9, 1e9

    @cached_property
    def pairs(self) -> PairSpectra:
        """See :class:`Geometry`."""
        at_center, classes = self.center.new_zeros(()), torch.arange(self.num_classes, device=self.center.device)
        return LowRankPairs(self, self.structure, self.reach(at_center, classes))

    @property
    def pair_cost(self) -> tuple[int, int]:
        """See :class:`Geometry`."""
        width = min(2 * self.structure.scales.shape[1], self.dim) + 1
        return self.dim * width, self.dim * width**2

    @cached_property
    def _extremes(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """λ_max of Σ_j E_j⁻v_jv_jᵀ and of Σ_j E_j⁺v_jv_jᵀ from above, ``(K,)``, and their eigenvectors, ``(K, d)``.

        The first is how far P_k rises above P, the second how far it falls below.
        """
        found: list[Tensor] = []
        error = gamma(4 * self.dim + 32) * 3 * self.energies
        for sign in (-1, 1):
            root = (sign * self.structure.weights).clamp(min=0).sqrt()
            values, vectors = torch.linalg.eigh(root.unsqueeze(2) * self.grams * root.unsqueeze(1))
            if not values.shape[1]:
                found += [torch.zeros_like(error), torch.zeros_like(self.offsets_from_center)]
                continue
            bound = values[:, -1].clamp(min=0) + error
            weighted = (vectors[..., -1] * root).unsqueeze(1)
            tops = torch.cat([w @ v for w, v in zip(weighted, self.vectors(_WIDE), strict=True)])
            found += [bound, torch.nn.functional.normalize(tops, dim=1)]
        return found[0], found[2], found[1], found[3]

    @property
    def bends(self) -> Tensor:
        """See :class:`Geometry`: how far P_k rises above P, and how far it falls below, shape ``(2, K)``."""
        return torch.stack(self._extremes[:2])

    def concavity_bounds(self) -> Tensor:
        """See :class:`Geometry`: W ⪰ −(how far the prediction's P rises + how far the rival's falls)."""
        rises, falls, _, _ = self._extremes
        return (rises.unsqueeze(1) + falls).fill_diagonal_(0.0)

    def bound_energy(self, structure: Structure, prediction: Tensor, rival: Tensor) -> Tensor:
        """See :class:`Geometry`."""
        assert isinstance(structure, LowRank)  # for the type checker
        _, _, rising, falling = self._extremes
        energy = torch.zeros(len(prediction), dtype=torch.float64, device=rising.device)
        for sign, k, v in ((-1, prediction, rising[prediction]), (1, rival, falling[rival])):
            along = (structure.directions[k] @ (v @ structure.shared.mT).unsqueeze(-1)).squeeze(-1)
            energy = energy + ((sign * structure.weights[k]).clamp(min=0) * along.square()).sum(1)
        return energy


def apply_grouped_transposed(vectors: Tensor, bends: Tensor, classes: Tensor) -> Tensor:
    """Return V_kᵀe for a class and an e in each row, shape ``(N, d)``."""
    order, found, counts = grouped(classes)
    pulled = vectors.new_empty(len(classes), vectors.shape[2])
    for k, rows in zip(found, order.split(counts), strict=True):
        pulled[rows] = bends[rows] @ vectors[k]
    return pulled
