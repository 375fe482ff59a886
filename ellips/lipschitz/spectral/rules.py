"""The allow-list: what each operation does to a distance, with the reason beside it. What is not here is refused.

A rule is a function whose parameters are those arguments of the operation, by their names in ATen's schema, that it
looks at. Any other argument has to have its default value. ``**_`` stands for arguments that say only where numbers go.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from ellips.lipschitz.capture.graph import Node, UnprovenOperationError

aten = torch.ops.aten


@dataclass(frozen=True)
class Sign:
    """With what an affine operation is applied.

    Attributes:
        of: What is made of its constants before: themselves, or their absolute values.
        addend: What is added to every number of its result.
    """

    of: Callable[[Tensor], Tensor]
    addend: float = 0.0

    def __call__(self, constants: Tensor) -> Tensor:
        """Return what takes the constants' place."""
        return self.of(constants)

    def after(self, result: Tensor) -> Tensor:
        """Return a result with what is added to it."""
        return result + self.addend if self.addend else result


@dataclass(frozen=True)
class Effect:
    """What an operation does to distances between the values of one or more parts.

    Attributes:
        parts: The arguments that depend on the image, as often as they occur.
        gains: For each part a bound of the slope in it.
        joined: Whether the result is made of separate pieces, one per part, so that squares add up, not lengths.
        apply: Of an affine operation the linear part: all that is only added is left out. None if it is not affine.
        scale: Of an affine operation that multiplies each channel by a number: the numbers, to be folded into what
            stands before.
        scaled: Of one whose result's channels may be multiplied by numbers: the bound then.
    """

    parts: list[Node]
    gains: Callable[[], list[float]]
    joined: bool = False
    apply: Callable[[list[Tensor], Sign], Tensor] | None = None
    scale: Tensor | None = None
    scaled: Callable[[Tensor], float] | None = None


Rule = Callable[..., Effect]
RULES: dict[Any, tuple[Rule, tuple[inspect.Parameter, ...]]] = {}


def allow(*names: str) -> Callable[[Rule], Rule]:
    """Put overloads of ATen operations on the list, those that this version of torch has."""

    def register(rule: Rule) -> Rule:
        parameters = tuple(inspect.signature(rule).parameters.values())[1:]
        for name in names:
            packet, _, overload = name.partition(".")
            if hasattr(aten, packet) and overload in getattr(aten, packet).overloads():
                RULES[getattr(getattr(aten, packet), overload)] = (rule, parameters)
        return rule

    return register


def effect(node: Node, gram_iterations: int) -> Effect:
    """Return what the operation of a node does.

    Args:
        node: Not the image itself.
        gram_iterations: Gram iterations for convolutions.

    Raises:
        UnprovenOperationError: If the operation is not on the list, or not as it is used here.
    """
    if node.op not in RULES:
        raise refusal(node, "for which SpectralProduct proves no constant")
    rule, signature = RULES[node.op]
    parameters = {parameter.name for parameter in signature}
    whatever = any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature)
    if node.dtype not in (torch.float32, torch.float64):
        raise refusal(node, f"whose result is of type {node.dtype}")
    given: dict[str, Any] = {}
    defaults = {x.name: x.default_value for x in node.op._schema.arguments if x.has_default_value()}
    for name, value in node.arguments().items():
        if name in parameters or whatever:
            given[name] = value
        elif isinstance(value, Tensor | Node) or name not in defaults or value != defaults[name]:
            raise refusal(node, f"with `{name}` = {value if not isinstance(value, Tensor) else 'a tensor'}")
    for value in tree_flatten((node.args, node.kwargs))[0]:
        _require_finite(node, value)
    if "iterations" in parameters:
        given["iterations"] = gram_iterations
    return rule(node, **given)


def refusal(node: Node, what: str) -> UnprovenOperationError:
    """Return the error that names an operation and what to do."""
    return UnprovenOperationError(
        f"Expected operations whose Lipschitz constant is known but got `{node.op}`, {what}; use Clever (estimated), "
        "SmoothedEncoder (probabilistic) or a 1-Lipschitz encoder."
    )


def only(node: Node) -> Node:
    """Return the one argument that depends on the image, or refuse."""
    if len(node.inputs) != 1:
        raise refusal(node, "of several tensors that depend on the image")
    return node.inputs[0]


def again(node: Node, value: Tensor) -> Tensor:
    """Apply the operation of a node to another value, in float64, of its one argument that depends on the image."""

    def given(item: object) -> object:
        return value if isinstance(item, Node) else torch.float64 if isinstance(item, torch.dtype) else item

    args, kwargs = tree_map(given, (node.args, node.kwargs))
    result: Any = node.op(*args, **kwargs)
    found: Tensor = result if node.output is None else result[node.output]
    return found


def rerun(node: Node, gain: float) -> Effect:
    """Return the effect of a linear operation whose coefficients are all at least 0, whichever they are."""
    return Effect([only(node)], lambda: [gain], apply=lambda values, sign: again(node, values[0]))


def slope(node: Node, gain: float) -> Effect:
    """Return the effect of an operation that is not affine."""
    return Effect([only(node)], lambda: [gain])


def copies(node: Node, part: Node) -> float:
    """Return the norm of broadcasting: every number comes equally often."""
    return math.sqrt(node.numel / part.numel) if part.numel else 0.0


def _require_finite(node: Node, value: object) -> None:
    finite = True
    if isinstance(value, Tensor) and value.is_floating_point():
        finite = bool(torch.isfinite(value).all())
    elif isinstance(value, float):
        finite = math.isfinite(value)
    if not finite or isinstance(value, complex) or (isinstance(value, Tensor) and value.is_complex()):
        raise refusal(node, "with a constant that is not a finite number; check the weights")
