"""Lipschitz constants of elementary operations: what each does to a distance, proven, or nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from ellips.lipschitz.spectral.norms import convolution_norm, matrix_norm, separable_resize_norm
from ellips.lipschitz.spectral.tracing import Node, UnprovenOperationError

aten = torch.ops.aten

Constants = Callable[[Node], float]
"""The constant of an argument, from the same origin as the result's."""

_MOVES = {
    aten.view, aten._unsafe_view, aten.reshape, aten.permute, aten.transpose, aten.t, aten.squeeze, aten.unsqueeze,
    aten.clone, aten.detach, aten.alias, aten.slice, aten.select, aten.split, aten.split_with_sizes, aten.unbind,
    aten.constant_pad_nd, aten.flip, aten.roll, aten.pixel_unshuffle, aten.pixel_shuffle, aten.channel_shuffle,
    aten.lift_fresh, aten.neg, aten._reshape_alias, aten.contiguous, aten.view_copy,
}  # fmt: skip
_COPIES = {aten.expand, aten.repeat}
_RESIZES = {
    aten._upsample_bilinear2d_aa, aten.upsample_bilinear2d, aten._upsample_bicubic2d_aa, aten.upsample_bicubic2d,
    aten.upsample_nearest2d, aten._upsample_nearest_exact2d,
}  # fmt: skip
_LEGACY_NORMALISATIONS = {aten.native_batch_norm, aten.cudnn_batch_norm, aten.miopen_batch_norm}
_NORMALISATIONS = _LEGACY_NORMALISATIONS | {aten._native_batch_norm_legit_no_training}
_LINEAR = _MOVES | _COPIES | _RESIZES
_LINEAR |= {
    aten.mm,
    aten.addmm,
    aten.convolution,
    aten.mean,
    aten.sum,
    aten.avg_pool2d,
    aten._adaptive_avg_pool2d,
    aten.mul,
}
_SUMS = {aten.add, aten.sub, aten.cat}

# The largest slope of each function; those that no closed form gives are rounded up.
_SLOPES: dict[Any, float] = {
    aten.relu: 1.0, aten.abs: 1.0, aten.tanh: 1.0, aten.sigmoid: 0.25, aten.clamp: 1.0, aten.clamp_min: 1.0,
    aten.clamp_max: 1.0, aten.hardtanh: 1.0, aten.gelu: 1.13, aten.silu: 1.1, aten.mish: 1.09, aten.hardswish: 1.5,
    aten.hardsigmoid: 1 / 6, aten.sin: 1.0, aten.cos: 1.0, aten._softmax: 1.0,
    aten.sort: 1.0, aten.amax: 1.0, aten.amin: 1.0, aten.linalg_vector_norm: 1.0,
}  # fmt: skip


def is_affine(node: Node) -> bool:
    """Tell whether a node is an affine function of those it is made from."""
    packet = _packet(node)
    if not _is_real(node):
        return False
    if packet in _SUMS:
        return True
    if len(node.occurrences) != 1:  # a product of the image with itself is not affine
        return False
    if packet in _NORMALISATIONS:
        return not _uses_batch_statistics(node)
    if packet is aten.div:
        return isinstance(node.args[0], Node)
    return packet in _LINEAR


def constant(node: Node, of: Constants, iterations: int) -> float:
    """Bound the Lipschitz constant of a node, given those of its arguments.

    Args:
        node: Not the image itself.
        of: Constants of the node's arguments.
        iterations: Gram iterations for convolutions.

    Raises:
        UnprovenOperationError: If nothing is proven for this operation in this use.
    """
    packet = _packet(node)
    if not _is_real(node):
        raise UnprovenOperationError(
            f"Expected arithmetic in float32 or float64 throughout but got `{node.op}`, which rounds, converts or "
            "reinterprets numbers."
        )
    if packet in _MOVES or packet is aten._to_copy:
        return of(_only(node))
    if packet in _COPIES:
        return of(_only(node)) * math.sqrt(node.numel / _only(node).numel)
    if packet in _SLOPES:
        return of(_only(node)) * _slope(node, packet)
    if packet in _RESIZES:
        return of(_only(node)) * _resize_norm(node)
    if packet in _NORMALISATIONS:
        return _batch_norm(node, of, iterations)
    rule = _RULES.get(packet)
    if rule is None:
        raise UnprovenOperationError(
            f"Expected operations whose Lipschitz constant is known but got `{node.op}`, for which SpectralProduct "
            "proves none; use Clever (estimated), SmoothedEncoder (probabilistic) or a 1-Lipschitz encoder."
        )
    return rule(node, of, iterations)


