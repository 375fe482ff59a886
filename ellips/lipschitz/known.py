"""A constant that the user has proved elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor

from ellips.lipschitz.base import ImageMap, LipschitzBound, LipschitzSource
from ellips.types import SOUNDNESS_ORDER, Soundness


class KnownConstant(LipschitzSource):
    """A given constant, the same for every image. The responsibility for it is the user's.

    Args:
        constant: Lipschitz constant of image -> latent, preprocessing included.
        ball_radius: L2 radius of the ball around each image on which it holds; inf means everywhere.
        soundness: What the constant is worth.
        reason: Why it holds; written beside the result.

    Raises:
        ValueError: If a number is negative or NaN, the soundness unknown, or ``exact`` (there is an encoder).
    """

    def __init__(
        self,
        constant: float,
        ball_radius: float = float("inf"),
        soundness: Soundness = "deterministic",
        reason: str = "given by the user",
    ) -> None:
        if not constant >= 0:
            raise ValueError(f"Expected `constant` to be at least 0 but got {constant}.")
        if not ball_radius >= 0:
            raise ValueError(f"Expected `ball_radius` to be at least 0 but got {ball_radius}.")
        if soundness not in SOUNDNESS_ORDER[1:]:
            raise ValueError(
                f"Expected `soundness` to be one of {SOUNDNESS_ORDER[1:]} but got {soundness!r}; a constant stands "
                "for an encoder, and `exact` means that there is none."
            )
        self.constant = constant
        self.ball_radius = ball_radius
        self.soundness: Soundness = soundness
        self.reason = reason

    def bound(self, function: ImageMap, images: Tensor) -> LipschitzBound:
        """Return the constant once per image; see :meth:`LipschitzSource.__call__`."""
        constant = torch.full((len(images),), self.constant, dtype=torch.float64, device=images.device)
        return LipschitzBound(
            constant=constant,
            ball_radius=torch.full_like(constant, self.ball_radius),
            soundness=self.soundness,
            source=f"KnownConstant({self.constant:g}: {self.reason})",
        )
