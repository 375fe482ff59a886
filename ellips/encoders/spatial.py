"""What LipNeXt does with pixels and channels besides products: isometries and contractions of maps ``(N, H, W, C)``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

GREY = 0.5  # what is subtracted of pixels: a translation
_DIRECTIONS = ((1, 1), (-1, 1), (1, 2), (-1, 2))  # by how many pixels, along which axis of (N, H, W, C)


@dataclass(frozen=True)
class StageSizes:
    """Sizes of a stage of blocks.

    Attributes:
        patch: Side of the squares of pixels that channels are made of.
        pool: Side of the squares that norms are taken over before.
        channels: That squares have, before zeros are added.
        width: Channels of the blocks.
        height: Of the maps of the blocks.
        breadth: Of these, too.
        depth: Blocks.
        absolute: Channels that the absolute value is taken of.
    """

    patch: int
    pool: int
    channels: int
    width: int
    height: int
    breadth: int
    depth: int
    absolute: int


def space_to_depth(maps: Tensor, patch: int) -> Tensor:
    """Make channels of squares of pixels: the same numbers elsewhere, an isometry.

    Args:
        maps: Shape ``(N, H, W, C)``.
        patch: Side p of the squares.

    Returns:
        Shape ``(N, H / p, W / p, p p C)``.
    """
    count, height, width, channels = maps.shape
    split = maps.reshape(count, height // patch, patch, width // patch, patch, channels)
    return split.permute(0, 1, 3, 2, 4, 5).reshape(count, height // patch, width // patch, patch**2 * channels)


def shift(maps: Tensor) -> Tensor:
    """Move five groups of channels around the torus: not at all, down, up, right, left; an isometry.

    Args:
        maps: Shape ``(N, H, W, C)``; the first group has what does not divide by five.
    """
    groups = _groups(maps.shape[-1], maps.shape[-1] // 5)
    pieces = maps.split([size for _, size in groups], -1)
    return torch.cat([moved(piece, way) for (way, _), piece in zip(groups, pieces, strict=True)], -1)


def moved(group: Tensor, way: int) -> Tensor:
    """Move a group of channels around the torus: not at all, down, up, right, left, by its number from 0 to 4."""
    return group.roll(*_DIRECTIONS[way - 1]) if way else group


def exchanged(forward: Tensor, backward: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Move two groups of channels along an axis, where what leaves one at an edge comes into the other there.

    So waves are reflected at a wall. The same numbers elsewhere: an isometry of both together.

    Args:
        forward: Shape ``(N, H, W, C)``; moves by one pixel.
        backward: The same shape; moves by one the other way.
        axis: 1 or 2.

    Returns:
        Both after the move.
    """
    last = forward.shape[axis] - 1
    first, rest = backward.split([1, last], axis)
    most, end = forward.split([last, 1], axis)
    return torch.cat([first, most], axis), torch.cat([rest, end], axis)


def moved_groups(pieces: Sequence[Tensor], ways: Sequence[int], reflecting: bool = False) -> list[Tensor]:
    """Move groups of channels, each by :func:`moved`; or reflect them, by :func:`exchanged` with the opposite one.

    Args:
        pieces: Shape ``(N, H, W, C_i)`` each; opposite groups stand beside each other, and are of one size.
        ways: Where each moves.
        reflecting: Whether to reflect.
    """
    if not reflecting:
        return [moved(piece, way) for piece, way in zip(pieces, ways, strict=True)]
    found = list(pieces)
    for index, way in enumerate(ways):
        if way in (1, 3):
            opposite = pieces[index + 1]
            found[index], found[index + 1] = exchanged(pieces[index], opposite, axis=_DIRECTIONS[way - 1][1])
    return found


def absolute_and_shift(maps: Tensor, count: int, pairs: bool = False, reflecting: bool = False) -> Tensor:
    """Take the absolute value of the first ``count`` channels, and move groups of channels.

    A contraction, number by number. One split and one join do for both, and groups that move have a multiple of eight
    channels where that leaves any, as the registers of processors do: both make it faster.

    Args:
        maps: Shape ``(N, H, W, C)``.
        count: At most C.
        pairs: Move groups of pairs, a fourth of the channels without absolute value in each direction; C and ``count``
            are even. Else five groups of the channels with absolute value and five of the others.
        reflecting: Reflect what moves out at an edge, into the group that moves the other way, not around the torus.
    """
    rest = maps.shape[-1] - count
    absolute = [(0, count)] if pairs else fast_groups(count, 5)
    others = [(way, 2 * size) for way, size in fast_groups(rest // 2, 4)] if pairs else fast_groups(rest, 5)
    pieces = maps.split([size for _, size in (*absolute, *others)], -1)
    folded = [piece.abs() for piece in pieces[: len(absolute)]]
    ways = [way for way, _ in (*absolute, *others)]
    return torch.cat(moved_groups((*folded, *pieces[len(folded) :]), ways, reflecting), -1)


def fast_groups(channels: int, parts: int) -> list[tuple[int, int]]:
    """Return where groups of channels move, by :func:`moved`, and how many there are in each, without empty ones.

    Args:
        channels: How many there are.
        parts: A channel in so many moves in each direction; those that move have a multiple of eight, if above eight.
    """
    size = channels // parts
    return _groups(channels, size - size % 8 if size > 8 else size)


def _groups(channels: int, moving: int) -> list[tuple[int, int]]:
    sizes = (channels - 4 * moving, *[moving] * 4)
    return [(way, size) for way, size in enumerate(sizes) if size]


def partial_absolute(values: Tensor, count: int) -> Tensor:
    """Take the absolute value of the first ``count`` channels, the last axis: 1-Lipschitz, number by number."""
    if count == values.shape[-1]:
        return values.abs()
    first, rest = values.split([count, values.shape[-1] - count], -1)
    return torch.cat([first.abs(), rest], -1)


def pooled(maps: Tensor, rows: int = 1, columns: int = 1) -> Tensor:
    """Return the L2 norm of each channel over parts of the space, at least in float32.

    1-Lipschitz by the triangle inequality, part by part. Its gradient has norm 1, and is 0 where all pixels are 0.

    Args:
        maps: Shape ``(N, H, W, C)``.
        rows: Parts side by side along the height, which they divide.
        columns: Along the width.

    Returns:
        Shape ``(N, rows, columns, C)``.
    """
    wide = maps if maps.dtype in (torch.float32, torch.float64) else maps.float()
    count, height, width, channels = maps.shape
    parts = wide.reshape(count, rows, height // rows, columns, width // columns, channels)
    norms: Tensor = torch.linalg.vector_norm(parts, dim=(2, 4))
    return norms
