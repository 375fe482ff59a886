"""Randomness that belongs to an image: the same whatever batch, order or process it is handled in."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def image_seed(image: Tensor, seed: int, purpose: str = "") -> int:
    """Return a 64-bit number made from the image's pixels, ``seed`` and ``purpose``.

    Args:
        image: One image, any shape.
        seed: The user's seed.
        purpose: Numbers for different purposes have nothing to do with each other.
    """
    content = image.detach().to("cpu", torch.float64).contiguous().numpy().tobytes()
    digest = hashlib.sha256(f"{seed}:{purpose}{tuple(image.shape)}:".encode() + content).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


def image_generator(image: Tensor, seed: int) -> torch.Generator:
    """Return a CPU generator seeded by the image's pixels and ``seed``.

    A run that is resumed, or split over processes, so draws the same numbers for each image as an undisturbed one.

    Args:
        image: One image, any shape.
        seed: The user's seed.
    """
    return torch.Generator().manual_seed(image_seed(image, seed))
