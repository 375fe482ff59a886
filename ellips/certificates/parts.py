"""The tensors of a mixture that the solvers start from, and what they make of it first."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from torch import Tensor


class Scores(NamedTuple):
    """What a geometry tells of N points and all classes.

    Attributes:
        prediction: Shape ``(N,)``.
        scores: Computed scores, shape ``(N, K)``.
        score_errors: Bounds on their errors, shape ``(N, K)``.
        half_gradient_norms: Upper bounds on ‖b‖ for every rival, shape ``(N, K)``.
        point_norms: ‖z − c‖, shape ``(N,)``.
    """

    prediction: Tensor
    scores: Tensor
    score_errors: Tensor
    half_gradient_norms: Tensor
    point_norms: Tensor


@dataclass
class Parts(ABC):
    """A mixture's tensors as the solvers see them: float64, without gradients.

    Attributes:
        center: c, the mean of the means, shape ``(d,)``.
        offsets_from_center: ν_k = μ_k − c, shape ``(K, d)``.
        offsets: Constant parts of the scores, shape ``(K,)``.
        offset_sizes: Sums of the absolute values they are made of, shape ``(K,)``.
    """

    center: Tensor
    offsets_from_center: Tensor
    offsets: Tensor
    offset_sizes: Tensor

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.offsets)

    @property
    def dim(self) -> int:
        """Width d of the latents."""
        return len(self.center)

    @cached_property
    @abstractmethod
    def factor_norms(self) -> Tensor:
        """What bounds precisions and their rounding: at least ‖P_k‖^½ and ‖A_k‖_F, shape ``(K,)``."""

    @cached_property
    def energies(self) -> Tensor:
        """What bounds the rounding of P_k v, up to what all classes share, per unit of ‖v‖, shape ``(K,)``."""
        return self.factor_norms.square()

    @cached_property
    def mean_norms(self) -> Tensor:
        """‖μ_k − c‖, shape ``(K,)``."""
        norms: Tensor = self.offsets_from_center.norm(dim=1)
        return norms
