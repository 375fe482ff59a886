"""Upper bounds of operator norms. Every value is at least the true norm, rounding included."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ellips.lipschitz.capture.graph import UnprovenOperationError

SLACK = 1e-7
"""Relative amount by which every norm is raised: orders above what float64 loses in any of the computations here
(about n * 2e-16 for sums of n <= 1e6 terms), and of the size of one float32 rounding."""

SMALLEST = 1e-290
"""Below it products lose digits, or vanish."""

_CHUNK = 1 << 22  # complex numbers held at once


def matrix_norm(matrix: Tensor) -> float:
    """Bound the spectral norm of a dense matrix by its singular value decomposition.

    Args:
        matrix: Shape ``(m, n)``.
    """
    if matrix.numel() == 0:
        return 0.0
    return _with_all_digits(float(torch.linalg.svdvals(finite_tensor(matrix.double()))[0]) * (1 + SLACK))


def finite(norm: float) -> float:
    """Return a norm, or refuse one that is infinite or not a number: compared with others it would be lost.

    Raises:
        UnprovenOperationError: If it is.
    """
    if not 0 <= norm < math.inf:
        raise UnprovenOperationError(f"Expected norms to be finite numbers but got {norm}; check the weights.")
    return norm


def _with_all_digits(norm: float) -> float:
    """Return a norm, or refuse one that :func:`finite` does, or that is so small that it has lost digits."""
    if 0 < norm < SMALLEST:
        raise UnprovenOperationError(f"Expected norms in the range of numbers but got {norm:g}; check the weights.")
    return finite(norm)


def times(left: float, right: float) -> float:
    """Multiply two bounds; refuse a product that is too small or too large to be a number.

    Raises:
        UnprovenOperationError: If it is, or a factor is infinite or not a number.
    """
    product = finite(left) * finite(right)
    if left and right and product < SMALLEST:
        raise UnprovenOperationError(f"Expected norms in the range of numbers but got {left:g} times {right:g}.")
    return finite(product)


def scaled_rows(weight: Tensor, scale: Tensor) -> Tensor:
    """Multiply each entry along the first axis by a number of its own, float64.

    Raises:
        UnprovenOperationError: If a product is too small to be a number.
    """
    scale = scale.view(-1, *[1] * (weight.ndim - 1))
    product = weight * scale
    if bool(((product.abs() < SMALLEST) & (weight != 0) & (scale != 0)).any()):
        raise UnprovenOperationError("Expected weights in the range of numbers but products with BatchNorm's vanish.")
    return product


def finite_tensor(values: Tensor) -> Tensor:
    """Return a tensor, or refuse one with numbers that are not finite."""
    if not bool(torch.isfinite(values).all()):
        raise UnprovenOperationError("Expected weights to be finite but got NaN or infinity.")
    return values


def gram_norm(matrices: Tensor, iterations: int) -> float:
    """Bound the largest spectral norm in a batch of matrices by Gram iteration (Delattre et al. 2023, theorem 3.1).

    With G = M M', ``||M||^2 = ||G^(2^t)||^(1 / 2^t)``, and the Frobenius norm bounds the last from above: the bound
    holds at every t, and exceeds the norm by at most a factor ``rank^(1 / 2^(t + 2))``.

    Args:
        matrices: Shape ``(B, m, n)``, real or complex.
        iterations: Number t of squarings.
    """
    if matrices.numel() == 0:
        return 0.0
    unit = finite(float(matrices.abs().amax()))  # squares of very small or large entries would leave the range
    if unit == 0:
        return 0.0
    matrices = matrices / unit
    adjoint = matrices.mH
    gram = matrices @ adjoint if matrices.shape[1] <= matrices.shape[2] else adjoint @ matrices
    logarithm = torch.zeros(len(gram), dtype=torch.float64, device=gram.device)
    for step in range(iterations + 1):
        length = torch.linalg.matrix_norm(gram).clamp_min(torch.finfo(torch.float64).tiny)
        logarithm += length.log() / 2**step
        gram = gram / length[:, None, None]
        if step < iterations:
            gram = gram @ gram
    return _with_all_digits(unit * float((logarithm.max() / 2).exp()) * (1 + SLACK))


def stack_norm(matrices: Tensor) -> float:
    """Bound the largest spectral norm in a stack of real matrices by the eigenvalues of their Gram matrices.

    A largest eigenvalue loses no more digits than the products that it is computed from.

    Args:
        matrices: Shape ``(B, m, n)``.
    """
    if matrices.numel() == 0:
        return 0.0
    finite_tensor(matrices)
    unit = float(matrices.abs().amax())  # squares of very small or large entries would leave the range
    if unit == 0:
        return 0.0
    largest = 0.0
    for part in matrices.split(max(1, _CHUNK // matrices[0].numel())):
        scaled = part.double() / unit
        gram = scaled @ scaled.mT if part.shape[1] <= part.shape[2] else scaled.mT @ scaled
        largest = max(largest, finite(float(torch.linalg.eigvalsh(gram).amax())))
    return _with_all_digits(unit * math.sqrt(largest) * (1 + SLACK))


def convolution_norm(
    weight: Tensor,
    size: Sequence[int],
    *,
    stride: Sequence[int] = (1, 1),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    iterations: int = 10,
) -> float:
    """Bound the spectral norm of a zero-padded two-dimensional convolution, whatever its padding.

    Windows that do not overlap are numbers apart: the kernel's own norm, as a matrix, which padding can only lower.

    Others: on a torus with room for the whole result nothing wraps around, so the layer is a restriction of the
    circular convolution there, whose norm is the largest over its frequencies (Sedghi et al. 2019). A stride s keeps
    one point in s, which folds s frequencies per axis into one block. Each block is bounded by :func:`gram_norm`.

    Args:
        weight: Shape ``(out, in / groups, kh, kw)``.
        size: Height and width of the input.
        stride: Per axis.
        dilation: Per axis.
        groups: Number of groups.
        iterations: Gram iterations.
    """
    weight = finite_tensor(weight.double())
    out, inner, *kernel = weight.shape
    if all((k - 1) * d < s for k, d, s in zip(kernel, dilation, stride, strict=True)):
        return stack_norm(weight.reshape(groups, out // groups, -1))
    grouped = weight.view(groups, out // groups, inner, *kernel).to(torch.complex128)
    rows, columns = (
        _folded_waves(axis_size, k, s, d, weight.device)
        for axis_size, k, s, d in zip(size, kernel, stride, dilation, strict=True)
    )
    rows = rows[: len(rows) // 2 + 1]  # real weights: opposite frequencies have equal norms
    per_row = groups * len(columns) * (out // groups) * inner * math.prod(stride)
    largest = 0.0
    for part in rows.split(max(1, _CHUNK // per_row)):
        partial = torch.einsum("goihw,rah->groiaw", grouped, part)
        blocks = torch.einsum("groiaw,cbw->grcoiab", partial, columns).flatten(4).flatten(0, 2)
        largest = max(largest, gram_norm(blocks / math.sqrt(math.prod(stride)), iterations))
    return largest


def _folded_waves(size: int, kernel: int, stride: int, dilation: int, device: torch.device) -> Tensor:
    """Return the waves at the kernel's taps, shape ``(N / stride, stride, kernel)``, of a torus with room for all."""
    extent = (kernel - 1) * dilation + 1
    folded = -(-(size + extent - 1) // stride)
    frequency = torch.arange(stride, device=device) * folded + torch.arange(folded, device=device)[:, None]
    taps = torch.arange(kernel, device=device) * dilation
    # The product is reduced while it is an integer, where nothing is lost; times a number it would be torch's default.
    turns = ((frequency[..., None] * taps) % (folded * stride)).double()
    return torch.polar(torch.ones_like(turns), turns * (2 * math.pi / (folded * stride)))


def resize_matrices(
    resize: Callable[[Tensor, list[int]], Tensor], size: Sequence[int], out: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Return the two matrices, float64, of a resize that treats height and width one after the other.

    Args:
        resize: Maps images ``(N, 1, h, w)`` and an output size to resized images.
        size: Height and width of the input.
        out: Height and width of the output.

    Returns:
        Shapes ``(out height, height)`` and ``(out width, width)``.
    """
    # Two equal lines instead of one: torch 2.14's antialiased resize goes wrong on images of width 1.
    height, width = (torch.eye(n, dtype=torch.float64)[:, None] for n in size)
    tall = resize(height[..., None].repeat(1, 1, 1, 2), [out[0], 2])[..., 0]
    wide = resize(width[:, :, None].repeat(1, 1, 2, 1), [2, out[1]])[:, :, 0]
    return tall.flatten(1).T, wide.flatten(1).T


def pooling_matrix(size: int, out: int) -> Tensor:
    """Return the matrix, float64, ``(out, size)``, of adaptive average pooling along one axis."""
    matrix = torch.zeros(out, size, dtype=torch.float64)
    for i in range(out):
        start, end = i * size // out, -(-(i + 1) * size // out)
        matrix[i, start:end] = 1 / (end - start)
    return matrix
