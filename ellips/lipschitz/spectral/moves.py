"""Rules of operations that move numbers, copy them or leave some out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn import functional

from ellips.lipschitz.capture.graph import Node
from ellips.lipschitz.spectral.rules import Effect, again, allow, copies, only, refusal, rerun


@allow("view.default", "_unsafe_view.default", "reshape.default", "flatten.using_ints", "unflatten.int")
def _reshaped(node: Node, **_: object) -> Effect:
    """The same numbers in the same order: an isometry, however they lie in memory."""
    return Effect([only(node)], lambda: [1.0], apply=lambda values, sign: values[0].reshape(node.shape))


@allow(
    "permute.default", "transpose.int", "t.default", "squeeze.default", "squeeze.dim", "squeeze.dims",
    "unsqueeze.default", "movedim.int", "flip.default", "roll.default", "pixel_shuffle.default",
    "pixel_unshuffle.default", "channel_shuffle.default",
)  # fmt: skip
def _rearranged(node: Node, **_: object) -> Effect:
    """The same numbers elsewhere: an isometry."""
    return rerun(node, 1.0)


@allow("alias.default", "detach.default", "clone.default", "contiguous.default", "lift_fresh_copy.default")
def _unchanged(node: Node, **_: object) -> Effect:
    """The same numbers: what `detach` hides from autograd it leaves in the value."""
    return Effect([only(node)], lambda: [1.0], apply=lambda values, sign: values[0])


@allow(
    "slice.Tensor",
    "select.int",
    "split.Tensor",
    "split_with_sizes.default",
    "unbind.int",
    "chunk.default",
    "narrow.int",
)
def _selected(node: Node, **_: object) -> Effect:
    """Some of the numbers, each at most once: distances can only shrink."""
    return rerun(node, 1.0)


@allow("expand.default", "repeat.default", "expand_copy.default")
def _copied(node: Node, **_: object) -> Effect:
    """Every number equally often, n times: distances grow by sqrt(n)."""
    return rerun(node, copies(node, only(node)))


@allow("_to_copy.default", "to.dtype", "to.device")
def _widened(node: Node, **_: object) -> Effect:
    """The same numbers on another device or in a wider type; capture refuses narrower ones."""
    return Effect([only(node)], lambda: [1.0], apply=lambda values, sign: values[0])


@allow("dropout.default")
def _undropped(node: Node, input: Node, train: bool, p: float) -> Effect:
    """In eval mode dropout is the identity."""
    if train:
        raise refusal(node, "in training mode; call .eval() first")
    return Effect([input], lambda: [1.0], apply=lambda values, sign: values[0])


@allow("constant_pad_nd.default")
def _padded(node: Node, self: Node, pad: Sequence[int], value: float) -> Effect:
    """Constants added around the numbers, or numbers cut off: distances do not grow."""
    return Effect([self], lambda: [1.0], apply=lambda values, sign: functional.pad(values[0], list(pad)))


@allow("pad.default")
def _padded_by_mode(node: Node, self: Node, pad: Sequence[int], mode: str, value: float | None) -> Effect:
    """As above; the other modes repeat numbers of the border, or of the opposite one."""
    return _padded(node, self, pad, 0.0) if mode == "constant" else _repeated(node)


@allow("index_select.default")
@allow(*(f"{mode}_pad{axes}d.default" for mode in ("reflection", "replication") for axes in (1, 2, 3)))
def _repeated(node: Node, **_: object) -> Effect:
    """Some of the numbers, one of them at most n times: ``Σ n_i (x_i - y_i)^2 <= n ‖x - y‖^2``, hence sqrt(n)."""
    part = only(node)
    places = torch.arange(part.numel, dtype=torch.float64, device=node.device).view(part.shape)
    times = torch.bincount(again(node, places).flatten().long())  # how often each of them comes
    return rerun(node, math.sqrt(int(times.max())) if times.numel() else 0.0)
