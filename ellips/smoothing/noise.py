"""Gaussian noise that belongs to an image: the same whatever batch, order or process it is drawn in."""

from __future__ import annotations

import torch
from torch import Tensor

from ellips.randomness import image_seed

BLOCK = 32
"""Draws that are generated at once. Fixed: how a generator's numbers fall depends on how many are asked for."""


class ImageNoise:
    """A stream of noisy copies of one image.

    The noise depends on the image's pixels, the seed, the purpose and the kind of device (processor or GPU) alone.

    Args:
        image: Shape ``(C, H, W)``, floating point.
        sigma: Standard deviation of the noise.
        seed: Seed.
        purpose: Streams of different purposes are separate draws.
    """

    def __init__(self, image: Tensor, sigma: float, seed: int, purpose: str) -> None:
        self.image = image
        self.sigma = sigma
        self._generator = torch.Generator(image.device)
        self._generator.manual_seed(image_seed(image, seed, purpose))
        self._block = image.new_empty((BLOCK, *image.shape))
        self._used = BLOCK

    def fill(self, out: Tensor) -> None:
        """Write the next copies into ``out``, shape ``(n, C, H, W)``."""
        start = 0
        while start < len(out):
            if self._used == BLOCK:
                self._block.normal_(generator=self._generator)
                self._used = 0
            count = min(BLOCK - self._used, len(out) - start)
            noise = self._block[self._used : self._used + count]
            torch.add(self.image, noise, alpha=self.sigma, out=out[start : start + count])
            self._used += count
            start += count
