"""Rules of affine operations: each has a norm, and can be applied without what it adds."""

# ruff: noqa: ANN401 - torch's operations and their arguments have no common type
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ellips.lipschitz.capture.graph import Node
from ellips.lipschitz.spectral.norms import (
    convolution_norm,
    matrix_norm,
    pooling_matrix,
    resize_matrices,
    scaled_rows,
)
from ellips.lipschitz.spectral.rules import Effect, Sign, again, allow, copies, only, refusal, rerun

# ------------------------------------------------------------------ sums and multiples


@allow("add.Tensor", "add.Scalar")
def _sum(node: Node, self: Any, other: Any, alpha: float) -> Effect:
    """``self + alpha * other``: gains add up; a constant does not count; broadcasting copies."""
    terms = [(x, weight) for x, weight in ((self, 1.0), (other, float(alpha))) if isinstance(x, Node)]

    def apply(values: list[Tensor], sign: Sign) -> Tensor:
        factors = [sign(torch.tensor(weight, dtype=torch.float64)) for _, weight in terms]
        total = sum(value.expand(node.shape) * f.to(value.device) for value, f in zip(values, factors, strict=True))
        assert isinstance(total, Tensor)  # there is at least one term
        return total

    gains = [abs(weight) * copies(node, x) for x, weight in terms]
    return Effect([x for x, _ in terms], lambda: gains, apply=apply)


@allow("sub.Tensor", "sub.Scalar")
def _difference(node: Node, self: Any, other: Any, alpha: float) -> Effect:
    """A sum with the sign changed."""
    return _sum(node, self, other, -alpha)


@allow("rsub.Scalar", "rsub.Tensor")
def _reversed_difference(node: Node, self: Any, other: Any, alpha: float) -> Effect:
    """``other - alpha * self``."""
    return _sum(node, other, self, -alpha)


@allow("neg.default")
def _negative(node: Node, self: Node) -> Effect:
    """An isometry."""
    return _multiple(node, self, torch.tensor(-1.0))


@allow("mul.Tensor", "mul.Scalar")
def _product(node: Node, self: Any, other: Any) -> Effect:
    """Each number by a constant: the largest one counts. Two variable factors have no global constant."""
    part, factor = (self, other) if isinstance(self, Node) else (other, self)
    if isinstance(factor, Node):
        raise refusal(node, "a product of two tensors that depend on the image, as in attention or gating")
    return _multiple(node, part, _precise(factor))


def _precise(constant: Any) -> Tensor:
    """Return a tensor or a number in float64; torch would make float32 of a number, which may become 0 or infinite."""
    return constant.double() if isinstance(constant, Tensor) else torch.tensor(constant, dtype=torch.float64)


def _multiple(node: Node, part: Node, factor: Tensor) -> Effect:
    factor = factor.double()
    largest = float(factor.abs().max()) if factor.numel() else 0.0

    def apply(values: list[Tensor], sign: Sign) -> Tensor:
        return (values[0] * sign(factor).to(values[0].device)).expand(node.shape)

    return Effect([part], lambda: [largest * copies(node, part)], apply=apply)


def quotient(node: Node, part: Node, divisor: object) -> Effect:
    """Each number divided by a constant: the smallest one counts; 0 is refused."""
    reciprocal = 1 / _precise(divisor)
    if not bool(torch.isfinite(reciprocal).all()):
        raise refusal(node, "with a divisor that is 0")
    return _multiple(node, part, reciprocal)


# ------------------------------------------------------------------ matrices and convolutions


def _dense(node: Node, part: Node, matrix: Tensor) -> Effect:
    """``part @ matrix.T`` along the last axis: every row by itself, so the matrix's spectral norm."""
    matrix = matrix.double()
    if matrix.ndim != 2:
        raise refusal(node, f"with a constant of {matrix.ndim} axes")
    return Effect(
        [part],
        lambda: [matrix_norm(matrix)],
        apply=lambda values, sign: values[0] @ sign(matrix).T,
        # A factor per channel, axis 1, is one per row of the matrix if there are no axes between.
        scaled=(lambda scale: matrix_norm(scaled_rows(matrix, scale))) if len(node.shape) == 2 else None,
    )


@allow("linear.default")
def _linear(node: Node, input: Any, weight: Any, bias: Any) -> Effect:
    """A constant matrix; the bias moves both ends alike."""
    if not isinstance(input, Node) or isinstance(weight, Node) or isinstance(bias, Node):
        raise refusal(node, "of the image with itself")
    return _dense(node, input, weight)


