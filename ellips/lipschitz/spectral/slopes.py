"""Rules of operations that are not affine: each has a largest slope."""

# ruff: noqa: ANN401 - torch's operations and their arguments have no common type
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ellips.lipschitz.capture.graph import Node
from ellips.lipschitz.spectral.affine import joined, quotient
from ellips.lipschitz.spectral.pieces import pieces_of_one
from ellips.lipschitz.spectral.rules import Effect, allow, aten, copies, refusal, slope

# ------------------------------------------------------------------ number by number


@allow("relu.default", "relu6.default", "abs.default", "tanh.default", "sin.default", "cos.default", "atan.default")
def _of_slope_one(node: Node, self: Node) -> Effect:
    """Derivatives between -1 and 1, without jumps."""
    return slope(node, 1.0)


@allow("sigmoid.default")
def _sigmoid(node: Node, self: Node) -> Effect:
    """S (1 - s) is at most 1/4."""
    return slope(node, 0.25)


@allow("hardsigmoid.default")
def _hard_sigmoid(node: Node, self: Node) -> Effect:
    """clamp(x / 6 + 1/2, 0, 1)."""
    return slope(node, 1 / 6)


@allow("gelu.default")
def _gelu(node: Node, self: Node, approximate: str) -> Effect:
    """Largest derivative 1.1290 at sqrt(2), exact and with tanh (1.1291)."""
    if approximate not in ("none", "tanh"):
        raise refusal(node, f"approximated by {approximate!r}")
    return slope(node, 1.13)


@allow("silu.default")
def _silu(node: Node, self: Node) -> Effect:
    """Largest derivative 1.0999 at 2.3994."""
    return slope(node, 1.1)


@allow("mish.default")
def _mish(node: Node, self: Node) -> Effect:
    """Largest derivative 1.0885 at 1.4906."""
    return slope(node, 1.09)


@allow("hardswish.default")
def _hard_swish(node: Node, self: Node) -> Effect:
    """X clamp(x + 3, 0, 6) / 6: derivative (2 x + 3) / 6 up to x = 3, where it is 3/2."""
    return slope(node, 1.5)


@allow("hardtanh.default", "clamp.default", "clamp_min.default", "clamp_max.default")
def _clamped(node: Node, self: Node, **bounds: float | None) -> Effect:
    """Projection on an interval; bounds are numbers, the lower one first."""
    low, high = (next((bounds[k] for k in names if k in bounds), None) for names in (("min", "min_val"), _UPPER))
    if low is not None and high is not None and low > high:
        raise refusal(node, f"with the bounds {low} > {high}")
    return slope(node, 1.0)


_UPPER = ("max", "max_val")


@allow("leaky_relu.default")
def _leaky_relu(node: Node, self: Node, negative_slope: float) -> Effect:
    """One slope above 0, another below."""
    return slope(node, max(1.0, abs(float(negative_slope))))


@allow("prelu.default", "_prelu_kernel.default")
def _prelu(node: Node, self: Any, weight: Any) -> Effect:
    """As above, with constants per channel."""
    if not isinstance(self, Node) or not isinstance(weight, Tensor) or node.shape != self.shape:
        raise refusal(node, "with slopes that depend on the image")
    return slope(node, max(1.0, float(weight.double().abs().max())))