def _packet(node: Node) -> Any:  # noqa: ANN401 - torch's operations are untyped
    return node.op.overloadpacket if node.op is not None else None


def _is_real(node: Node) -> bool:
    """Tell whether an operation stays in float32 or float64 and does not round on purpose."""
    values = tree_flatten((node.args, node.kwargs))[0]
    kinds = [value for value in values if isinstance(value, torch.dtype)]
    reinterprets = node.op is not None and node.op is aten.view.dtype
    rounds = node.kwargs.get("rounding_mode") is not None
    return not reinterprets and not rounds and all(kind in (torch.float32, torch.float64) for kind in kinds)


def _only(node: Node) -> Node:
    """Return the one argument that depends on the image, or refuse."""
    if len(node.occurrences) != 1:
        raise UnprovenOperationError(f"Expected `{node.op}` to combine the image with constants only but it does not.")
    return node.inputs[0]


def _slope(node: Node, packet: Any) -> float:  # noqa: ANN401
    if packet is aten.sort and node.output == 1:
        raise UnprovenOperationError("Expected a continuous function but it uses the positions found by a sort.")
    if packet is aten.linalg_vector_norm and node.argument(1, "ord", 2) != 2:
        raise UnprovenOperationError(f"Expected an L2 norm but got order {node.argument(1, 'ord')}.")
    return _SLOPES[packet]


def _leaky_relu(node: Node, of: Constants, iterations: int) -> float:
    return of(_only(node)) * max(1.0, abs(float(node.argument(1, "negative_slope", 0.01))))


def _elu(node: Node, of: Constants, iterations: int) -> float:
    alpha, scale, inner = (
        abs(node.argument(i, name, 1)) for i, name in ((1, "alpha"), (2, "scale"), (3, "input_scale"))
    )
    return of(_only(node)) * float(scale * max(1.0, alpha * inner))


def _sum(node: Node, of: Constants, iterations: int) -> float:
    """Bound ``a + alpha * b``; broadcasting copies."""
    total = 0.0
    factors = (1.0, abs(float(node.kwargs.get("alpha", 1))))
    for part, factor in zip(node.args[:2], factors, strict=True):
        if isinstance(part, Node):
            total += factor * of(part) * math.sqrt(node.numel / part.numel)
    return total


def _product(node: Node, of: Constants, iterations: int) -> float:
    part, other = (node.args[0], node.args[1]) if isinstance(node.args[0], Node) else (node.args[1], node.args[0])
    if isinstance(other, Node):
        raise UnprovenOperationError(
            "Expected a product with a constant but got one of two tensors that depend on the image (as in attention "
            "or gating); it has no global Lipschitz constant."
        )
    largest = float(other.abs().max()) if isinstance(other, Tensor) else abs(float(other))
    return of(part) * largest * math.sqrt(node.numel / part.numel)


def _quotient(node: Node, of: Constants, iterations: int) -> float:
    part, divisor = node.args[:2]
    if isinstance(divisor, Node):
        return _projection(node, part, divisor, of)
    smallest = float(divisor.abs().min()) if isinstance(divisor, Tensor) else abs(float(divisor))
    if not isinstance(part, Node) or smallest == 0:
        raise UnprovenOperationError("Expected a division by a constant that is not zero.")
    return of(part) / smallest * math.sqrt(node.numel / part.numel)


