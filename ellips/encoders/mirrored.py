"""LipNeXt whose features are the same for an image and its mirror image, trained at half the products.

Each channel has a partner: what it is for an image, the partner is for the mirror image, and the other way round, both
left to right. Such a network is trained in sums and differences of partners, times √½ each, an isometry, which are
called even and odd here: its matrices turn even channels among themselves, and odd ones, so that two matrices of half
the width do for one (Bökman, Nordström and Kahl, ICML 2025). Written out it is a LipNeXt as any other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ellips.encoders.orthogonal import OrthonormalRows, random_orthogonal
from ellips.encoders.spatial import GREY, StageSizes, fast_groups, moved_groups, pooled, space_to_depth

_ROOT_HALF = 0.5**0.5
Exact = Callable[[Tensor], Tensor]


class MirroredLipNeXt(nn.Module):
    """The network of :class:`LipNeXtArchitecture` with ``mirrored``, as it is trained.

    Args:
        stages: Sizes of each stage, of all channels; the first makes squares of an even side, and the others none.
        feature_dim: Width of the features, at most half the last width.
        reflecting: Whether channels that move are reflected at edges.
    """

    def __init__(self, stages: Sequence[StageSizes], feature_dim: int, reflecting: bool = False) -> None:
        super().__init__()
        built = nn.ModuleList(_MirroredStage(sizes, reflecting) for sizes in stages)
        self.stages: Sequence[_MirroredStage] = built  # type: ignore[assignment]  # torch's has no type inside
        self.last = OrthonormalRows(stages[-1].width // 2, feature_dim)

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(N, C, H, W)`` to features ``(N, feature_dim)``."""
        pair = _halves_of_squares(images.permute(0, 2, 3, 1) - GREY, self.stages[0].sizes.patch)
        for stage in self.stages:
            pair = stage(*pair)
        # Partners together: they change places where the image is mirrored.
        features: Tensor = self.last(pooled(torch.cat(pair, 2)).flatten(1))
        return features

    @torch.no_grad()
    def written_out(self, exact: Exact) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
        """Return rotations and positions of each stage of a LipNeXt that is the same function, and its last matrix.

        Args:
            exact: What makes the matrices orthogonal first, ``(..., n, n)``.
        """
        stages = []
        places = _places_in_squares(self.stages[0].sizes)
        for stage in self.stages:
            stages.append(stage.written_out(places, exact))
            places = _side_by_side(stage.sizes.width)
        return stages, self.last.rows(exact)


