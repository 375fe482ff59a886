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
from ellips.certificates.rounding import gamma, score_error, whitened_error
from ellips.gaussians import Mixture
from ellips.gaussians.structures import Structure, class_tiles, square_norm

_AFFORDABLE_ELEMENTS = 2**24  # of all pairs' eigenvectors: about 0.2 GB with what goes with them
_AFFORDABLE_WORK = 2**32  # d³ for every pair: some seconds on a processor
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
    def held(self) -> int:
        """Numbers that :meth:`score` holds for each point."""

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

    Attributes:
        factors: A_k, shape ``(K, d, d)`` or ``(K, d)``.
        whiten: The mixture's own map from z and a range of classes to A_k(z − μ_k).
    """

    factors: Tensor
    whiten: Callable[[Tensor, slice], Tensor]

    @classmethod
    def of(cls, mixture: Mixture, factors: Tensor, whiten: Callable[[Tensor, slice], Tensor]) -> FactoredGeometry:
        """Return the geometry of a fitted mixture."""
        center = mixture.means.mean(0)
        return cls(center, mixture.means - center, mixture.offsets, mixture.offset_sizes, factors, whiten)

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
        dim, tiles = self.dim, class_tiles(self.num_classes, self.dim)
        squares = torch.cat([square_norm(self.whiten(z, k)) for k in tiles], dim=1)
        scores = self.offsets - squares
        prediction = scores.argmax(1)
        x = z - self.center
        computed = self._half_gradient_norms(x.to(dtype), prediction, tiles)
        norms = x.norm(dim=1)
        distances = squares.sqrt_()
        errors = whitened_error(dim, self.factor_norms, norms.unsqueeze(1), self.mean_norms)
        score_errors = score_error(dim, distances, errors, self.offset_sizes)
        slip = gamma(2 * dim + 8, dtype) * self.factor_norms.square() * (norms.unsqueeze(1) + self.mean_norms)
        slip = slip + slip.gather(1, prediction.unsqueeze(1))
        return Scores(prediction, scores, score_errors, computed.mul_(1 + gamma(dim + 4, dtype)) + slip, norms)

    def _half_gradient_norms(self, x: Tensor, prediction: Tensor, tiles: list[slice]) -> Tensor:
        """‖b_k‖, b_k = P_k(z − μ_k) − P_{i*}(z − μ_{i*}), as computed in the precision of x, shape ``(N, K)``."""
        pull = self._pulling(x.dtype)
        pulls = x.new_empty(len(x), self.num_classes, self.dim)
        for k in tiles:
            pull(x, k, pulls)
        pulls -= pulls[torch.arange(len(x), device=x.device), prediction].unsqueeze(1)
        norms: Tensor = torch.linalg.vector_norm(pulls, dim=-1).double()
        return norms

    @cached_property
    def _pullings(self) -> dict[torch.dtype, Callable[[Tensor, slice, Tensor], None]]:
        return {}

    def _pulling(self, dtype: torch.dtype) -> Callable[[Tensor, slice, Tensor], None]:
        """Return what fills P(z − μ) for a range of classes into a tensor of shape ``(N, K, d)``, given z − c.

        Args:
            dtype: Precision of the products; the mixture is rounded to it once.
        """
        if dtype not in self._pullings:
            with torch.inference_mode(False):
                self._pullings[dtype] = self._make_pulling(dtype)
        return self._pullings[dtype]

    @cached_property
    def _precisions(self) -> dict[torch.dtype, Tensor]:
        return {}

    def precisions_in(self, dtype: torch.dtype) -> Tensor:
        """Return P_k, shape ``(K, d, d)``, in float32 or float64; for full covariances."""
        if dtype not in self._precisions:
            with torch.inference_mode(False):
                self._precisions[dtype] = (self.factors.mT @ self.factors).to(dtype)
        return self._precisions[dtype]

    def _make_pulling(self, dtype: torch.dtype) -> Callable[[Tensor, slice, Tensor], None]:
        dim = self.dim
        if self.diagonal:
            squares = self.factors.square().to(dtype)
            scaled = squares * self.offsets_from_center.to(dtype)

            def pull_diagonal(x: Tensor, k: slice, pulls: Tensor) -> None:
                torch.mul(x.unsqueeze(1), squares[k], out=pulls[:, k]).sub_(scaled[k])

            return pull_diagonal
        precisions = self.precisions_in(torch.float64)
        shifted = (precisions @ self.offsets_from_center.unsqueeze(-1)).reshape(1, -1).to(dtype)
        stacked = self.precisions_in(dtype).reshape(-1, dim).mT

        def pull(x: Tensor, k: slice, pulls: Tensor) -> None:
            columns = slice(k.start * dim, k.stop * dim)
            flat = pulls.flatten(1)[:, columns]
            torch.addmm(shifted[:, columns], x, stacked[:, columns], beta=-1, out=flat)

        return pull

    def pull(self, x: Tensor, classes: Tensor) -> Tensor:
        """See :class:`Geometry`."""
        return self.apply(x - self.offsets_from_center[classes], grouped(classes))

    def apply(self, v: Tensor, groups: Groups) -> Tensor:
        """See :class:`Geometry`."""
        matrices = self.precisions_in(v.dtype)
        return apply_grouped(lambda rows, k, out: torch.mm(rows, matrices[k], out=out), v, *groups)

    def half_gradient_error(self, norm: Tensor, prediction: Tensor, rival: Tensor) -> Tensor:
        """See :class:`Geometry`."""
        reach = [self.factor_norms[k].square() * (norm + self.mean_norms[k]) for k in (prediction, rival)]
        return gamma(2 * self.dim + 8) * (reach[0] + reach[1])

    @property
    def held(self) -> int:
        """See :class:`Geometry`: P_k(z − μ_k) of all classes, which wait until the prediction is known."""
        return self.num_classes * self.dim

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
        values = torch.linalg.svdvals(self.factors).square()
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
        right = torch.linalg.svd(self.factors)[2]
        return right[:, 0], right[:, -1]

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
