"""What a function does to one image, as a graph of ATen operations that can be run again, in float64 too."""

# ruff: noqa: ANN401 - torch's operations and their arguments have no common type

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

JITTER = 2.0**-49
"""Rounding of float64, four bits coarser: what it moves at random is taken for what float64 may lose."""


class UnprovenOperationError(ValueError):
    """A function does something for which nothing is proven here."""


@dataclass(eq=False)
class Node:
    """One tensor that depends on the image.

    Attributes:
        op: The overload of the operation that made it; None for the image itself.
        args: The operation's arguments; tensors that depend on the image are nodes, all others are tensors.
        kwargs: The same for keyword arguments.
        shape: Its shape, with a batch of one.
        dtype: Its type.
        output: Which of the operation's results it is, None if there is one only.
        device: Where it lies.
    """

    op: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    shape: torch.Size
    dtype: torch.dtype
    output: int | None = None
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - it cannot be changed

    @property
    def inputs(self) -> list[Node]:
        """The nodes among the arguments, as often as they occur."""
        return [x for x in tree_flatten((self.args, self.kwargs))[0] if isinstance(x, Node)]

    @property
    def numel(self) -> int:
        """Number of elements."""
        return self.shape.numel()

    def arguments(self) -> dict[str, Any]:
        """Return every argument of the operation by its name, defaults included."""
        return by_name(self.op, self.args, self.kwargs)


@dataclass(frozen=True, eq=False)
class Graph:
    """A map from one image ``(1, C, H, W)`` to one latent ``(1, d)``.

    Attributes:
        source: The image.
        nodes: All that depends on it, each after those it is made from, whether the result depends on it or not.
        result: The latent.
        in_float64: The same graph with all constants that the function computes from others computed in float64; None
            where it computes none.
        stored: Then the weights, as they lie in the function and as they were: float32 may hide that they changed.
    """

    source: Node
    nodes: list[Node]
    result: Node
    in_float64: Graph | None = None
    stored: tuple[tuple[Tensor, Tensor], ...] = ()

    def run(self, images: Tensor, jitter: float = 0.0) -> Tensor:
        """Map images ``(N, C, H, W)`` one by one to ``(N, d)``: in float64 if they are, else as the function does.

        Args:
            images: The images.
            jitter: Move every number at random, those of the images too, by up to this share of the largest beside it,
                to see what rounding does.
        """
        values = [self.run_one(image[None], jitter) for image in images]
        return torch.cat(values) if values else images.new_empty(0, self.result.shape[1])

    def run_one(self, image: Tensor, jitter: float = 0.0) -> Tensor:
        """Map one image ``(1, C, H, W)`` to ``(1, d)``; see :meth:`run`."""
        wide = image.dtype == torch.float64
        if wide and self.in_float64 is not None:
            return self.in_float64.run_one(image, jitter)
        generator = torch.Generator().manual_seed(0)
        image = image.contiguous()  # as it was captured
        values: dict[Node, Tensor] = {self.source: jittered(image, jitter, generator)}

        def concrete(item: object) -> object:
            if isinstance(item, Node):
                return values[item]
            if wide and isinstance(item, Tensor) and item.is_floating_point():
                return item.double()
            return torch.float64 if wide and item is torch.float32 else item

        for node in self.needed:
            args, kwargs = tree_map(concrete, (node.args, node.kwargs))
            result = node.op(*args, **kwargs)
            values[node] = jittered(result if node.output is None else result[node.output], jitter, generator)
        return values[self.result]

    @property
    def is_current(self) -> bool:
        """Whether the weights that others are computed from are what they were."""
        return all(torch.equal(present, before) for present, before in self.stored)

    @property
    def needed(self) -> list[Node]:
        """The nodes that the result depends on, without the image."""
        found = {self.result}
        for node in reversed(self.nodes):
            if node in found:
                found.update(node.inputs)
        return [node for node in self.nodes if node in found]

    @property
    def digest(self) -> str:
        """SHA-256 of operations, shapes and constants: of all that a bound depends on."""
        hashed = hashlib.sha256(f"{tuple(self.source.shape)} {self.source.dtype};".encode())
        number = {self.source: 0}
        for node in self.nodes:
            number[node] = len(number)
            hashed.update(f"{node.op} {tuple(node.shape)} {node.dtype} {node.output}:".encode())
            flat, structure = tree_flatten((node.args, node.kwargs))
            hashed.update(str(structure).encode())
            for value in flat:
                feed(hashed, f"node {number[value]}" if isinstance(value, Node) else value)
        hashed.update(f"result {number[self.result]}".encode())
        return hashed.hexdigest()


def jittered(value: Tensor, jitter: float, generator: torch.Generator) -> Tensor:
    """Move every number of a tensor at random by up to a share ``jitter`` of the largest."""
    if not jitter or not value.is_floating_point() or not value.numel():
        return value
    noise = 2 * torch.rand(value.shape, generator=generator, dtype=torch.float64) - 1
    return value + jitter * value.abs().amax() * noise.to(value)


def by_name(op: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return every argument of a call of an ATen operation by its name, defaults included."""
    found: dict[str, Any] = {}
    for position, argument in enumerate(op._schema.arguments):
        default = argument.default_value if argument.has_default_value() else None
        found[argument.name] = args[position] if position < len(args) else kwargs.get(argument.name, default)
    return found


def is_random(op: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Tell whether a call of an ATen operation draws random numbers: dropout does not, in eval mode or with p = 0."""
    if torch.Tag.nondeterministic_seeded not in op.tags:
        return False
    given = by_name(op, args, kwargs)
    return not (given.get("dropout_p") == 0 or given.get("train") is False or given.get("training") is False)


def feed(hashed: hashlib._Hash, value: object) -> None:
    """Add a value to a hash, a tensor with its type, shape and content."""
    if isinstance(value, Tensor):
        hashed.update(f"{value.dtype} {tuple(value.shape)} {value.device};".encode())
        hashed.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    else:
        hashed.update(f"{value!r};".encode())
