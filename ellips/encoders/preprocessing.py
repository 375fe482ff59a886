"""From images at dataset resolution to what an encoder takes: channels, size, normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from ellips.validation import one_of

INTERPOLATIONS: Final = ("bilinear", "bicubic", "nearest-exact")


class Preprocess(nn.Module):
    """Expand grey to RGB, resize the whole image, normalise.

    It is part of the certified map: a radius is measured before it, on [0, 1] values at dataset resolution.

    Args:
        in_channels: Channels the encoder takes, 1 or 3. Grey images are repeated for an encoder that takes 3.
        size: ``(height, width)`` the encoder takes, or None to leave images as they come.
        mean: One value per channel, subtracted. None subtracts nothing.
        std: One value per channel, divided by. None divides by nothing.
        interpolation: One of :data:`INTERPOLATIONS`; downscaling is antialiased, as in Pillow.

    Raises:
        ValueError: If an argument is out of its range.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        in_channels: int = 3,
        size: tuple[int, int] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        interpolation: str = "bicubic",
    ) -> None:
        super().__init__()
        one_of((1, 3), in_channels=in_channels)
        if size is not None and min(size) < 1:
            raise ValueError(f"Expected `size` to be positive but got {size}.")
        one_of(INTERPOLATIONS, interpolation=interpolation)
        self.in_channels = in_channels
        self.size = size
        self.interpolation = interpolation
        # Not persistent: a backbone's state dict should load into the encoder whatever the preprocessing.
        self.register_buffer("mean", _per_channel("mean", mean, in_channels, 0.0), persistent=False)
        self.register_buffer("std", _per_channel("std", std, in_channels, 1.0), persistent=False)
        if not bool((self.std > 0).all()):
            raise ValueError(f"Expected `std` to be positive but got {std}.")

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(N, C, H, W)`` with values in [0, 1] to the encoder's input ``(N, in_channels, *size)``.

        Raises:
            TypeError: If the images are not floating point.
            ValueError: If their shape does not fit.
        """
        if not images.is_floating_point():
            raise TypeError(
                f"Expected images to be floating point with values in [0, 1] but got {images.dtype}; "
                "divide 8-bit images by 255."
            )
        if images.ndim != 4 or images.shape[1] not in (1, self.in_channels):
            raise ValueError(
                f"Expected images of shape (N, C, H, W) with C in {sorted({1, self.in_channels})} but got "
                f"{tuple(images.shape)}."
            )
        images = images.to(self.mean.dtype)
        if self.size is not None and tuple(images.shape[-2:]) != self.size:
            images = self._resize(images)
        # Broadcasting against (in_channels, 1, 1) repeats a grey channel after the resize, when it costs least.
        return (images - self.mean) / self.std

    def _resize(self, images: Tensor) -> Tensor:
        antialias = self.interpolation in ("bilinear", "bicubic")
        return functional.interpolate(images, size=self.size, mode=self.interpolation, antialias=antialias)

    def describe(self) -> str:
        """One line that names everything the result depends on."""
        size = "as it comes" if self.size is None else f"{self.size[0]}x{self.size[1]} {self.interpolation}"
        mean, std = (",".join(f"{value:.8g}" for value in x.flatten().tolist()) for x in (self.mean, self.std))
        return f"channels={self.in_channels}; size={size}; mean={mean}; std={std}"


def _per_channel(name: str, values: Sequence[float] | None, channels: int, default: float) -> Tensor:
    values = [default] * channels if values is None else list(values)
    if len(values) != channels:
        raise ValueError(f"Expected `{name}` to have {channels} values, one per channel, but got {values}.")
    return torch.tensor(values, dtype=torch.float32).reshape(-1, 1, 1)
