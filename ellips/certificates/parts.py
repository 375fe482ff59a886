"""The tensors of a mixture that the solvers start from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor


@dataclass
class Parts:
    """A mixture's tensors as the solvers see them: float64, without gradients.

    Attributes:
        factors: A_k, shape ``(K, d, d)`` or ``(K, d)``.
        center: c, the mean of the means, shape ``(d,)``.
        offsets_from_center: ν_k = μ_k − c, shape ``(K, d)``.
        offsets: Constant parts of the scores, shape ``(K,)``.
        offset_sizes: Sums of the absolute values they are made of, shape ``(K,)``.
        whiten: The mixture's own map from z and a range of classes to A_k(z − μ_k).
        tiles: Ranges of classes to whiten at a time.
    """

    factors: Tensor
    center: Tensor
    offsets_from_center: Tensor
    offsets: Tensor
    offset_sizes: Tensor
    whiten: Callable[[Tensor, slice], Tensor]
    tiles: list[slice]

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
