"""Directions and points drawn at random, for estimates."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ellips.randomness import image_generator


def random_directions(images: Tensor, dim: int, seed: int) -> Tensor:
    """Draw one Gaussian vector ``(dim,)`` per image, of the images' dtype and device."""
    drawn = [torch.randn(dim, generator=image_generator(image, seed), dtype=torch.float64) for image in images]
    return torch.stack(drawn).to(images) if drawn else images.new_empty(0, dim)


Sampling = Literal["volume", "radial"]
"""How points of a ball are drawn: uniform by volume (in high dimension all lie on the shell), or uniform in radius."""


def sample_ball(
    count: int, shape: torch.Size, radius: float, generator: torch.Generator, sampling: Sampling = "volume"
) -> Tensor:
    """Draw points from the L2 ball around the origin, in directions without preference.

    Args:
        count: Number of points.
        shape: Shape of one point, with D elements in all.
        radius: Radius of the ball.
        generator: A CPU generator.
        sampling: ``volume``: uniform by volume, the median norm is ``radius * 0.5 ** (1 / D)``. ``radial``: the norm
            itself is uniform between 0 and ``radius``.

    Returns:
        Shape ``(count, *shape)``, float64, on the CPU.
    """
    direction = torch.randn((count, shape.numel()), generator=generator, dtype=torch.float64)
    length = torch.rand((count, 1), generator=generator, dtype=torch.float64)
    if sampling == "volume":
        length = length.pow(1 / shape.numel())
    scaled = direction * (radius * length / torch.linalg.vector_norm(direction, dim=1, keepdim=True))
    points: Tensor = scaled.reshape(count, *shape)
    return points
