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
from ellips.encoders.mirrored import MirroredLipNeXt
from ellips.encoders.orthogonal import OrthonormalRows, polar, random_orthogonal
from ellips.encoders.spatial import (
    GREY,
    StageSizes,
    absolute_and_shift,
    partial_absolute,
    pooled,
    shift,
    space_to_depth,
)
from ellips.lipschitz.spectral.norms import matrix_norm


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
        mirrored: Make features that are the same for an image and its mirror image, by :class:`MirroredLipNeXt`, which
            trains with half the work in products. Channels come in pairs that are pooled together at the end, so that
            ``feature_dim`` is at most half the last width. Blocks have one product, squares an even side and are made
            in the first stage alone; ``regions`` is 1.
        reflecting: Between blocks, what channels lose at an edge comes into those that move the other way, as waves are
            reflected at a wall, not in at the opposite edge. Blocks have one product.

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
    mirrored: bool = False
    reflecting: bool = False

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
        if self.reflecting and self.products != 1:
            raise ValueError(f"Expected a `reflecting` network to have `products` = 1 but got {self.products!r}.")
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
        if self.mirrored:
            self._require_halves()

    def _require_halves(self) -> None:
        first, *others = self.patches
        if (self.products, self.regions, self.every_pool[0]) != (1, 1, 1) or first % 2 or any(x != 1 for x in others):
            raise ValueError(
                "Expected a `mirrored` network to have `products` = 1, `regions` = 1, a first one of `pools` of 1, and "
                "`patches` that are even in the first stage and 1 in others, but got "
                f"{self.products}, {self.regions}, {self.pools} and {self.patches}."
            )
        if any(width % 2 for width in self.widths) or 2 * self.feature_dim > self.widths[-1]:
            raise ValueError(
                "Expected a `mirrored` network to have even `widths`, and a last one of at least twice `feature_dim`, "
                f"{2 * self.feature_dim}, but got {self.widths}."
            )

    @property
    def every_pool(self) -> tuple[int, ...]:
        """The side of the squares that each stage pools first."""
        return self.pools or (1,) * len(self.patches)

    @property
    def stages(self) -> list[StageSizes]:
        """The sizes of each stage."""
        channels, height, breadth = self.image_shape
        found = []
        for patch, pool, width, depth in zip(self.patches, self.every_pool, self.widths, self.depths, strict=True):
            channels, height, breadth = channels * patch**2, height // (pool * patch), breadth // (pool * patch)
            step = 2 if self.mirrored else 1  # channels come in pairs
            absolute = step * max(1, round(self.absolute_share * (width // step)))
            found.append(StageSizes(patch, pool, channels, width, height, breadth, depth, absolute))
            channels = width
        return found

    @property
    def untold(self) -> str:
        """Absolute values, what is pooled, and edges: two networks of the same weights may differ in them."""
        told = LipNeXtArchitecture()
        names = ("absolute_share", "pools", "reflecting")
        values = {name: getattr(self, name) for name in names if getattr(self, name) != getattr(told, name)}
        return ", ".join(f"{name}={value!r}" for name, value in values.items())

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Self:
        """Return the architecture of a record; one that lacks some of them is from before there were others."""
        before = {"products": 2, "pools": (), "regions": 1, "mirrored": False, "reflecting": False}
        return super().from_record({**before, **record})

    def build(self) -> LipNeXt:
        """Return the plain layers, whose last one is a linear layer, with random orthogonal weights."""
        return LipNeXt(self)

    def trainable(self) -> LipNeXt | MirroredLipNeXt:
        """Return the layers as they are trained: all matrices square and orthogonal."""
        if self.mirrored:
            return MirroredLipNeXt(self.stages, self.feature_dim, self.reflecting)
        return LipNeXt(self, trained=True)

    def manifold(self, trained: nn.Module) -> list[nn.Parameter]:
        """Return the parameters that are stacks of orthogonal matrices, ``(..., n, n)`` each."""
        network = _require(trained)
        last = network.last.parameters() if isinstance(network.last, OrthonormalRows) else []
        return [*(stage.rotations for stage in network.stages), *last]

    @torch.no_grad()
    def plain(self, trained: nn.Module) -> LipNeXt:
        """Return plain layers with the weights of trained ones, each matrix replaced by the nearest orthogonal one."""
        network, plain = _require(trained), self.build()
        stages, last = network.written_out(polar)
        for target, (rotations, positions) in zip(plain.stages, stages, strict=True):
            target.rotations.copy_(rotations)
            target.positions.copy_(positions)
        plain.last.weight.copy_(last)
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
        trained: Hold a square matrix for the last layer instead of the rows that count, and multiply no matrix by the
            zeros that first blocks are padded with. Plain layers do: so their features and constants are what they
            were when files were made of them.
    """

    def __init__(self, architecture: LipNeXtArchitecture, trained: bool = False) -> None:
        super().__init__()
        stages = architecture.stages
        built = nn.ModuleList(_Stage(sizes, architecture, trained) for sizes in stages)
        self.stages: Sequence[_Stage] = built  # type: ignore[assignment]  # torch's has no type inside
        self.regions, self.pairs = architecture.regions, architecture.mirrored
        dim, parts = architecture.feature_dim, self.regions**2
        width = stages[-1].width // 2 if self.pairs else stages[-1].width
        self.last = OrthonormalRows(width, dim, parts) if trained else nn.Linear(width * parts, dim, bias=False)
        if not trained:
            nn.init.orthogonal_(self.last.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Map images to features."""
        maps = images.permute(0, 2, 3, 1) - GREY
        for stage in self.stages:
            maps = stage(maps)
        if self.pairs:
            maps = maps.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(2, 3)  # a pair of channels is pooled together
        features: Tensor = self.last(pooled(maps, self.regions, self.regions).flatten(1))
        return features

    @torch.no_grad()
    def written_out(self, exact: Callable[[Tensor], Tensor]) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
        """Return rotations and positions of each stage, and the last matrix, with matrices made ``exact`` first."""
        last = self.last.rows(exact) if isinstance(self.last, OrthonormalRows) else self.last.weight
        return [(exact(stage.rotations), stage.positions) for stage in self.stages], last


class _Stage(nn.Module):
    """Squares of pixels to channels, then blocks; all matrices of the stage are one parameter.

    Attributes:
        rotations: Shape ``(depth, products, C, C)``: R, where blocks have it, and B of each block.
        positions: Shape ``(depth, H, W, C)``.
        places: Of plain layers that reflect: which of the ``H W C`` numbers comes where between blocks, so that one
            operation moves all of them.
    """

    places: Tensor | None

    def __init__(self, sizes: StageSizes, architecture: LipNeXtArchitecture, trained: bool) -> None:
        super().__init__()
        self.sizes, self.pairs, self.reflecting = sizes, architecture.mirrored, architecture.reflecting
        self.padding = 0 if trained else sizes.width - sizes.channels
        places = None
        if self.reflecting and not trained:
            places = torch.arange(sizes.height * sizes.breadth * sizes.width)
            places = places.view(1, sizes.height, sizes.breadth, sizes.width)
            places = absolute_and_shift(places, sizes.absolute, self.pairs, reflecting=True).flatten()
        self.register_buffer("places", places, persistent=False)
        first = random_orthogonal(sizes.depth, sizes.width)
        # With two, M is the identity at the start: what R turns before the shift, B turns back.
        self.rotations = nn.Parameter(torch.stack([first, first.mT][: architecture.products], 1))
        self.positions = nn.Parameter(torch.zeros(sizes.depth, sizes.height, sizes.breadth, sizes.width))

    def forward(self, maps: Tensor) -> Tensor:
        """Map ``(N, H, W, C)`` to ``(N, H', W', C')``, with the sides divided by ``pool`` and ``patch``."""
        if self.sizes.pool > 1:
            maps = pooled(maps, maps.shape[1] // self.sizes.pool, maps.shape[2] // self.sizes.pool)
        maps = space_to_depth(maps, self.sizes.patch)
        if self.padding:
            maps = functional.pad(maps, (0, self.padding))
        blocks = len(self.rotations)
        for block, (products, position) in enumerate(zip(self.rotations, self.positions, strict=True), 1):
            *before, after = products
            for product in before:
                maps = shift(_product(maps, product))
            maps = _product(maps, after) + position.to(maps.dtype)
            # Blocks of one product have their shift in front of the next one.
            if before or block == blocks:
                maps = partial_absolute(maps, self.sizes.absolute)
            elif self.places is None:
                maps = absolute_and_shift(maps, self.sizes.absolute, self.pairs, self.reflecting)
            else:
                maps = partial_absolute(maps, self.sizes.absolute)
                maps = maps.flatten(1).index_select(1, self.places).view(maps.shape)
        return maps

    def matrices(self) -> list[Tensor]:
        """Return the matrices in order, ``(1, C, C)`` each; of the first only columns that something comes to."""
        first, *others = self.rotations.flatten(0, 1).split(1)
        return [first[..., : self.sizes.channels + self.padding], *others]


def _product(maps: Tensor, matrix: Tensor) -> Tensor:
    """Multiply maps, as if padded with channels of zeros, by a matrix of ``(C, C)``."""
    channels = maps.shape[-1]
    return functional.linear(maps, matrix if channels == matrix.shape[-1] else matrix[:, :channels])


def singular_value_product(network: LipNeXt | MirroredLipNeXt) -> float:
    """Return the product of the largest singular values of all stored matrices, each by one float64 decomposition.

    It is a Lipschitz constant of the network in exact arithmetic, raised for rounding; :class:`SpectralProduct` comes
    to it on its own, from the exported operations.
    """
    last = network.last
    rows = last.rows() if isinstance(last, OrthonormalRows) else last.weight
    stacks = [stack for stage in network.stages for stack in stage.matrices()]
    return math.prod(max(map(matrix_norm, stack.detach())) for stack in (*stacks, rows[None]))


def _require(network: nn.Module) -> LipNeXt | MirroredLipNeXt:
    if not isinstance(network, LipNeXt | MirroredLipNeXt):
        raise TypeError(f"Expected a LipNeXt network but got {type(network).__name__}.")
    return network
