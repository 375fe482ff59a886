"""What the certificates need to know of a mixture, gathered once per mixture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ellips.certificates.pairs import PairSpectra
from ellips.certificates.rounding import gamma

if TYPE_CHECKING:
    from ellips.classifier import Ellips


@dataclass
class Geometry:
    """A mixture as the solvers see it; all tensors are float64 and carry no gradient.

    Attributes:
        factors: A_k, shape ``(K, d, d)`` or ``(K, d)``.
        center: c, the mean of the means, shape ``(d,)``.
        offsets_from_center: ν_k = μ_k − c, shape ``(K, d)``.
        offsets: Constant parts of the scores, shape ``(K,)``.
        whiten: The classifier's own map from z and a range of classes to A_k(z − μ_k).
        tiles: Ranges of classes to whiten at a time.
    """

    factors: Tensor
    center: Tensor
    offsets_from_center: Tensor
    offsets: Tensor
    whiten: Callable[[Tensor, slice], Tensor]
    tiles: list[slice]

    @classmethod
    def of(cls, ellips: Ellips) -> Geometry:
        """Return the geometry of a fitted classifier, remembered until its mixture changes."""

        def build() -> Geometry:
            center = ellips.means.mean(0)
            offsets_from_center = ellips.means - center
            return cls(ellips.factors, center, offsets_from_center, ellips.offsets, ellips.whitening(), ellips.tiles())

        geometry: Geometry = ellips.derived("geometry", build)
        return geometry

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.factors)

    @property
    def dim(self) -> int:
        """Width d of the latents."""
        return self.factors.shape[-1]

    @property
    def diagonal(self) -> bool:
        """Whether the covariances are diagonal."""
        return self.factors.ndim == 2

    @cached_property
    def factor_norms(self) -> Tensor:
        """‖A_k‖_F, shape ``(K,)``."""
        norms: Tensor = self.factors.flatten(1).norm(dim=1)
        return norms

    @cached_property
    def mean_norms(self) -> Tensor:
        """‖μ_k − c‖, shape ``(K,)``."""
        norms: Tensor = self.offsets_from_center.norm(dim=1)
        return norms

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