def _projection(node: Node, part: object, divisor: Node, of: Constants) -> float:
    """Bound ``z / max(norm(z), c)``: the projection on the ball of radius c, over c, hence 1 / c."""
    if _packet(divisor) in (aten.clamp, aten.clamp_min) and isinstance(part, Node):
        length, least = divisor.args[0], divisor.argument(1, "min")
        whole = isinstance(length, Node) and length.numel == 1
        if whole and _packet(length) is aten.linalg_vector_norm and length.args[0] is part:
            if _slope(length, aten.linalg_vector_norm) and least is not None and least > 0:
                return of(part) / float(least)
    raise UnprovenOperationError(
        "Expected a division by a constant, or by max(norm, c) as in the projection on a ball, but got one by a "
        "tensor that depends on the image; it has no global Lipschitz constant."
    )


def _matrix_product(node: Node, of: Constants, iterations: int) -> float:
    """Bound ``x @ m`` and ``b + x @ m`` (alpha and beta at 1), from either side."""
    factors = node.args[-2:]
    if node.kwargs and any(value != 1 for value in node.kwargs.values()):
        raise UnprovenOperationError(f"Expected `{node.op}` without scaling but got {node.kwargs}.")
    fixed = [factor for factor in factors if isinstance(factor, Tensor)]
    if len(fixed) != 1 or len(node.occurrences) != 1:
        raise UnprovenOperationError("Expected a product with a constant matrix but got one of two variable ones.")
    return of(node.inputs[0]) * matrix_norm(fixed[0])


def _convolution_weight(node: Node) -> Tensor:
    """Return the kernel of a two-dimensional convolution of the image with constants, or refuse."""
    weight, bias, transposed = node.args[1], node.args[2], node.args[6]
    fits = isinstance(node.args[0], Node) and isinstance(weight, Tensor) and not isinstance(bias, Node)
    if not fits or transposed or weight.ndim != 4:
        raise UnprovenOperationError("Expected a plain two-dimensional convolution with a constant kernel.")
    kernel: Tensor = weight
    return kernel


def _convolution(node: Node, of: Constants, iterations: int, scale: Tensor | None = None) -> float:
    weight = _convolution_weight(node).double()
    if scale is not None:
        weight = weight * scale[:, None, None, None]
    norm = convolution_norm(
        weight,
        node.args[0].shape[-2:],
        stride=node.args[3],
        dilation=node.args[5],
        groups=node.args[8],
        iterations=iterations,
    )
    return of(node.args[0]) * norm


def _uses_batch_statistics(node: Node) -> bool:
    """Tell whether a BatchNorm is anything but a fixed affine map; all its results but the first are statistics."""
    training = _packet(node) in _LEGACY_NORMALISATIONS and bool(node.args[5])
    return training or node.output != 0 or not isinstance(node.args[0], Node)


def _batch_norm(node: Node, of: Constants, iterations: int) -> float:
    """Bound BatchNorm in eval mode, folded into the convolution or matrix before it."""
    before = _only(node)
    if _uses_batch_statistics(node):
        raise UnprovenOperationError("Expected BatchNorm in eval mode but got batch statistics; call .eval().")
    _, weight, _, _, variance, *rest = node.args
    epsilon = node.args[7] if _packet(node) in _LEGACY_NORMALISATIONS else rest[-1]
    scale = (variance.double() + epsilon).rsqrt()
    if weight is not None:
        scale = scale * weight.double()
    if _packet(before) is aten.convolution:
        return _convolution(before, of, iterations, scale)
    if _packet(before) is aten.addmm and isinstance(before.args[2], Tensor) and is_affine(before):
        return of(_only(before)) * matrix_norm(before.args[2].double() * scale)
    return of(before) * float(scale.abs().max())


def _mean(node: Node, of: Constants, iterations: int) -> float:
    part = _only(node)
    return of(part) * math.sqrt(node.numel / part.numel)


def _total(node: Node, of: Constants, iterations: int) -> float:
    part = _only(node)
    return of(part) * math.sqrt(part.numel / node.numel)