@allow("elu.default", "selu.default", "celu.default")
def _elu(node: Node, self: Node, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Effect:
    """``scale * x`` above 0, ``scale * alpha * (exp(input_scale * x) - 1)`` below: steepest at 0, if it decays."""
    if node.op is aten.selu.default:
        alpha, scale = 1.6732632423543772, 1.0507009873554805
    elif node.op is aten.celu.default:
        if alpha == 0:
            raise refusal(node, "with `alpha` 0")
        input_scale = 1 / alpha
    if input_scale < 0:
        raise refusal(node, "that grows exponentially")
    return slope(node, abs(scale) * max(1.0, abs(alpha) * input_scale) * (1 + 1e-15))


@allow("maximum.default", "minimum.default")
def _extremum(node: Node, self: Any, other: Any) -> Effect:
    """The result moves by at most the larger of both moves, hence by at most the root of their squares' sum."""
    parts = [x for x in (self, other) if isinstance(x, Node)]
    return Effect(parts, lambda: [copies(node, part) for part in parts], joined=True)


# ------------------------------------------------------------------ many numbers at once


@allow("sort.default", "sort.stable")
def _sort(node: Node, **_: object) -> Effect:
    """Sorting brings two sets of numbers no farther apart (rearrangement inequality). Positions jump: refused."""
    _refuse_positions(node)
    return slope(node, 1.0)


@allow("amax.default", "amin.default", "max.dim", "min.dim")
def _largest(node: Node, **_: object) -> Effect:
    """A largest number moves by at most the largest move in its group; groups do not overlap. Positions jump."""
    _refuse_positions(node)
    return slope(node, 1.0)


def _refuse_positions(node: Node) -> None:
    if node.output not in (None, 0):
        raise refusal(node, "whose positions jump")


@allow("linalg_vector_norm.default")
def _length(node: Node, self: Node, ord: float, dim: object, keepdim: bool) -> Effect:
    """L2 norms of groups that do not overlap: the triangle inequality."""
    if ord != 2:
        raise refusal(node, f"of order {ord} instead of 2")
    return slope(node, 1.0)


@allow("norm.ScalarOpt_dim")
def _older_length(node: Node, self: Node, p: float | None, dim: object, keepdim: bool) -> Effect:
    """The same under its older name."""
    return _length(node, self, 2 if p is None else p, dim, keepdim)


@allow("softmax.int", "_softmax.default")
def _softmax(node: Node, self: Node, dim: int) -> Effect:
    """Its Jacobian is a covariance matrix with eigenvalues of at most 1/2."""
    # v' J v is the variance of a choice among the v_i: at most (max - min)^2 / 4 <= 1/2 for unit v (Popoviciu).
    return slope(node, 0.5)


@allow("max_pool2d.default", "max_pool2d_with_indices.default")
def _max_pool(
    node: Node, self: Node, kernel_size: Any, stride: Any, padding: object, dilation: Any, ceil_mode: bool
) -> Effect:
    """Each result moves by at most the largest move in its window; a pixel lies in at most that many windows."""
    _refuse_positions(node)
    windows = 1
    for axis in range(2):
        kernel, step, spread = (
            x if isinstance(x, int) else x[axis % len(x)] for x in (kernel_size, stride or kernel_size, dilation)
        )
        # Windows that hold a pixel start within a stretch of this extent, one every `step`.
        windows *= -(-((kernel - 1) * spread + 1) // step)
    return slope(node, math.sqrt(windows))


@allow("cat.default")
def _joined(node: Node, tensors: Sequence[Any], dim: int, iterations: int) -> Effect:
    """Pieces side by side: squares add up. The least and the largest of every pair are the pair, sorted: 1.

    Different pieces of one tensor count as the steepest of them: see `pieces_of_one`.
    """
    pair = _pair_of_extremes(tensors, dim)
    if pair is not None:
        return Effect([pair], lambda: [1.0])
    return pieces_of_one(tensors, dim, iterations) or joined(node, tensors, dim, stacked=False)


def _pair_of_extremes(tensors: Sequence[Any], dim: int) -> Node | None:
    """Return what two neighbours are the smaller and the larger of, as in torchlip's GroupSort2."""
    if len(tensors) != 2 or not all(isinstance(x, Node) and x.op is not None for x in tensors):
        return None
    if {x.op for x in tensors} not in ({aten.min.dim, aten.max.dim}, {aten.amin.default, aten.amax.default}):
        return None
    given = [x.arguments() for x in tensors]
    whole = given[0]["self"]
    axes = [x["dim"] if isinstance(x["dim"], int) else x["dim"][0] if len(x["dim"]) == 1 else None for x in given]
    kept = all(x["keepdim"] and x["self"] is whole for x in given) and all(x.output in (None, 0) for x in tensors)
    axis = axes[0]
    if not kept or axis is None or axes[0] != axes[1]:
        return None
    fits = axis % len(whole.shape) == dim % len(whole.shape) and whole.shape[axis] == 2
    return whole if fits else None


# ------------------------------------------------------------------ quotients


@allow("div.Tensor", "div.Scalar")
def _quotient(node: Node, self: Any, other: Any) -> Effect:
    """By a constant; or by max(norm, c), as in the projection on a ball. Others have no global constant."""
    if isinstance(self, Node) and not isinstance(other, Node):
        return quotient(node, self, other)
    least = _least_length(self, other)
    if least is None:
        raise refusal(node, "a division by what depends on the image, other than by max(norm, c)")
    # z / max(norm(z), c) is the projection on the ball of radius c, which brings no points apart, over c; the divisor's
    # axes may make copies of it.
    return Effect([self], lambda: [copies(node, self) / least])


def _least_length(part: Any, divisor: Any) -> float | None:
    """Return c > 0 if the divisor is max(norm of the whole part, c), one number."""
    if not isinstance(part, Node) or not isinstance(divisor, Node):
        return None
    while divisor.op in (aten.expand.default, aten.alias.default):  # broadcasting, as torch.nn.functional spells it
        divisor = divisor.args[0]
    if divisor.op not in (aten.clamp.default, aten.clamp_min.default):
        return None
    bounds = divisor.arguments()
    length, least = bounds["self"], bounds["min"]
    if bounds.get("max") is not None or least is None or not float(least) > 0:
        return None
    if length.op not in (aten.linalg_vector_norm.default, aten.norm.ScalarOpt_dim) or length.numel != 1:
        return None
    inner = length.arguments()
    order = inner["ord"] if "ord" in inner else inner["p"]
    return float(least) if inner["self"] is part and order in (2, None) and length.dtype == part.dtype else None
