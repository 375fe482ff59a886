"""What training images go through, a batch at a time, on their device, drawn from a generator of their own."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


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

    What comes in at an edge is the image's reflection; with black there, 1-Lipschitz encoders certify less.

    Args:
        images: Shape ``(N, C, H, W)``.
        flip: Whether to mirror.
        shift: Largest move along height and width, below both.
        generator: On the images' device.

    Returns:
        Shape ``(N, C, H, W)``, channels last in memory.

    Raises:
        ValueError: If images are too small to be moved so far.
    """
    count, _, height, width = images.shape
    if shift >= min(height, width):
        raise ValueError(f"Expected a shift below {min(height, width)}, the images' shorter side, but got {shift}.")
    if not flip and not shift:
        return images
    device = images.device
    rows = torch.arange(height, device=device).expand(count, -1)
    columns = torch.arange(width, device=device).expand(count, -1)
    if flip:
        mirrored = torch.rand(count, 1, generator=generator, device=device) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    if shift:
        moves = torch.randint(-shift, shift + 1, (2, count, 1), generator=generator, device=device)
        rows, columns = _reflected(rows + moves[0], height), _reflected(columns + moves[1], width)
    which = torch.arange(count, device=device)[:, None, None]
    picked: Tensor = images.permute(0, 2, 3, 1)[which, rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2)


def _reflected(places: Tensor, size: int) -> Tensor:
    """Return where places from ``1 - size`` to ``2 size - 2`` are after reflection at the first and the last one."""
    last = size - 1
    return last - (last - places.abs()).abs()


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
