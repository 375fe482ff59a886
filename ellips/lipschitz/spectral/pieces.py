"""What is split, worked on piece by piece and joined again, as in shifts of groups of channels."""

# ruff: noqa: ANN401 - torch's operations and their arguments have no common type
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from ellips.lipschitz.capture.graph import Node
from ellips.lipschitz.spectral.norms import times
from ellips.lipschitz.spectral.rules import Effect, Sign, again, aten, effect

_SPLITS = (aten.split_with_sizes.default, aten.split.Tensor)


@dataclass(frozen=True)
class _Piece:
    """One piece of a split, and the operations that it goes through, in order."""

    start: Node
    effects: list[Effect]

    def gain(self) -> float:
        return reduce(times, (gain for done in self.effects for gain in done.gains()), 1.0)

    def apply(self, whole: Tensor, sign: Sign) -> Tensor:
        value = again(self.start, whole)
        for done in self.effects:
            assert done.apply is not None
            value = sign.after(done.apply([value], sign))
        return value


def pieces_of_one(tensors: Sequence[Any], dim: int, iterations: int) -> Effect | None:
    """Return the effect of joining different pieces of one tensor, each after operations of its own.

    One call's pieces do not overlap, so with g_i of slope c_i on the piece x_i: ``‖g(x) − g(y)‖² = Σ ‖g_i(x_i) −
    g_i(y_i)‖² ≤ Σ c_i² ‖x_i − y_i‖² ≤ max c_i² ‖x − y‖²``. Without this rule each piece would count as a whole.

    Args:
        tensors: What ``cat`` joins.
        dim: Along which axis; it does not matter for distances.
        iterations: Gram iterations for convolutions.

    Returns:
        None where they are anything else; then the lengths of all add up.
    """
    pieces = [_piece(tensor, iterations) for tensor in tensors]
    if not pieces or any(piece is None for piece in pieces):
        return None
    found = [piece for piece in pieces if piece is not None]
    if len({_call(piece.start) for piece in found}) > 1 or len({piece.start.output for piece in found}) < len(found):
        return None  # of several tensors, of one split in several ways, or one piece twice

    def apply(values: list[Tensor], sign: Sign) -> Tensor:
        return torch.cat([piece.apply(values[0], sign) for piece in found], dim)

    affine = all(done.apply is not None for piece in found for done in piece.effects)
    return Effect(
        [found[0].start.inputs[0]],
        lambda: [max(piece.gain() for piece in found)],
        apply=apply if affine else None,
    )


def _piece(tensor: Any, iterations: int) -> _Piece | None:
    """Go back from a tensor, through operations of one argument, to the split that it comes from."""
    effects: list[Effect] = []
    while isinstance(tensor, Node) and tensor.op is not None:
        if tensor.op in _SPLITS:
            return _Piece(tensor, effects[::-1]) if tensor.output is not None else None
        done = effect(tensor, iterations)
        if len(done.parts) != 1:
            return None
        effects.append(done)
        tensor = done.parts[0]
    return None


def _call(start: Node) -> tuple[int, str]:
    """Return what two pieces must have in common: the very same tensor, split in the same way."""
    given = start.arguments()
    return id(given.pop("self")), f"{start.op} {given}"