@allow("mm.default", "matmul.default")
def _matrix_product(node: Node, self: Any, **others: Any) -> Effect:
    """A constant matrix from the right; for matrices from the left too, on the transpose."""
    (other,) = others.values()
    if isinstance(self, Node) and isinstance(other, Tensor):
        return _dense(node, self, other.T) if other.ndim == 2 else _dense(node, self, other)
    if isinstance(other, Node) and isinstance(self, Tensor) and self.ndim == 2 and len(other.shape) == 2:
        matrix = self.double()
        return Effect([other], lambda: [matrix_norm(matrix)], apply=lambda values, sign: sign(matrix) @ values[0])
    raise refusal(node, "a product of two matrices that depend on the image")


@allow("addmm.default")
def _affine(node: Node, self: Any, mat1: Any, mat2: Any) -> Effect:
    """A constant matrix and a constant bias."""
    if isinstance(self, Node) or not isinstance(mat1, Node) or isinstance(mat2, Node):
        raise refusal(node, "with a bias or a matrix that depends on the image")
    return _dense(node, mat1, mat2.T)


def _pair(values: int | Sequence[int]) -> list[int]:
    given = [values] if isinstance(values, int) else list(values)
    return given * 2 if len(given) == 1 else given


@allow("conv2d.default", "conv2d.padding")
def _conv2d(
    node: Node,
    input: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    iterations: int,
) -> Effect:
    """A zero-padded convolution with a constant kernel: see `convolution_norm`."""
    if not isinstance(input, Node) or isinstance(weight, Node) or isinstance(bias, Node) or weight.ndim != 4:
        raise refusal(node, "not of the image with a constant kernel")
    kernel, size = weight.double(), input.shape[-2:]
    padding = padding if isinstance(padding, str) else _pair(padding)
    settings: dict[str, Any] = {"stride": _pair(stride), "dilation": _pair(dilation), "groups": groups}

    def norm(weights: Tensor) -> float:
        return convolution_norm(weights, size, iterations=iterations, **settings)

    return Effect(
        [input],
        lambda: [norm(kernel)],
        apply=lambda values, sign: functional.conv2d(values[0], sign(kernel), None, padding=padding, **settings),
        scaled=(lambda scale: norm(scaled_rows(kernel, scale))) if len(node.shape) == 4 else None,
    )


@allow("convolution.default")
def _convolution(
    node: Node, input: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, transposed: bool,
    output_padding: Any, groups: int, iterations: int,
) -> Effect:  # fmt: skip
    """As above; transposed ones are refused."""
    if transposed or any(output_padding):
        raise refusal(node, "transposed")
    return _conv2d(node, input, weight, bias, stride, padding, dilation, groups, iterations)


@allow("_native_batch_norm_legit_no_training.default")
def _batch_norm(
    node: Node, input: Any, weight: Any, bias: Any, running_mean: Any, running_var: Any, momentum: float, eps: float
) -> Effect:
    """In eval mode a factor and an addend per channel. Its other results are statistics."""
    constants = (weight, bias, running_mean, running_var)
    if node.output not in (None, 0) or not isinstance(input, Node) or any(isinstance(x, Node) for x in constants):
        raise refusal(node, "with statistics that depend on the image")
    scale = (running_var.double() + eps).rsqrt()
    if weight is not None:
        scale = scaled_rows(scale, weight.double())
    if not bool(torch.isfinite(scale).all()):
        raise refusal(node, "with a variance that is not positive")
    folded = scale.view(-1, *[1] * (len(node.shape) - 2))
    return Effect(
        [input],
        lambda: [float(scale.abs().max())],
        apply=lambda values, sign: values[0] * sign(folded).to(values[0].device),
        scale=scale,
    )


@allow("batch_norm.default")
def _any_batch_norm(
    node: Node, input: Any, weight: Any, bias: Any, running_mean: Any, running_var: Any, training: bool,
    momentum: float, eps: float, cudnn_enabled: bool,
) -> Effect:  # fmt: skip
    """As above; statistics of the batch are refused."""
    if training or running_mean is None or running_var is None:
        raise refusal(node, "with statistics of the batch; call .eval(), and track running statistics")
    return _batch_norm(node, input, weight, bias, running_mean, running_var, momentum, eps)


# ------------------------------------------------------------------ averages


@allow("mean.dim", "mean.default")
def _mean(node: Node, **_: object) -> Effect:
    """The mean of n numbers: 1 / sqrt(n), by Cauchy and Schwarz; the groups do not overlap."""
    part = only(node)
    return rerun(node, math.sqrt(node.numel / part.numel) if part.numel else 0.0)


@allow("sum.dim_IntList", "sum.default")
def _total(node: Node, **_: object) -> Effect:
    """The sum of n numbers: sqrt(n)."""
    return rerun(node, math.sqrt(only(node).numel / node.numel) if node.numel else 0.0)


