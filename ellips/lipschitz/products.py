"""Products with Jacobians and their transposes, many points at once, at the price of one pass through the network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ellips.types import ImageMap


class Linearization(NamedTuple):
    """The derivative of a function at M points.

    Attributes:
        pulled: Shape of the points: ``J'u`` for the ``u`` that was given.
        pull_back: ``(M, d)`` to the shape of the points: reverse-mode product ``J'u``.
        push_forward: Shape of the points to ``(M, d)``: forward-mode product ``J v``.
    """

    pulled: Tensor
    pull_back: Callable[[Tensor], Tensor]
    push_forward: Callable[[Tensor], Tensor]


def record(function: ImageMap, points: Tensor) -> tuple[Tensor, Tensor]:
    """Run ``function`` so that what it does can be differentiated.

    Args:
        function: Maps ``(M, ...)`` to ``(M, d)``, each point by itself.
        points: Shape ``(M, ...)``.

    Returns:
        The points as leaves of a graph, and the function's value, which hangs on it.

    Raises:
        ValueError: If the value is not of shape ``(M, d)``.
    """
    with torch.enable_grad(), FrozenLayers():
        leaves = points.detach().requires_grad_()
        value = function(leaves)
    if value.ndim != 2 or len(value) != len(points):
        raise ValueError(
            f"Expected the function to map {tuple(points.shape)} to shape ({len(points)}, d) "
            f"but got {tuple(value.shape)}."
        )
    return leaves, value


def reverse_product(value: Tensor, leaves: Tensor, cotangent: Tensor, *, create_graph: bool = False) -> Tensor:
    """Return ``J'u`` for what :func:`record` returned and the ``u`` of shape ``(M, d)``; the graph is kept.

    Raises:
        ValueError: If the value does not depend on the points as far as torch knows.
    """
    product = None
    if value.requires_grad:
        (product,) = torch.autograd.grad(
            value, leaves, cotangent, retain_graph=True, create_graph=create_graph, allow_unused=True
        )
    if product is None:
        raise ValueError(
            "Expected the function to be differentiable with respect to the images but got a value that does not "
            "depend on them as far as torch knows: its Lipschitz constant would be taken for 0. Remove "
            "`torch.no_grad()`, `.detach()` and detours through NumPy from the function."
        )
    return product


def linearize(function: ImageMap, points: Tensor, cotangent: Tensor) -> Linearization:
    """Linearise ``function`` at each point, from one forward pass.

    The reverse-mode product is linear, so its own reverse is the forward-mode product: no product runs the function
    again, as ``torch.func.jvp`` would for every vector, and no layer needs a forward-mode derivative.

    Args:
        function: Maps ``(M, ...)`` to ``(M, d)``, each point by itself.
        points: Shape ``(M, ...)``.
        cotangent: Shape ``(M, d)``: where the reverse-mode product is recorded; its value comes with it.

    Returns:
        The products as functions, to be called as often as one likes.

    Raises:
        ValueError: See :func:`record` and :func:`reverse_product`; or if the value is not of the cotangent's shape.
    """
    leaves, value = record(function, points)
    if value.shape != cotangent.shape:
        raise ValueError(
            f"Expected a start vector of the shape of the function's value, {tuple(value.shape)}, "
            f"but got {tuple(cotangent.shape)}."
        )
    with torch.enable_grad():
        variable = cotangent.detach().requires_grad_()
        pulled = reverse_product(value, leaves, variable, create_graph=True)

    def pull_back(u: Tensor) -> Tensor:
        return reverse_product(value, leaves, u)

    def push_forward(v: Tensor) -> Tensor:
        (product,) = torch.autograd.grad(pulled, variable, v, retain_graph=True)
        return product

    return Linearization(pulled.detach(), pull_back, push_forward)


class FrozenLayers(TorchFunctionMode):
    """While active, layers whose parameters are constants are written so that their derivatives are cheap.

    Derivatives here are with respect to images only. torch's convolution does not know that: the derivative of its
    reverse pass computes one with respect to the weight as well. Batch normalisation by running statistics is a
    scale and a shift, but torch differentiates it as if the statistics came from the batch. Values agree with torch's
    up to rounding; everything else is left to torch.
    """

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        """Replace a call or pass it on."""
        replacement = _REPLACEMENTS.get(func)
        if replacement is not None:
            result = replacement(*args, **(kwargs or {}))
            if result is not None:
                return result
        return func(*args, **(kwargs or {}))


def _batch_norm(
    input: Tensor,  # torch's name, by which it may be given
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    if training or running_mean is None or running_var is None:
        return None
    scale = torch.rsqrt(running_var + eps)
    if weight is not None:
        scale = scale * weight
    shift = -running_mean * scale
    if bias is not None:
        shift = shift + bias
    per_channel = (-1, *[1] * (input.ndim - 2))
    return torch.addcmul(shift.view(per_channel), input, scale.view(per_channel)).to(input.dtype)


def _convolution(
    input: Tensor,  # torch's name, by which it may be given
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, ...] = 1,
    padding: int | str | tuple[int, ...] = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
) -> Tensor | None:
    spatial = weight.ndim - 2
    if isinstance(padding, str) or input.ndim != weight.ndim:
        return None

    def per_axis(setting: int | tuple[int, ...]) -> tuple[int, ...]:
        values = (setting,) if isinstance(setting, int) else tuple(setting)
        return values * spatial if len(values) == 1 else values

    tensors = (x if x is None else _autocast(x) for x in (input, weight, bias))
    result: Tensor = _Convolution.apply(*tensors, per_axis(stride), per_axis(padding), per_axis(dilation), groups)
    return result


def _autocast(tensor: Tensor) -> Tensor:
    """What autocast makes of a convolution's argument; torch does it for its own functions only."""
    kind = tensor.device.type
    if torch.is_autocast_enabled(kind) and tensor.dtype != torch.float64:
        return tensor.to(torch.get_autocast_dtype(kind))
    return tensor


class _Convolution(torch.autograd.Function):
    """A convolution whose reverse pass is written as a transposed convolution, both linear in the image."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch lets a function put anything on it
        image: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, ...],
        padding: tuple[int, ...],
        dilation: tuple[int, ...],
        groups: int,
    ) -> Tensor:
        """Convolve; keep what the reverse pass needs, which is not the input."""
        output = torch.convolution(image, weight, bias, stride, padding, dilation, False, (0,) * len(stride), groups)
        axes = zip(image.shape[2:], weight.shape[2:], output.shape[2:], stride, padding, dilation, strict=True)
        # Strides skip the last rows of some sizes; the transposed convolution has to be told.
        missing = tuple(size - ((o - 1) * s - 2 * p + d * (k - 1) + 1) for size, k, o, s, p, d in axes)
        ctx.settings = (stride, padding, dilation, True, missing, groups)
        ctx.save_for_backward(weight)
        return output

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401 - see above
        *gradients: Tensor,
    ) -> tuple[Tensor | None, ...]:
        """Convolve with the transposed kernel."""
        (weight,) = ctx.saved_tensors
        return torch.convolution(gradients[0], weight, None, *ctx.settings), None, None, None, None, None, None


_REPLACEMENTS: dict[Callable[..., Any], Callable[..., Tensor | None]] = {
    functional.batch_norm: _batch_norm,
    torch.conv1d: _convolution,
    torch.conv2d: _convolution,
    torch.conv3d: _convolution,
}
