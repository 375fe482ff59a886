"""Gaussian noise that belongs to an image: the same whatever batch, order or process it is drawn in.

It is drawn and added in float64, and the sum is rounded to float32 once, whatever the image's type. Noise has a last
bit, too, so that a sum in float32 keeps last bits of the image where it comes near 0. A network that looks at these
tells images apart that are 1e-6 from each other, whatever the noise (Jin et al., arXiv 2205.10159; Voracek and Hein,
arXiv 2207.07209).
"""

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
        self._copies = image.new_empty((BLOCK, *image.shape))
        self._used = BLOCK

    def fill(self, out: Tensor) -> None:
        """Write the next copies into ``out``, shape ``(n, C, H, W)``."""
        start = 0
        while start < len(out):
            if self._used == BLOCK:
                add_noise(self.image, self._draw(), self.sigma, self._copies)
                self._used = 0
            count = min(BLOCK - self._used, len(out) - start)
            out[start : start + count] = self._copies[self._used : self._used + count]
            self._used += count
            start += count

    def _draw(self) -> Tensor:
        noise = torch.empty(self._copies.shape, dtype=torch.float64, device=self.image.device)
        return noise.normal_(generator=self._generator)


def add_noise(image: Tensor, noise: Tensor, sigma: float, out: Tensor | None = None) -> Tensor:
    """Return noisy copies of an image, in its type, with the digits of float32.

    Args:
        image: Shape ``(C, H, W)``, floating point.
        noise: Shape ``(n, C, H, W)``, standard normal, float64.
        sigma: Standard deviation.
        out: Written to, of the copies' shape.
    """
    out = image.new_empty(noise.shape) if out is None else out
    return out.copy_(torch.add(image, noise, alpha=sigma).float())