def _window(node: Node) -> tuple[list[int], list[int], list[int]]:
    """Return kernel, stride and padding of a pooling layer, per axis."""
    kernel = node.args[1]
    stride = node.argument(2, "stride", []) or kernel
    padding = node.argument(3, "padding", 0)
    pairs = (
        [*values, *values][:2] if isinstance(values, list) else [values] * 2 for values in (kernel, stride, padding)
    )
    first, second, third = pairs
    return first, second, third


def _average_pool(node: Node, of: Constants, iterations: int) -> float:
    kernel, stride, padding = _window(node)
    ceil_mode = node.argument(4, "ceil_mode", False)
    counts_padding = node.argument(5, "count_include_pad", True)
    size = _only(node).shape[-2:]
    partial = ceil_mode and any((n + 2 * p - k) % s for n, k, s, p in zip(size, kernel, stride, padding, strict=True))
    if partial or (any(padding) and not counts_padding) or node.argument(6, "divisor_override") is not None:
        raise UnprovenOperationError("Expected average pooling over whole windows but got windows cut at the border.")
    weight = torch.full((1, 1, *kernel), 1 / math.prod(kernel), dtype=torch.float64)
    return of(_only(node)) * convolution_norm(weight, size, stride=stride, iterations=iterations)


def _adaptive_average_pool(node: Node, of: Constants, iterations: int) -> float:
    part = _only(node)
    if any(n % m for n, m in zip(part.shape[-2:], node.shape[-2:], strict=True)):
        raise UnprovenOperationError("Expected adaptive pooling to windows of one size but got overlapping ones.")
    return of(part) * math.sqrt(node.numel / part.numel)


def _max_pool(node: Node, of: Constants, iterations: int) -> float:
    """Bound max pooling by the number of windows that a pixel lies in."""
    if node.output != 0:
        raise UnprovenOperationError("Expected a continuous function but it uses the positions of maxima.")
    kernel, stride, _ = _window(node)
    dilation = node.argument(4, "dilation", 1)
    spread = [*dilation, *dilation][:2] if isinstance(dilation, list) else [dilation] * 2
    windows = [-(-((k - 1) * d + 1) // s) for k, s, d in zip(kernel, stride, spread, strict=True)]
    return of(_only(node)) * math.sqrt(math.prod(windows))


def _joined(node: Node, of: Constants, iterations: int) -> float:
    return math.sqrt(sum(of(part) ** 2 for part in node.args[0] if isinstance(part, Node)))


def _extremum(node: Node, of: Constants, iterations: int) -> float:
    """Bound the larger or smaller of two tensors, element by element."""
    copies = [math.sqrt(node.numel / part.numel) for part in node.inputs]
    return math.sqrt(sum((of(part) * factor) ** 2 for part, factor in zip(node.inputs, copies, strict=True)))


def _resize_norm(node: Node) -> float:
    size, out = _only(node).shape[-2:], node.shape[-2:]
    corners = [value for value in node.args[2:3] if isinstance(value, bool)]
    rest = node.args[3:] if corners else node.args[2:]
    if any(value is not None for value in (*rest, *node.kwargs.values())):
        raise UnprovenOperationError("Expected a resize to a given size but got one by a given factor.")
    return separable_resize_norm(lambda images, target: node.op(images, target, *corners), size, out)


_RULES: dict[Any, Callable[[Node, Constants, int], float]] = {
    aten.add: _sum,
    aten.sub: _sum,
    aten.mul: _product,
    aten.div: _quotient,
    aten.mm: _matrix_product,
    aten.addmm: _matrix_product,
    aten.convolution: _convolution,
    aten.mean: _mean,
    aten.sum: _total,
    aten.avg_pool2d: _average_pool,
    aten._adaptive_avg_pool2d: _adaptive_average_pool,
    aten.max_pool2d_with_indices: _max_pool,
    aten.cat: _joined,
    aten.maximum: _extremum,
    aten.minimum: _extremum,
    aten.leaky_relu: _leaky_relu,
    aten.elu: _elu,
}
