"""LipNeXt (Hu, Hu and Fredrikson, ICLR 2026): 1-Lipschitz networks of orthogonal products and shifts in space."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from ellips.encoders.architecture import EncoderArchitecture
from ellips.encoders.orthogonal import polar, random_orthogonal
from ellips.lipschitz.spectral.norms import matrix_norm

_GREY = 0.5  # what is subtracted of pixels: a translation
_DIRECTIONS = ((1, 1), (-1, 1), (1, 2), (-1, 2))  # by how many pixels, along which axis of (N, H, W, C)


@dataclass(frozen=True)
class LipNeXtArchitecture(EncoderArchitecture):
    """Layers of a LipNeXt encoder: stages of blocks, L2 pooling, a last layer.

    A stage pools: it takes the L2 norm of each channel over squares of ``pool`` times ``pool`` pixels. It makes
    channels of squares of ``patch`` times ``patch`` pixels, pads them with zeros to its width, and goes through its
    blocks. With the maps x as rows of C channels a block of two products is ``|S(x R^T) B^T + p|_β``: R and B
    orthogonal, S a shift of five groups of channels around the torus (not at all, down, up, right, left), p a position
    that is added, ``|·|_β`` the absolute value on a share β of the channels. The paper's ``M R^T S(R (x + p)) + b`` is
    the same set of functions, with B = M R^T and what its p and b come to at the end in one. A block of one product is
    ``|x B^T + p|_β``, with S between two blocks: but for the absolute values, R is one with the B before it. So that S
    moves channels with and without them, it has five groups of each.

    Attributes:
        image_shape: Channels, height and width of the images.
        patches: Side of the squares that each stage makes channels of; their product divides height and width.
        widths: Channels of each stage, at least what its squares hold.
        depths: Blocks of each stage.
        absolute_share: β, the share of the channels whose absolute value is taken.
        feature_dim: Width of the features, at most the last stage's.
        products: Orthogonal products of a block: 2 as in the paper, or 1; twice as many blocks of one cost the same.
        pools: Side of the squares that each stage pools first; () for none, as in the paper.
        regions: At the end is pooled over each of ``regions`` times ``regions`` parts of the maps, and features are
            made of all parts; 1 in the paper. Its square divides ``feature_dim``.

    Raises:
        ValueError: If the sizes do not fit each other.
    """

    kind: ClassVar[str] = "lipnext"
    dense_limit: ClassVar[int] = 512  # so that no affine piece over all pixels is written out

    image_shape: tuple[int, int, int] = (3, 32, 32)
    patches: tuple[int, ...] = (4,)
    widths: tuple[int, ...] = (192,)
    depths: tuple[int, ...] = (6,)
    absolute_share: float = 0.25
    feature_dim: int = 64
    products: int = 2
    pools: tuple[int, ...] = ()
    regions: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        lists = (self.patches, self.widths, self.depths, self.every_pool)
        if len({len(sizes) for sizes in lists}) > 1 or not self.patches or min(map(min, lists)) < 1:
            raise ValueError(
                "Expected as many positive `patches` as `widths`, `depths` and, if any, `pools`, one of each per "
                f"stage, but got {self.patches}, {self.widths}, {self.depths} and {self.pools}."
            )
        if self.products not in (1, 2):
            raise ValueError(f"Expected `products` to be 1 or 2 but got {self.products!r}.")
        if not 0 < self.absolute_share <= 1:
            raise ValueError(f"Expected `absolute_share` above 0, up to 1, but got {self.absolute_share}.")
        _, height, width = self.image_shape
        step = math.prod((*self.patches, *self.pools, self.regions))
        if self.regions < 1 or height % step or width % step:
            raise ValueError(
                f"Expected `regions` to be positive, and the product {step} of it, `patches` and `pools` to divide "
                f"height and width, but got {self.regions} and {height}x{width}; change these sizes."
            )
        for patch, inner, outer in zip(self.patches, (self.image_shape[0], *self.widths), self.widths, strict=False):
            if outer < inner * patch**2:
                raise ValueError(
                    f"Expected a stage to be at least as wide as its squares of {patch}x{patch} pixels of {inner} "
                    f"channels, {inner * patch**2}, but got a width of {outer}; raise it, or make the squares smaller."
                )
        if self.feature_dim > self.widths[-1] or self.feature_dim % self.regions**2:
            raise ValueError(
                f"Expected `feature_dim` to be at most the last width, {self.widths[-1]}, and a multiple of the square "
                f"of `regions`, {self.regions**2}, but got {self.feature_dim}."
            )

    @property
    def every_pool(self) -> tuple[int, ...]:
        """The side of the squares that each stage pools first."""
        return self.pools or (1,) * len(self.patches)

    @property
    def untold(self) -> str:
        """The share of absolute values, and what is pooled: two networks of the same weights may differ in them."""
        told = LipNeXtArchitecture()
        names = [name for name in ("absolute_share", "pools") if getattr(self, name) != getattr(told, name)]
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Self:
        """Return the architecture of a record; one that lacks some of them is from before there were others."""
        return super().from_record({"products": 2, "pools": (), "regions": 1, **record})

    def build(self) -> LipNeXt:
        """Return the plain layers, whose last one is a linear layer, with random orthogonal weights."""
        return LipNeXt(self)

    def trainable(self) -> LipNeXt:
        """Return the layers as they are trained: all matrices square and orthogonal."""
        return LipNeXt(self, square=True)

    def manifold(self, trained: nn.Module) -> list[nn.Parameter]:
        """Return the parameters that are stacks of orthogonal matrices, ``(..., n, n)`` each."""
        network = _require(trained)
        last = network.last.parameters() if isinstance(network.last, _Rows) else []
        return [*(stage.rotations for stage in network.stages), *last]

    @torch.no_grad()
    def plain(self, trained: nn.Module) -> LipNeXt:
        """Return plain layers with the weights of trained ones, each matrix replaced by the nearest orthogonal one."""
        network, plain = _require(trained), self.build()
        for target, stage in zip(plain.stages, network.stages, strict=True):
            target.rotations.copy_(polar(stage.rotations))
            target.positions.copy_(stage.positions)
        rows = network.last.rows(polar) if isinstance(network.last, _Rows) else network.last.weight
        plain.last.weight.copy_(rows)
        return plain.eval()

    def scaled(self, plain: nn.Module) -> Iterable[nn.Parameter]:
        """Return the last layer's weight."""
        return _require(plain).last.parameters()


