"""What the certificates need to know of a mixture, gathered once per mixture."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ellips.certificates.pairs import FactoredPairs, PairSpectra
from ellips.certificates.parts import Parts, Scores
from ellips.certificates.rounding import UNDERFLOW, gamma, score_error, whitened_error
from ellips.gaussians import Mixture
from ellips.gaussians.structures import TILE_ROWS, Factored, Structure, class_ranges, class_tiles, square_norm

_AFFORDABLE_ELEMENTS = 2**24  # of all pairs' eigenvectors: about 0.2 GB with what goes with them
_AFFORDABLE_WORK = 2**32  # d³ for every pair: some seconds on a processor
_KEPT_ELEMENTS = 2**25  # of all precisions in float64, up to which they are kept: 256 MB
_HELD_ELEMENTS = 2**24  # of what waits for each point while classes are gone through
Groups = tuple[Tensor, list[int], list[int]]  # the order that sorts rows by class, the classes found, how often


@dataclass
class Geometry(Parts):
    """A mixture as the solvers see it: its tensors, and what is computed of them once."""

    @abstractmethod
    def score(self, z: Tensor, dtype: torch.dtype) -> Scores:
        """Score some points and bound the half gradients of all margins.

        Args:
            z: Shape ``(N, d)``, float64, of few enough points that what belongs to every class fits in memory.
            dtype: Precision of the half gradients; their error is added. Scores are always float64.
        """

    @abstractmethod
    def pull(self, x: Tensor, classes: Tensor) -> Tensor:
        """Return P_k(z − μ_k) up to what all classes share at z, for x = z − c and a class in each row."""

    @abstractmethod
    def apply(self, v: Tensor, groups: Groups) -> Tensor:
        """Return P_k v, up to what all classes share, in the precision of v, for rows grouped by class."""

    @abstractmethod
    def half_gradient_error(self, norm: Tensor, prediction: Tensor, rival: Tensor) -> Tensor:
        """Bound the error of b = P_rival(z − μ_rival) − P_prediction(z − μ_prediction) as computed in float64.

        Args:
            norm: ‖z − c‖, of a shape that broadcasts with the others.
            prediction: Class indices.
            rival: Class indices.
        """

    @property
    @abstractmethod
    def rows(self) -> int:
        """Points that :meth:`score` is to be given at a time."""

    @property
    @abstractmethod
    def narrow(self) -> tuple[float, float]:
        """Least and largest ``factor_norms``² at which half gradients may be computed in float32."""

    @cached_property
    @abstractmethod
    def pairs(self) -> PairSpectra:
        """Decomposed differences of precisions."""

    @property
    @abstractmethod
    def pair_cost(self) -> tuple[int, int]:
        """Numbers that one decomposed pair takes, and operations to decompose it."""

    @property
    @abstractmethod
    def bends(self) -> Tensor:
        """What the verified kernel is to prove of single classes, so that far rivals need no proof of their own."""

    @abstractmethod
    def concavity_bounds(self) -> Tensor:
        """Return upper bounds on (−λ_min(P_i − P_j))₊ at ``[j, i]`` that need no decomposed pairs, shape ``(K, K)``."""

    @abstractmethod
    def bound_energy(self, structure: Structure, prediction: Tensor, rival: Tensor) -> Tensor:
        """Return what :meth:`concavity_bounds` holds for some pairs, where positive, differentiably, shape ``(N,)``."""

    @cached_property
    def affordable(self) -> bool:
        """Whether all K(K−1)/2 differences of precisions may be decomposed and kept."""
        pairs = self.num_classes * (self.num_classes - 1) // 2
        elements, work = self.pair_cost
        return pairs * elements <= _AFFORDABLE_ELEMENTS and pairs * work <= _AFFORDABLE_WORK

    @cached_property
    def concavity(self) -> Tensor:
        """Upper bounds on (−λ_min(P_i − P_j))₊ for prediction j and rival i, at ``[j, i]``, shape ``(K, K)``.

        From the decomposed differences where they are affordable, else by Weyl's inequality, which makes radii smaller
        but never unsound.
        """
        if not self.affordable:
            return self.concavity_bounds()
        classes = self.num_classes
        low, high = torch.triu_indices(classes, classes, offset=1, device=self.offsets.device)
        concavity = self.offsets.new_zeros(classes, classes)
        concavity[low, high] = (-self.pairs.lowest(low, high)).clamp(min=0)
        concavity[high, low] = (-self.pairs.lowest(high, low)).clamp(min=0)
        return concavity


@dataclass
class FactoredGeometry(Geometry):
    """Precisions with a factor each, full or diagonal.

    The factors are the mixture's own tensor, no copy of it. Beside it there are the precisions in float32 and, where
    they are not too large, in float64.

    Attributes:
        factors: A_k, shape ``(K, d, d)`` or ``(K, d)``.
        whiten: The mixture's own maps, for a range of classes, from z to A_k(z − μ_k).
    """

    factors: Tensor
    whiten: Callable[[slice], Callable[[Tensor], Tensor]]

    @classmethod
    def of(cls, mixture: Mixture, structure: Factored) -> FactoredGeometry:
        """Return the geometry of a fitted mixture; ``structure``, without gradients, has its precisions."""
        center, whiten = mixture.means.mean(0), structure.whitening(mixture.means)
        return cls(center, mixture.means - center, mixture.offsets, mixture.offset_sizes, structure.factors, whiten)

    @property
    def diagonal(self) -> bool:
        """Whether the covariances are diagonal."""
        return self.factors.ndim == 2

    @cached_property
    def factor_norms(self) -> Tensor:
        """‖A_k‖_F, shape ``(K,)``."""
        norms: Tensor = self.factors.flatten(1).norm(dim=1)
        return norms

    def score(self, z: Tensor, dtype: torch.dtype) -> Scores:
        """See :class:`Geometry`."""
        dim, squares = self.dim, z.new_empty(len(z), self.num_classes)
        for k in class_tiles(self.num_classes, dim):
            tile = self.whiten(k)
            for rows, part in zip(squares.split(TILE_ROWS), z.split(TILE_ROWS), strict=True):
                rows[:, k] = square_norm(tile(part))
        scores = self.offsets - squares
        prediction = scores.argmax(1)
        x = z - self.center
        computed = self._half_gradient_norms(x.to(dtype), prediction)
        norms = x.norm(dim=1)
        distances = squares.sqrt_()
        errors = whitened_error(dim, self.factor_norms, norms.unsqueeze(1), self.mean_norms)
        score_errors = score_error(dim, distances, errors, self.offset_sizes)
        slip = gamma(2 * dim + 8, dtype) * self.factor_norms.square() * (norms.unsqueeze(1) + self.mean_norms)
        slip = slip + slip.gather(1, prediction.unsqueeze(1))
        slip = slip + UNDERFLOW[dtype] * (dim + self.factor_norms.amax().square())  # of points that underflow, too
        return Scores(prediction, scores, score_errors, computed.mul_(1 + gamma(dim + 4, dtype)) + slip, norms)

    def _half_gradient_norms(self, x: Tensor, prediction: Tensor) -> Tensor:
        """‖b_k‖, b_k = P_k(z − μ_k) − P_{i*}(z − μ_{i*}), as computed in the precision of x, shape ``(N, K)``."""
        norms, shifted = x.new_empty(len(x), self.num_classes, dtype=torch.float64), self._pulled.to(x.dtype)
        own = self.apply(x, grouped(prediction)).sub_(shifted[prediction])
        for k in class_tiles(self.num_classes, self.dim):
            pull = self._pulling(k, shifted)
            for rows, part, away in zip(*(t.split(TILE_ROWS) for t in (norms, x, own)), strict=True):
                rows[:, k] = torch.linalg.vector_norm(pull(part).sub_(away.unsqueeze(1)), dim=-1)
        return norms

    def _pulling(self, k: slice, shifted: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the map from z − c, ``(N, d)``, to P(z − μ), ``(N, k, d)``, of a range of classes, given all Pν."""
        own = shifted[k]
        if self.diagonal:
            squares = self.factors[k].square().to(shifted.dtype)
            return lambda x: (x.unsqueeze(1) * squares).sub_(own)
        if self._kept(shifted.dtype):
            stacked, flat = self.precisions_in(shifted.dtype)[k].reshape(-1, self.dim).mT, own.reshape(1, -1)
            return lambda x: torch.addmm(flat, x, stacked, beta=-1).view(len(x), *own.shape)
        factors = self.factors[k]
        return lambda x: ((x @ factors.mT) @ factors).transpose(0, 1).sub_(own)

    @cached_property
    def _pulled(self) -> Tensor:
        """P_kν_k, shape ``(K, d)``."""
        if self.diagonal:
            return self.factors.square() * self.offsets_from_center
        away = self.offsets_from_center.unsqueeze(-1)
        return (self.factors.mT @ (self.factors @ away)).squeeze(-1)

    @cached_property
    def _precisions(self) -> dict[torch.dtype, Tensor]:
        return {}

    def _kept(self, dtype: torch.dtype) -> bool:
        """Whether precisions are kept: those of many classes in many dimensions in float32 only."""
        return dtype == torch.float32 or self.factors.numel() <= _KEPT_ELEMENTS

    def precisions_in(self, dtype: torch.dtype) -> Tensor:
        """Return P_k, shape ``(K, d, d)``, in float32 or float64; for full covariances that are :meth:`_kept`."""
        if dtype not in self._precisions:
            with torch.inference_mode(False):
                made = torch.empty_like(self.factors, dtype=dtype)
                for k in class_ranges(self.num_classes, self.dim**2):
                    made[k] = self.factors[k].mT @ self.factors[k]
                self._precisions[dtype] = made
        return self._precisions[dtype]

    def pull(self, x: Tensor, classes: Tensor) -> Tensor:
        """See :class:`Geometry`."""
        return self.apply(x - self.offsets_from_center[classes], grouped(classes))

    def apply(self, v: Tensor, groups: Groups) -> Tensor:
        """See :class:`Geometry`."""
        if self.diagonal:
            squares = self.factors.square().to(v.dtype)
            return apply_grouped(lambda rows, k, out: torch.mul(rows, squares[k], out=out), v, *groups)
        if not self._kept(v.dtype):
            factors = self.factors
            return apply_grouped(lambda rows, k, out: torch.mm(rows @ factors[k].mT, factors[k], out=out), v, *groups)
        matrices = self.precisions_in(v.dtype)
        return apply_grouped(lambda rows, k, out: torch.mm(rows, matrices[k], out=out), v, *groups)

    def half_gradient_error(self, norm: Tensor, prediction: Tensor, rival: Tensor) -> Tensor:
        """See :class:`Geometry`."""
        reach = [self.factor_norms[k].square() * (norm + self.mean_norms[k]) for k in (prediction, rival)]
        return gamma(2 * self.dim + 8) * (reach[0] + reach[1])

    @property
    def rows(self) -> int:
        """See :class:`Geometry`: of many, so that each factor is read once for them; 8 numbers wait for each class."""
        return max(TILE_ROWS, _HELD_ELEMENTS // (8 * self.num_classes + 4 * self.dim))

    @property
    def narrow(self) -> tuple[float, float]:
        """See :class:`Geometry`."""
        return 1e-20, 1e30

    @cached_property
    def pairs(self) -> PairSpectra:
        """See :class:`Geometry`."""
        return FactoredPairs(self, self.factors)

    @property
    def pair_cost(self) -> tuple[int, int]:
        """See :class:`Geometry`."""
        return (0, 0) if self.diagonal else (self.dim**2, self.dim**3)

    @cached_property
    def precision_range(self) -> tuple[Tensor, Tensor]:
        """Bounds on λ_min(P_k) from below and λ_max(P_k) from above, shapes ``(K,)``."""
        if self.diagonal:
            square = self.factors.square()
            return square.amin(1) * (1 - gamma(2)), square.amax(1) * (1 + gamma(2))
        values = torch.empty_like(self.offsets_from_center)
        for k in class_ranges(self.num_classes, self.dim**2):
            values[k] = torch.linalg.svdvals(self.factors[k]).square()
        error = gamma(10 * self.dim) * self.factor_norms.square()  # LAPACK: a modest multiple of u‖A‖ per value
        return (values[:, -1] - error).clamp(min=0), values[:, 0] + error

    @property
    def bends(self) -> Tensor:
        """See :class:`Geometry`: upper bounds on λ_max(P_k), shape ``(K,)``."""
        return self.precision_range[1]

    def concavity_bounds(self) -> Tensor:
        """See :class:`Geometry`: λ_min(P_i − P_j) ≥ λ_min(P_i) − λ_max(P_j)."""
        smallest, largest = self.precision_range
        return (largest.unsqueeze(1) - smallest).clamp(min=0)

    @cached_property
    def _extreme_vectors(self) -> tuple[Tensor, Tensor]:
        """Eigenvectors of λ_max(P_k) and of λ_min(P_k), shapes ``(K, d)``; for full covariances."""
        top, bottom = torch.empty_like(self.offsets_from_center), torch.empty_like(self.offsets_from_center)
        for k in class_ranges(self.num_classes, self.dim**2):
            right = torch.linalg.svd(self.factors[k])[2]
            top[k], bottom[k] = right[:, 0], right[:, -1]
        return top, bottom

    def bound_energy(self, structure: Structure, prediction: Tensor, rival: Tensor) -> Tensor:
        """See :class:`Geometry`."""
        top, bottom = self._extreme_vectors
        return structure.energy(top[prediction], prediction) - structure.energy(bottom[rival], rival)


def grouped(classes: Tensor) -> Groups:
    """Return the order that sorts by class, the classes that occur, and how often."""
    order = classes.argsort()
    found, counts = torch.unique_consecutive(classes[order], return_counts=True)
    return order, found.tolist(), counts.tolist()


def apply_grouped(
    product: Callable[[Tensor, int, Tensor], object], v: Tensor, order: Tensor, found: list[int], counts: list[int]
) -> Tensor:
    """Return rows of products with matrices of their classes, grouped by class.

    Args:
        product: Writes the product of some rows with class k's matrix into its third argument.
        v: Shape ``(M, d)``.
        order: Permutation that sorts the rows by class.
        found: The classes that occur, ascending.
        counts: How often each occurs.
    """
    ordered, result = v[order], torch.empty_like(v)
    start = 0
    for k, count in zip(found, counts, strict=True):
        rows = slice(start, start + count)
        product(ordered[rows], k, result[rows])
        start += count
    return torch.empty_like(v).index_copy_(0, order, result)
