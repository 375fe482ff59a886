"""What the certificates need to know of a mixture, gathered once per mixture."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from ellips.certificates.pairs import PairSpectra
from ellips.certificates.parts import Parts
from ellips.certificates.rounding import gamma
from ellips.gaussians import Mixture

_AFFORDABLE_ELEMENTS = 2**24  # of all pairs' eigenvectors: about 0.2 GB with what goes with them
_AFFORDABLE_WORK = 2**32  # d³ for every pair: some seconds on a processor


class Geometry(Parts):
    """A mixture as the solvers see it: its tensors, and what is computed of them once."""

    @classmethod
    def of(cls, mixture: Mixture) -> Geometry:
        """Return the geometry of a fitted mixture, remembered until that changes."""

        def build() -> Geometry:
            center = mixture.means.mean(0)
            offsets_from_center = mixture.means - center
            return cls(
                mixture.factors,
                center,
                offsets_from_center,
                mixture.offsets,
                mixture.offset_sizes,
                mixture.whitening(),
                mixture.tiles(),
            )

        geometry: Geometry = mixture.derived("geometry", build)
        return geometry

    @cached_property
    def _pulling(self) -> dict[torch.dtype, Callable[[Tensor, slice, Tensor], None]]:
        return {}

    def pulling(self, dtype: torch.dtype) -> Callable[[Tensor, slice, Tensor], None]:
        """Return what fills P(z − μ) for a range of classes into a tensor of shape ``(N, K, d)``, given z − c.

        Args:
            dtype: Precision of the products; the mixture is rounded to it once.
        """
        if dtype not in self._pulling:
            with torch.inference_mode(False):
                self._pulling[dtype] = self._make_pulling(dtype)
        return self._pulling[dtype]

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

    def half_gradient_error(self, norm: Tensor, prediction: Tensor, rival: Tensor) -> Tensor:
        """Bound the error of b = P_rival(z − μ_rival) − P_prediction(z − μ_prediction) as computed in float64.

        Args:
            norm: ‖z − c‖, of a shape that broadcasts with the others.
            prediction: Class indices.
            rival: Class indices.
        """
        reach = [self.factor_norms[k].square() * (norm + self.mean_norms[k]) for k in (prediction, rival)]
        return gamma(2 * self.dim + 8) * (reach[0] + reach[1])

    @cached_property
    def pairs(self) -> PairSpectra:
        """Decomposed differences of precisions."""
        return PairSpectra(self)

    @cached_property
    def precision_range(self) -> tuple[Tensor, Tensor]:
        """Bounds on λ_min(P_k) from below and λ_max(P_k) from above, shapes ``(K,)``."""
        if self.diagonal:
            square = self.factors.square()
            return square.amin(1) * (1 - gamma(2)), square.amax(1) * (1 + gamma(2))
        values = torch.linalg.svdvals(self.factors).square()
        error = gamma(10 * self.dim) * self.factor_norms.square()  # LAPACK: a modest multiple of u‖A‖ per value
        return (values[:, -1] - error).clamp(min=0), values[:, 0] + error

    @cached_property
    def extreme_vectors(self) -> tuple[Tensor, Tensor]:
        """Eigenvectors of λ_max(P_k) and of λ_min(P_k), shapes ``(K, d)``; for full covariances."""
        right = torch.linalg.svd(self.factors)[2]
        return right[:, 0], right[:, -1]

    @cached_property
    def affordable(self) -> bool:
        """Whether all K(K−1)/2 differences of precisions may be decomposed and kept."""
        pairs = self.num_classes * (self.num_classes - 1) // 2
        fits, quick = pairs * self.dim**2 <= _AFFORDABLE_ELEMENTS, pairs * self.dim**3 <= _AFFORDABLE_WORK
        return self.diagonal or (fits and quick)

    @cached_property
    def concavity(self) -> Tensor:
        """Upper bounds on (−λ_min(P_i − P_j))₊ for prediction j and rival i, at ``[j, i]``, shape ``(K, K)``.

        From the decomposed differences where they are affordable, else by Weyl's inequality,
        λ_min(P_i − P_j) ≥ λ_min(P_i) − λ_max(P_j), which makes radii smaller but never unsound.
        """
        classes = self.num_classes
        smallest, largest = self.precision_range
        if not self.affordable:
            return (largest.unsqueeze(1) - smallest).clamp(min=0)
        low, high = torch.triu_indices(classes, classes, offset=1, device=smallest.device)
        concavity = smallest.new_zeros(classes, classes)
        concavity[low, high] = (-self.pairs.lowest(low, high)).clamp(min=0)
        concavity[high, low] = (-self.pairs.lowest(high, low)).clamp(min=0)
        return concavity