class LipNeXt(nn.Module):
    """The network of :class:`LipNeXtArchitecture`: images ``(N, C, H, W)`` to features ``(N, feature_dim)``.

    Everything but the stored matrices is an isometry or a contraction in exact arithmetic, so that the product of their
    largest singular values is a Lipschitz constant: :func:`singular_value_product`.

    Args:
        architecture: The layers.
        square: Hold a square matrix for the last layer, as training does, instead of the rows that count.
    """

    def __init__(self, architecture: LipNeXtArchitecture, square: bool = False) -> None:
        super().__init__()
        size = architecture.image_shape
        stages = []
        for index in range(len(architecture.depths)):
            stages.append(_Stage(architecture, index, size))
            size = stages[-1].size
        self.stages: Sequence[_Stage] = nn.ModuleList(stages)  # type: ignore[assignment]  # torch's has no type inside
        self.regions = architecture.regions
        last = _Rows(size[0], architecture.feature_dim, self.regions**2)
        self.last = last if square else last.plain()

    def forward(self, images: Tensor) -> Tensor:
        """Map images to features."""
        maps = images.permute(0, 2, 3, 1) - _GREY
        for stage in self.stages:
            maps = stage(maps)
        features: Tensor = self.last(pooled(maps, self.regions, self.regions).flatten(1))
        return features


