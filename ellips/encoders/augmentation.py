"""What training images go through, a batch at a time, on their device, drawn from a generator of their own."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


def step_generator(device: torch.device, *numbers: int) -> torch.Generator:
    """Return a generator seeded by non-negative numbers, such as the run's seed, the step and the process.

    A resumed run draws at each step what an undisturbed one would have drawn.
    """
    seed = np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(seed >> np.uint64(1)))


def add_noise(images: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    """Add Gaussian noise of standard deviation ``sigma``; nothing is cut off at 0 and 1, as in certification."""
    noise = torch.randn(images.shape, generator=generator, device=images.device, dtype=images.dtype)
    return images + sigma * noise


def flip_and_shift(images: Tensor, flip: bool, shift: int, generator: torch.Generator) -> Tensor:
    """Mirror each image left to right with probability 1/2 and move it by up to ``shift`` pixels (He et al. 2016).

    Args:
        images: Shape ``(N, C, H, W)``.
        flip: Whether to mirror.
        shift: Largest move along height and width; pixels that come in are 0.
        generator: On the images' device.

    Returns:
        Shape ``(N, C, H, W)``, channels last in memory.
    """
    count, _, height, width = images.shape
    device = images.device
    rows = torch.arange(height, device=device).expand(count, -1)
    columns = torch.arange(width, device=device).expand(count, -1)
    if flip:
        mirrored = torch.rand(count, 1, generator=generator, device=device) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    if shift:
        images = functional.pad(images, (shift,) * 4)
        moves = torch.randint(2 * shift + 1, (2, count, 1), generator=generator, device=device)
        rows, columns = rows + moves[0], columns + moves[1]
    elif not flip:
        return images
    which = torch.arange(count, device=device)[:, None, None]
    picked: Tensor = images.permute(0, 2, 3, 1)[which, rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2)


def cut_out(images: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Blank one square of each image, around a pixel at random and cut off at the edges (DeVries and Taylor 2017).

    Args:
        images: Shape ``(N, C, H, W)``.
        side: Side of the square in pixels; 0: none.
        generator: On the images' device.

    Returns:
        The same shape; blank is 0.5.
    """
    if not side:
        return images
    count, _, height, width = images.shape
    device = images.device

    def within(size: int) -> Tensor:
        first = torch.randint(size, (count, 1), generator=generator, device=device) - side // 2
        places = torch.arange(size, device=device)
        return (places >= first) & (places < first + side)

    square = within(height)[:, None, :, None] & within(width)[:, None, None, :]
    return images.masked_fill(square, 0.5)
