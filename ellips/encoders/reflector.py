"""Block reflectors (Lai et al. 2025, arXiv 2505.15174): circular convolutions that are orthogonal, in real numbers."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from ellips.encoders.imported import orthonormal_rows

_SIDE = 3  # of the kernels
_RIDGE = 1e-7  # of the mean diagonal of VᴴV
_CHUNK = 1 << 22  # complex numbers held at once


class BlockReflector(nn.Module):
    """A convolution on the torus whose matrix at each frequency is ``W = I − 2 V (VᴴV + ε I)⁻¹ Vᴴ``, and a bias.

    V is the kernel's Fourier transform, ``(width, rank)`` at each frequency, ε 1e-7 of the mean diagonal of ``VᴴV``: W
    is symmetric, its eigenvalues lie between -1 and 1. With ``B = √2 V L⁻ᴴ``, ``L Lᴴ = VᴴV + ε I``, it is ``I − B Bᴴ``,
    which takes half the numbers of W, or less. Images are padded by a pixel of zeros on each side, go to frequencies by
    one orthogonal matrix, real and imaginary parts apart, through the blocks, and back.

    The state holds kernel and bias alone; the blocks are computed from the kernel whenever a state is loaded, and there
    are none before: ``2 (side + 2)² width rank`` numbers.

    Attributes:
        kernel: V in space, shape ``(width, rank, 3, 3)``.
        bias: Shape ``(width,)``.
        waves: Cosines and sines, shape ``(n², n²)``, ``n = side + 2``, two rows for each block.
        blocks: B in real numbers, shape ``(n² / 2, 2 width, 2 rank)``; None before a state is loaded.

    Args:
        width: Channels.
        rank: Directions that are reflected at each frequency, fewer than channels.
        side: Height and width of the maps, even.
        growing: Keep the padded pixels: the maps that come out are larger by two pixels each way.

    Raises:
        ValueError: If the sizes do not fit each other.
    """

    kernel: Tensor
    waves: Tensor
    blocks: Tensor | None

    def __init__(self, width: int, rank: int, side: int, *, growing: bool = False) -> None:
        super().__init__()
        if not 0 < rank < width or side < 2 or side % 2:
            raise ValueError(
                f"Expected a rank below the width and maps of an even side but got {rank}, {width} and {side}."
            )
        self.growing = growing
        self.padded = side + 2
        self.register_buffer("kernel", torch.randn(width, rank, _SIDE, _SIDE))
        self.bias = nn.Parameter(torch.zeros(width))
        turns = _turns(self.padded)
        self.register_buffer("waves", _waves(turns, self.padded).to(self.bias), persistent=False)
        self.register_buffer("blocks", None, persistent=False)
        self.register_load_state_dict_post_hook(_refresh)  # type: ignore[no-untyped-call]  # torch's

    def forward(self, maps: Tensor) -> Tensor:
        """Map ``(N, width, side, side)`` to the same shape, or to ``(N, width, side + 2, side + 2)``.

        Raises:
            RuntimeError: If no state has been loaded.
        """
        if self.blocks is None:
            raise RuntimeError("Expected a block reflector whose state has been loaded; call `load_state_dict` first.")
        padded = functional.pad(maps, (1, 1, 1, 1))
        numbers = functional.linear(padded.flatten(2), self.waves)
        rows = numbers.unflatten(2, (-1, 2)).permute(2, 0, 3, 1).flatten(2)  # (block, N, part and channel)
        turned = torch.baddbmm(rows, torch.bmm(rows, self.blocks), self.blocks.mT, alpha=-1)
        numbers = turned.unflatten(2, (2, -1)).permute(1, 3, 0, 2).flatten(2)
        result = functional.linear(numbers, self.waves.mT).unflatten(2, (self.padded, self.padded))
        if not self.growing:
            result = result[:, :, 1:-1, 1:-1]
        moved: Tensor = result + self.bias[:, None, None]
        return moved


@torch.no_grad()
def _refresh(layer: BlockReflector, _: object = None) -> None:
    """Compute the blocks of a layer from its kernel; torch calls it after loading."""
    layer.blocks = reflector_blocks(layer.kernel, layer.padded)


def reflector_blocks(kernel: Tensor, side: int) -> Tensor:
    """Return B of :class:`BlockReflector`, computed in float64, in the kernel's precision.

    Args:
        kernel: Shape ``(width, rank, 3, 3)``.
        side: Side n of the torus, even.

    Returns:
        Shape ``(n² / 2, 2 width, 2 rank)``.
    """
    width, rank = kernel.shape[:2]
    turns = _turns(side).to(kernel.device)[:, _taps(side)]
    blocks = kernel.new_zeros(side**2 // 2, 2 * width, 2 * rank)
    # Two frequencies of real numbers share a block.
    blocks[:2, :width, :rank], blocks[:2, width:, rank:] = (
        _directions(kernel, turns[:4]).real.unflatten(0, (2, 2)).unbind(1)
    )
    size = max(1, _CHUNK // (width * rank))
    for block, part in zip(blocks[2:].split(size), turns[4:].split(size), strict=True):
        found = _directions(kernel, part)
        block[:, :width, :rank] = block[:, width:, rank:] = found.real
        block[:, width:, :rank], block[:, :width, rank:] = found.imag, -found.imag
    return blocks


def reflector_rows(directions: Tensor, rows: int, ridge: float) -> Tensor:
    """Return the first rows of ``I − 2 V (VᵀV + ε I)⁻¹ Vᵀ``, which are nearly orthonormal.

    Args:
        directions: V, shape ``(..., m, r)`` with r < m.
        rows: How many, at most m.
        ridge: ε as a share of the mean diagonal of ``VᵀV``.

    Returns:
        Shape ``(..., rows, m)``.

    Raises:
        ValueError: If the sizes do not fit each other.
    """
    size, rank = directions.shape[-2:]
    if rank >= size or rows > size:
        raise ValueError(f"Expected fewer than {size} directions of {size} numbers but got {rank}, for {rows} rows.")
    basis = orthonormal_rows(directions.mT, ridge)
    return torch.eye(rows, size).to(directions) - 2 * basis[..., :rows].mT @ basis


def _directions(kernel: Tensor, turns: Tensor) -> Tensor:
    """Return ``√2 V L⁻ᴴ`` at some frequencies, complex, shape ``(frequencies, width, rank)``."""
    waves = torch.polar(torch.ones_like(turns), turns)
    adjoint = torch.einsum("ft,crt->frc", waves, kernel.double().flatten(2).to(waves))
    return math.sqrt(2) * orthonormal_rows(adjoint, _RIDGE).mH


def _taps(side: int) -> Tensor:
    """Return which pixels of the torus, flattened, the kernel lies on."""
    axis = torch.arange(_SIDE)
    return (axis[:, None] * side + axis).flatten()


def _turns(side: int) -> Tensor:
    """Return the angle of each frequency at each pixel, float64, shape ``(side² / 2 + 2, side²)``.

    First the four frequencies at which all numbers are real, then one of every two opposite ones.
    """
    half = side // 2
    inner, edge = torch.arange(1, half), torch.tensor([0, half])
    real = torch.cartesian_prod(edge, edge)
    others = torch.cat([torch.cartesian_prod(torch.arange(side), inner), torch.cartesian_prod(inner, edge)])
    frequencies = torch.cat([real, others])
    pixels = torch.cartesian_prod(torch.arange(side), torch.arange(side))
    # Reduced while they are integers, where nothing is lost.
    return ((frequencies @ pixels.T) % side).double() * (2 * math.pi / side)


def _waves(turns: Tensor, side: int) -> Tensor:
    """Return the orthogonal matrix from pixels to real and imaginary parts, float64, shape ``(side², side²)``."""
    pairs = math.sqrt(2) * torch.stack([turns[4:].cos(), -turns[4:].sin()], 1).flatten(0, 1)
    return torch.cat([turns[:4].cos(), pairs]) / side
