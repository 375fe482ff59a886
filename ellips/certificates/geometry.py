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


class Geometry(Parts):
    """A mixture as the solvers see it: its tensors, and what is computed of them once."""

    @classmethod
    def of(cls, mixture: Mixture) -> Geometry:
        """Return the geometry of a fitted classifier, remembered until its mixture changes."""

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

    def gradient_error(self, norm: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """Bound the error of P_second(z − μ_second) − P_first(z − μ_first) as computed in float64.

        Args:
            norm: ‖z − c‖, of a shape that broadcasts with the others.
            first: Class indices.
            second: Class indices.
        """
        reach = [self.factor_norms[k].square() * (norm + self.mean_norms[k]) for k in (first, second)]
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
        """Whether all K(K−1)/2 differences of precisions may be decomposed and kept (about 0.2 GB, some seconds)."""
        pairs = self.num_classes * (self.num_classes - 1) // 2
        return self.diagonal or (pairs * self.dim**2 <= 2**24 and pairs * self.dim**3 <= 2**32)

    @cached_property
    def curvature(self) -> Tensor:
        """Upper bounds on (−λ_min(P_i − P_j))₊ for prediction j and rival i, at ``[j, i]``, shape ``(K, K)``.

        From the decomposed differences where they are affordable, else by Weyl's inequality,
        λ_min(P_i − P_j) ≥ λ_min(P_i) − λ_max(P_j), which makes radii smaller but never unsound.
        """
        classes = self.num_classes
        low, high = self.precision_range
        if not self.affordable:
            return (high.unsqueeze(1) - low).clamp(min=0)
        first, second = torch.triu_indices(classes, classes, offset=1, device=low.device)
        curvature = low.new_zeros(classes, classes)
        curvature[first, second] = (-self.pairs.lowest(first, second)).clamp(min=0)
        curvature[second, first] = (-self.pairs.lowest(second, first)).clamp(min=0)
        return curvature
