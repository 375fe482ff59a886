"""Randomness that belongs to an image: the same whatever batch, order, process or device it is handled in."""

from __future__ import annotations

import hashlib
from typing import Literal

import torch
from torch import Tensor


def image_generator(image: Tensor, seed: int) -> torch.Generator:
    """Return a CPU generator seeded by the image's pixels and ``seed``.

    A run that is resumed, or split over processes, so draws the same numbers for each image as an undisturbed one.

    Args:
        image: One image, any shape.
        seed: The user's seed.
    """
    content = image.detach().to("cpu", torch.float64).contiguous().numpy().tobytes()
    digest = hashlib.sha256(f"{seed}:{tuple(image.shape)}:".encode() + content).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


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