class _MirroredStage(nn.Module):
    """A stage in even and odd channels.

    Attributes:
        rotations: Shape ``(depth, 2, C / 2, C / 2)``: of each block the matrix of even and that of odd channels.
        positions: Shape ``(depth, 2, H, W, C / 2)``: what is added to even channels and to odd ones; what counts of it
            is the part that a mirror leaves as it is, and the one that it turns round.
    """

    def __init__(self, sizes: StageSizes, reflecting: bool) -> None:
        super().__init__()
        self.sizes, self.reflecting = sizes, reflecting
        half = sizes.width // 2
        self.rotations = nn.Parameter(random_orthogonal(sizes.depth, 2, half))
        self.positions = nn.Parameter(torch.zeros(sizes.depth, 2, sizes.height, sizes.breadth, half))

    @property
    def groups(self) -> list[tuple[int, int]]:
        """Where groups of half the channels move, and how many there are in each; the first has absolute values."""
        absolute = self.sizes.absolute // 2
        return [(0, absolute), *fast_groups(self.sizes.width // 2 - absolute, 4)]

    def forward(self, even: Tensor, odd: Tensor) -> tuple[Tensor, Tensor]:
        """Map two times ``(N, H, W, C / 2)`` to two times ``(N, H', W', C' / 2)``."""
        if self.sizes.pool > 1:
            rows, columns = self.sizes.height, self.sizes.breadth
            even, odd = _partners(*(pooled(part, rows, columns) for part in _partners(even, odd)))
        blocks = len(self.rotations)
        for block, (products, position) in enumerate(zip(self.rotations, self.positions, strict=True), 1):
            # Channels that the first block has beyond those that come in begin as zeros.
            even = functional.linear(even, products[0, :, : even.shape[-1]])
            odd = functional.linear(odd, products[1, :, : odd.shape[-1]])
            added = _mirrored_parts(*position.to(even.dtype))
            even, odd = even + added[0], odd + added[1]
            even, odd = self._activation(even, odd, shift=block < blocks)
        return even, odd

    def _activation(self, even: Tensor, odd: Tensor, shift: bool) -> tuple[Tensor, Tensor]:
        """Take absolute values of the first channels, and move groups of others, as :func:`absolute_and_shift`."""
        sizes = [size for _, size in self.groups]
        evens, odds = list(even.split(sizes, -1)), list(odd.split(sizes, -1))
        # What is linear and moves partners alike may as well be done to sums and differences.
        first, second = _partners(evens[0], odds[0])
        evens[0], odds[0] = _partners(first.abs(), second.abs())
        if shift:
            ways = [way for way, _ in self.groups]
            alike = [0 if way in _SIDEWAYS else way for way in ways]
            evens, odds = (moved_groups(parts, alike, self.reflecting) for parts in (evens, odds))
            for index, way in enumerate(ways):
                if way in _SIDEWAYS:
                    parts = self._sideways(way, *_partners(evens[index], odds[index]))
                    evens[index], odds[index] = _partners(*parts)
        return torch.cat(evens, -1), torch.cat(odds, -1)

    def _sideways(self, way: int, own: Tensor, partner: Tensor) -> tuple[Tensor, Tensor]:
        """Move a group to the right or to the left, and its partners the other way."""
        right, left = (own, partner) if way == _RIGHT else (partner, own)
        right, left = moved_groups((right, left), (_RIGHT, _LEFT), self.reflecting)
        return (right, left) if way == _RIGHT else (left, right)

    def matrices(self) -> list[Tensor]:
        """Return the two matrices of each block; of the first ones only columns that something comes to."""
        first, *others = self.rotations
        return [first[..., : self.sizes.channels // 2], *others]

    def written_out(self, before: Tensor, exact: Exact) -> tuple[Tensor, Tensor]:
        """Return rotations ``(depth, 1, C, C)`` and positions ``(depth, H, W, C)`` for all channels.

        Args:
            before: Shape ``(2, c)``: where partners are among the channels that come in.
            exact: What makes the matrices orthogonal first.
        """
        count, width = self.sizes.depth, self.sizes.width
        rotations = self.rotations.new_zeros(count, 1, width, width)
        positions = self.positions.new_zeros(count, self.sizes.height, self.sizes.breadth, width)
        beyond = torch.arange(2 * before.shape[1], width).view(2, -1)
        before = torch.cat([before, beyond], 1)
        for block, ((even, odd), position) in enumerate(zip(exact(self.rotations), self.positions, strict=True)):
            places = _places_in_groups(self.groups) if block < count - 1 else _side_by_side(width)
            alike, across = (even + odd) / 2, (even - odd) / 2
            added = _partners(*_mirrored_parts(*position))
            for row in (0, 1):
                for column in (0, 1):
                    where = places[row][:, None], before[column][None, :]
                    rotations[block, 0][where] = alike if row == column else across
                positions[block][..., places[row]] = added[row]
            before = places
        return rotations, positions


_RIGHT, _LEFT = 3, 4
_SIDEWAYS = {_RIGHT: _LEFT, _LEFT: _RIGHT}  # groups that move so, and where their partners do


def _partners(even: Tensor, odd: Tensor) -> tuple[Tensor, Tensor]:
    """Return partners of sums and differences, or these of those: an isometry that is its own inverse."""
    return (even + odd) * _ROOT_HALF, (even - odd) * _ROOT_HALF


def _mirrored_parts(even: Tensor, odd: Tensor) -> tuple[Tensor, Tensor]:
    """Return what of positions ``(H, W, C / 2)`` stays the same left to right, and what changes its sign."""
    return (even + even.flip(1)) / 2, (odd - odd.flip(1)) / 2


def _halves_of_squares(maps: Tensor, patch: int) -> tuple[Tensor, Tensor]:
    """Make even and odd channels of squares of pixels, ``(N, H / p, W / p, p p C / 2)`` each: partners are mirrored."""
    squares = space_to_depth(maps, patch).unflatten(-1, (patch, patch, -1))
    left, right = squares.split(patch // 2, -2)
    even, odd = (part.flatten(3) for part in _partners(left, right.flip(-2)))
    return even, odd


def _places_in_squares(sizes: StageSizes) -> Tensor:
    """Return where partners of :func:`_halves_of_squares` are among the channels of :func:`space_to_depth`."""
    places = torch.arange(sizes.channels).view(sizes.patch, sizes.patch, -1)
    left, right = places.split(sizes.patch // 2, 1)
    return torch.stack([left.flatten(), right.flip(1).flatten()])


def _places_in_groups(groups: Sequence[tuple[int, int]]) -> Tensor:
    """Return where partners have to be among all channels, so that groups of twice the size move as they do."""
    half = sum(size for _, size in groups)
    own = torch.arange(half).split([size for _, size in groups])
    sideways = {way: channels for (way, _), channels in zip(groups, own, strict=True) if way in _SIDEWAYS}
    order = []
    for (way, _), channels in zip(groups, own, strict=True):
        partners = half + (sideways[_SIDEWAYS[way]] if way in _SIDEWAYS else channels)
        # Partners have the same place in opposite groups: where edges reflect, one becomes the other.
        order += [partners, channels] if way == _LEFT else [channels, partners]
    return torch.cat(order).argsort().view(2, half)


def _side_by_side(width: int) -> Tensor:
    """Return where partners are at the end of a stage, which moves nothing: a pair beside the next one."""
    return torch.arange(width).view(-1, 2).T