@allow("avg_pool2d.default")
def _average_pool(
    node: Node, self: Node, kernel_size: Any, stride: Any, padding: Any, ceil_mode: bool, count_include_pad: bool
) -> Effect:
    """A matrix per axis, of which torch makes the rows itself: a window's share is a product of both axes' shares.

    That holds where the border cuts it, too, whether or not it counts what lies outside.
    """
    kernel, margin = _pair(kernel_size), _pair(padding)
    step = _pair(stride) if stride else kernel

    def matrix(axis: int) -> Tensor:
        lines = torch.eye(self.shape[axis - 2], dtype=torch.float64)[:, None, :, None]
        sizes = (kernel[axis], 1), (step[axis], 1), (margin[axis], 0)
        return functional.avg_pool2d(lines, *sizes, ceil_mode, count_include_pad).flatten(1).T

    return _by_axes(node, self, matrix(0), matrix(1))


@allow("adaptive_avg_pool2d.default", "_adaptive_avg_pool2d.default")
def _adaptive_average_pool(node: Node, self: Node, output_size: object) -> Effect:
    """One matrix along the height, another along the width, of windows that may overlap, written out."""
    tall, wide = (pooling_matrix(n, m) for n, m in zip(self.shape[-2:], node.shape[-2:], strict=True))
    return _by_axes(node, self, tall, wide)


@allow(
    "_upsample_bilinear2d_aa.vec", "_upsample_bilinear2d_aa.default", "upsample_bilinear2d.vec",
    "upsample_bilinear2d.default", "_upsample_bicubic2d_aa.vec", "_upsample_bicubic2d_aa.default",
    "upsample_bicubic2d.vec", "upsample_bicubic2d.default", "upsample_nearest2d.vec", "upsample_nearest2d.default",
    "_upsample_nearest_exact2d.vec", "_upsample_nearest_exact2d.default",
)  # fmt: skip
def _resized(node: Node, **arguments: Any) -> Effect:
    """A resize to a size, or by a factor that gives just the same: a matrix along the height, another along the width.

    Torch's own resize need not be their product: 2.14's antialiased ones to a width of one pixel are not, and a factor
    of 1.3 is not the ratio of the sizes.
    """
    part = only(node)
    by_name = {name: value for name, value in arguments.items() if not isinstance(value, Node)}
    by_name |= {"output_size": None} | dict.fromkeys(by_name.keys() & {"scale_factors", "scales_h", "scales_w"})

    def resize(images: Tensor, size: list[int]) -> Tensor:
        first = node.op._schema.arguments[0].name
        resized: Tensor = node.op(**{first: images}, **{**by_name, "output_size": size})
        return resized

    return _by_axes(node, part, *resize_matrices(resize, part.shape[-2:], node.shape[-2:]))


def _by_axes(node: Node, part: Node, tall: Tensor, wide: Tensor) -> Effect:
    """Return the effect of one matrix along the height and another along the width: their norms' product."""
    # Two linear maps that agree on a random image are the same, but for a share 0 of all images.
    probe = torch.randn(part.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    away = again(node, probe.to(node.device)).cpu() - tall @ probe @ wide.T
    if not bool((away.abs() <= 1e-9 * probe.abs().max()).all()):
        raise refusal(
            node,
            "which is not one matrix per axis, by sizes alone; give a size instead of a factor, and take one of at "
            "least two pixels in width",
        )

    def apply(values: list[Tensor], sign: Sign) -> Tensor:
        rows, columns = (sign(matrix).to(values[0].device) for matrix in (tall, wide))
        return rows @ values[0] @ columns.T

    return Effect([part], lambda: [matrix_norm(tall) * matrix_norm(wide)], apply=apply)


# ------------------------------------------------------------------ several pieces


def joined(node: Node, tensors: Sequence[Any], dim: int, *, stacked: bool) -> Effect:
    """Pieces side by side: squares of distances add up."""
    parts = [x for x in tensors if isinstance(x, Node)]

    def apply(values: list[Tensor], sign: Sign) -> Tensor:
        given = iter(values)
        pieces = [next(given) if isinstance(x, Node) else x.double().to(values[0].device) * 0 for x in tensors]
        return torch.stack(pieces, dim) if stacked else torch.cat(pieces, dim)

    return Effect(parts, lambda: [1.0] * len(parts), joined=True, apply=apply)


@allow("stack.default")
def _stacked(node: Node, tensors: Sequence[Any], dim: int) -> Effect:
    """Pieces side by side along a new axis."""
    return joined(node, tensors, dim, stacked=True)