class _Rows(nn.Module):
    """A linear layer with orthonormal rows: of each region some rows of an orthogonal matrix, then one for all."""

    def __init__(self, width: int, dim: int, regions: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(random_orthogonal(regions, width))
        self.mixed = nn.Parameter(random_orthogonal(dim)) if regions > 1 else None
        self.count = dim // regions

    def rows(self, exact: Callable[[Tensor], Tensor] = lambda matrices: matrices) -> Tensor:
        """Return the matrix, ``(dim, regions * width)``, of matrices as they are or made ``exact``."""
        rows: Tensor = torch.block_diag(*exact(self.weight)[:, : self.count])
        return rows if self.mixed is None else exact(self.mixed) @ rows

    @torch.no_grad()
    def plain(self) -> nn.Linear:
        """Return a linear layer with that matrix."""
        rows = self.rows()
        layer = nn.Linear(rows.shape[1], rows.shape[0], bias=False)
        layer.weight.copy_(rows)
        return layer

    def forward(self, values: Tensor) -> Tensor:
        return functional.linear(values, self.rows())


class _Stage(nn.Module):
    """Squares of pixels to channels, then blocks; all matrices of the stage are one parameter.

    Attributes:
        rotations: Shape ``(depth, products, C, C)``: R, where blocks have it, and B of each block.
        positions: Shape ``(depth, H, W, C)``.
    """

    def __init__(self, architecture: LipNeXtArchitecture, index: int, size: tuple[int, int, int]) -> None:
        super().__init__()
        self.patch, self.pool = architecture.patches[index], architecture.every_pool[index]
        outer, depth = architecture.widths[index], architecture.depths[index]
        inner, *sides = size
        height, width = (side // (self.patch * self.pool) for side in sides)
        self.size = (outer, height, width)  # of what comes out
        self.padding = outer - inner * self.patch**2
        self.absolute = max(1, round(architecture.absolute_share * outer))
        first = random_orthogonal(depth, outer)
        # With two, M is the identity at the start: what R turns before the shift, B turns back.
        self.rotations = nn.Parameter(torch.stack([first, first.mT][: architecture.products], 1))
        self.positions = nn.Parameter(torch.zeros(depth, height, width, outer))

    def forward(self, maps: Tensor) -> Tensor:
        """Map ``(N, H, W, C)`` to ``(N, H', W', C')``, with the sides divided by ``pool`` and ``patch``."""
        if self.pool > 1:
            maps = pooled(maps, maps.shape[1] // self.pool, maps.shape[2] // self.pool)
        maps = functional.pad(space_to_depth(maps, self.patch), (0, self.padding))
        blocks = len(self.rotations)
        for block, (products, position) in enumerate(zip(self.rotations, self.positions, strict=True), 1):
            *before, after = products
            for product in before:
                maps = shift(functional.linear(maps, product))
            maps = functional.linear(maps, after)
            # Blocks of one product have their shift in front of the next one.
            activation = partial_absolute if before or block == blocks else absolute_and_shift
            maps = activation(maps + position.to(maps.dtype), self.absolute)
        return maps


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
    return torch.cat(_moved(maps.split(_groups(maps.shape[-1], maps.shape[-1] // 5), -1)), -1)


def absolute_and_shift(maps: Tensor, count: int) -> Tensor:
    """Take the absolute value of the first ``count`` channels, then move five groups of them and five of the others.

    A contraction, number by number. One split and one join do for both, and groups that move have a multiple of eight
    channels where that leaves any, as the registers of processors do: both make it faster.

    Args:
        maps: Shape ``(N, H, W, C)``.
        count: At most C.
    """
    first, rest = (_groups(channels, _aligned(channels // 5)) for channels in (count, maps.shape[-1] - count))
    pieces = maps.split([*first, *rest], -1)
    absolute = [piece.abs() for piece in pieces[: len(first)]]
    return torch.cat([*_moved(absolute), *_moved(pieces[len(first) :])], -1)


def _groups(channels: int, moved: int) -> list[int]:
    """Return the sizes of the group that stands still and of the four that move, without empty ones."""
    return [size for size in (channels - 4 * moved, *[moved] * 4) if size]


def _aligned(size: int) -> int:
    return size - size % 8 if size > 8 else size


def _moved(groups: Sequence[Tensor]) -> list[Tensor]:
    ways = zip(groups[1:], _DIRECTIONS, strict=False)  # none, where there are too few channels for five groups
    return [*groups[:1], *(group.roll(*way) for group, way in ways)]


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


def singular_value_product(network: LipNeXt) -> float:
    """Return the product of the largest singular values of all stored matrices, each by one float64 decomposition.

    It is a Lipschitz constant of the network in exact arithmetic, raised for rounding; :class:`SpectralProduct` comes
    to it on its own, from the exported operations.
    """
    matrices = [matrix for stage in network.stages for matrix in stage.rotations.flatten(0, 1)]
    last = network.last
    matrices.append(last.rows() if isinstance(last, _Rows) else last.weight)
    return math.prod(matrix_norm(matrix.detach()) for matrix in matrices)


def _require(network: nn.Module) -> LipNeXt:
    if not isinstance(network, LipNeXt):
        raise TypeError(f"Expected a LipNeXt network but got {type(network).__name__}.")
    return network
