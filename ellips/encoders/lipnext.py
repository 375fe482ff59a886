"""LipNeXt (Hu, Hu and Fredrikson, ICLR 2026): 1-Lipschitz networks of orthogonal products and shifts in space."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

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

    A stage makes channels of squares of ``patch`` times ``patch`` pixels, pads them with zeros to its width, and goes
    through its blocks. With the maps x as rows of C channels a block is ``|·|_β( S(x R^T) B^T + p )``: R and B
    orthogonal, S a shift of five groups of channels around the torus (not at all, down, up, right, left), p a position
    that is added, ``|·|_β`` the absolute value on a share β of the channels. The paper's ``M R^T S(R (x + p)) + b`` is
    the same set of functions, with B = M R^T and what its p and b come to at the end in one.

    Attributes:
        image_shape: Channels, height and width of the images.
        patches: Side of the squares that each stage makes channels of; their product divides height and width.
        widths: Channels of each stage, at least what its squares hold.
        depths: Blocks of each stage.
        absolute_share: β, the share of the channels whose absolute value is taken.
        feature_dim: Width of the features, at most the last stage's.

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

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = (*self.patches, *self.widths, *self.depths)
        if not len(self.patches) == len(self.widths) == len(self.depths) > 0 or min(sizes) < 1:
            raise ValueError(
                "Expected as many positive `patches` as `widths` and `depths`, one of each per stage, but got "
                f"{self.patches}, {self.widths} and {self.depths}."
            )
        if not 0 < self.absolute_share <= 1:
            raise ValueError(f"Expected `absolute_share` above 0, up to 1, but got {self.absolute_share}.")
        _, height, width = self.image_shape
        step = math.prod(self.patches)
        if height % step or width % step:
            raise ValueError(
                f"Expected the product {step} of `patches` to divide height and width but got {height}x{width}; "
                "change `patches`."
            )
        for patch, inner, outer in zip(self.patches, (self.image_shape[0], *self.widths), self.widths, strict=False):
            if outer < inner * patch**2:
                raise ValueError(
                    f"Expected a stage to be at least as wide as its squares of {patch}x{patch} pixels of {inner} "
                    f"channels, {inner * patch**2}, but got a width of {outer}; raise it, or make the squares smaller."
                )
        if self.feature_dim > self.widths[-1]:
            raise ValueError(
                f"Expected `feature_dim` to be at most the last width, {self.widths[-1]}, but got {self.feature_dim}."
            )

    @property
    def untold(self) -> str:
        """The share of absolute values: two networks of the same weights may differ in it alone."""
        default = LipNeXtArchitecture.absolute_share
        return "" if self.absolute_share == default else f"absolute_share={self.absolute_share!r}"

    def build(self) -> LipNeXt:
        """Return the plain layers, whose last one is a linear layer, with random orthogonal weights."""
        return LipNeXt(self)

    def trainable(self) -> LipNeXt:
        """Return the layers as they are trained: all matrices square and orthogonal."""
        return LipNeXt(self, square=True)

    def manifold(self, trained: nn.Module) -> list[nn.Parameter]:
        """Return the parameters that are stacks of orthogonal matrices, ``(..., n, n)`` each."""
        network = _require(trained)
        last = [network.last.weight] if isinstance(network.last, _Rows) else []
        return [*(stage.rotations for stage in network.stages), *last]

    @torch.no_grad()
    def plain(self, trained: nn.Module) -> LipNeXt:
        """Return plain layers with the weights of trained ones, each matrix replaced by the nearest orthogonal one."""
        network, plain = _require(trained), self.build()
        for target, stage in zip(plain.stages, network.stages, strict=True):
            target.rotations.copy_(polar(stage.rotations))
            target.positions.copy_(stage.positions)
        last = network.last
        rows = polar(last.weight)[: self.feature_dim] if isinstance(last, _Rows) else last.weight
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
        channels, height, width = architecture.image_shape
        stages = []
        for patch, outer, depth in zip(architecture.patches, architecture.widths, architecture.depths, strict=True):
            height, width = height // patch, width // patch
            stages.append(_Stage(patch, channels, outer, depth, (height, width), architecture.absolute_share))
            channels = outer
        self.stages: Sequence[_Stage] = nn.ModuleList(stages)  # type: ignore[assignment]  # torch's has no type inside
        dim = architecture.feature_dim
        self.last = _Rows(channels, dim) if square else nn.Linear(channels, dim, bias=False)
        if not square:
            with torch.no_grad():
                self.last.weight.copy_(random_orthogonal(channels)[:dim])

    def forward(self, images: Tensor) -> Tensor:
        """Map images to features."""
        maps = images.permute(0, 2, 3, 1) - _GREY
        for stage in self.stages:
            maps = stage(maps)
        features: Tensor = self.last(pooled(maps))
        return features


class _Rows(nn.Module):
    """A linear layer that uses the first rows of an orthogonal matrix."""

    def __init__(self, width: int, rows: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(random_orthogonal(width))
        self.rows = rows

    def forward(self, values: Tensor) -> Tensor:
        return functional.linear(values, self.weight[: self.rows])


class _Stage(nn.Module):
    """Squares of pixels to channels, then blocks; all matrices of the stage are one parameter.

    Attributes:
        rotations: Shape ``(depth, 2, C, C)``: R and B of each block.
        positions: Shape ``(depth, H, W, C)``.
    """

    def __init__(
        self, patch: int, inner: int, outer: int, depth: int, size: tuple[int, int], absolute_share: float
    ) -> None:
        super().__init__()
        self.patch = patch
        self.padding = outer - inner * patch**2
        self.absolute = max(1, round(absolute_share * outer))
        first = random_orthogonal(depth, outer)
        # At the start M is the identity: what R turns before the shift, B turns back.
        self.rotations = nn.Parameter(torch.stack([first, first.mT], 1))
        self.positions = nn.Parameter(torch.zeros(depth, *size, outer))

    def forward(self, maps: Tensor) -> Tensor:
        """Map ``(N, H, W, C)`` to ``(N, H / patch, W / patch, outer)``."""
        maps = functional.pad(space_to_depth(maps, self.patch), (0, self.padding))
        for (before, after), position in zip(self.rotations, self.positions, strict=True):
            turned = functional.linear(shift(functional.linear(maps, before)), after)
            maps = partial_absolute(turned + position.to(turned.dtype), self.absolute)
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
    moved = maps.shape[-1] // 5
    still, *groups = maps.split([maps.shape[-1] - 4 * moved, *[moved] * 4], -1)
    return torch.cat([still, *(group.roll(*way) for group, way in zip(groups, _DIRECTIONS, strict=True))], -1)


def partial_absolute(values: Tensor, count: int) -> Tensor:
    """Take the absolute value of the first ``count`` channels, the last axis: 1-Lipschitz, number by number."""
    if count == values.shape[-1]:
        return values.abs()
    first, rest = values.split([count, values.shape[-1] - count], -1)
    return torch.cat([first.abs(), rest], -1)


def pooled(maps: Tensor) -> Tensor:
    """Return the L2 norm over space of each channel, at least in float32: 1-Lipschitz by the triangle inequality.

    Its gradient has norm 1, and is 0 where all pixels are 0.

    Args:
        maps: Shape ``(N, H, W, C)``.

    Returns:
        Shape ``(N, C)``.
    """
    wide = maps if maps.dtype in (torch.float32, torch.float64) else maps.float()
    norms: Tensor = torch.linalg.vector_norm(wide.flatten(1, 2), dim=1)
    return norms


def singular_value_product(network: LipNeXt) -> float:
    """Return the product of the largest singular values of all stored matrices, each by one float64 decomposition.

    It is a Lipschitz constant of the network in exact arithmetic, raised for rounding; :class:`SpectralProduct` comes
    to it on its own, from the exported operations.
    """
    matrices = [matrix for stage in network.stages for matrix in stage.rotations.flatten(0, 1)]
    last = network.last
    matrices.append(last.weight[: last.rows] if isinstance(last, _Rows) else last.weight)
    return math.prod(matrix_norm(matrix.detach()) for matrix in matrices)


def _require(network: nn.Module) -> LipNeXt:
    if not isinstance(network, LipNeXt):
        raise TypeError(f"Expected a LipNeXt network but got {type(network).__name__}.")
    return network
