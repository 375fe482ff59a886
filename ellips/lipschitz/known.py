"""A constant that the user has proved elsewhere."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ellips.lipschitz.base import ConstantSource
from ellips.types import SOUNDNESS_ORDER, ImageMap, LipschitzBound, Soundness
from ellips.validation import at_least


@dataclass(frozen=True)
class KnownConstant(ConstantSource):
    """A given constant, the same for every image. The responsibility for it is the user's.

    Args:
        constant: Lipschitz constant of image -> latent, preprocessing included.
        ball_radius: L2 radius of the ball around each image on which it holds; inf means everywhere.
        soundness: What the constant is worth.
        reason: Why it holds; written beside the result.

    Raises:
        ValueError: If a number is negative or NaN, the soundness unknown, or ``exact`` (there is an encoder).
    """

    constant: float
    ball_radius: float = float("inf")
    soundness: Soundness = "deterministic"
    reason: str = "given by the user"

    def __post_init__(self) -> None:
        at_least(0, constant=self.constant, ball_radius=self.ball_radius)
        if self.soundness not in SOUNDNESS_ORDER[1:]:
            raise ValueError(
                f"Expected `soundness` to be one of {SOUNDNESS_ORDER[1:]} but got {self.soundness!r}; a constant "
                "stands for an encoder, and `exact` means that there is none."
            )

    def bound(self, function: ImageMap, images: Tensor) -> LipschitzBound:
        """Return the constant once per image; see :meth:`ConstantSource.__call__`."""
        constant = torch.full((len(images),), self.constant, dtype=torch.float64, device=images.device)
        return LipschitzBound(
            constant=constant,
            ball_radius=torch.full_like(constant, self.ball_radius),
            soundness=self.soundness,
            source=repr(self),
        )
