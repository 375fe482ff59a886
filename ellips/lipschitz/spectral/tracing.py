"""What a function does to an image, written down as a graph of elementary operations."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from ellips.types import ImageMap

aten = torch.ops.aten


class UnprovenOperationError(ValueError):
    """A function does something for which no Lipschitz constant is proven here."""


@dataclass(eq=False)
class Node:
    """One tensor that depends on the image.

    Attributes:
        op: The operation that made it; None for the image itself.
        args: The operation's arguments; tensors that depend on the image are nodes, all others are tensors.
        kwargs: The same for keyword arguments.
        shape: Its shape, with a batch of one.
        output: Which of the operation's results it is, None if there is one only.
    """

    op: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    shape: torch.Size
    output: int | None = None

    @property
    def inputs(self) -> list[Node]:
        """The nodes among the arguments, each once."""
        return list(dict.fromkeys(self.occurrences))

    @property
    def occurrences(self) -> list[Node]:
        """The nodes among the arguments, as often as they occur."""
        return [x for x in tree_flatten((self.args, self.kwargs))[0] if isinstance(x, Node)]

    @property
    def numel(self) -> int:
        """Number of elements."""
        return self.shape.numel()

    def argument(self, position: int, name: str, default: object = None) -> Any:  # noqa: ANN401 - any argument
        """Return an argument that may have been given by position, by name, or not at all."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)


class _Recorder(TorchDispatchMode):
    """Record every operation on tensors that depend on the image."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's is untyped
        self.source = Node(None, (), {}, image.shape)
        self.nodes: dict[int, Node] = {id(image): self.source}
        self.alive: list[Tensor] = [image]  # an id means nothing once its tensor is gone

    def __torch_dispatch__(  # the name and the arguments are torch's
        self,
        func: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise UnprovenOperationError(f"Expected a function without randomness but got `{func}`.")
        traced_args, traced_kwargs = tree_map(lambda x: self._node_of(x) or x, (args, kwargs))
        node = Node(func, traced_args, traced_kwargs, torch.Size())
        if not node.inputs:
            return result
        if func._schema.is_mutable:
            raise UnprovenOperationError(f"Expected a function without operations in place but got `{func}`.")
        if func is aten._local_scalar_dense.default:
            _require_finiteness_check(node.inputs[0])
            return result
        several = isinstance(result, list | tuple)
        for position, tensor in enumerate(result if several else [result]):
            if isinstance(tensor, Tensor):
                output = position if several else None
                self.nodes[id(tensor)] = Node(func, node.args, node.kwargs, tensor.shape, output)
                self.alive.append(tensor)
        return result

    def _node_of(self, value: object) -> Node | None:
        return self.nodes.get(id(value)) if isinstance(value, Tensor) else None


def trace(function: ImageMap, image: Tensor) -> tuple[Node, Node]:
    """Record what ``function`` does to one image.

    The record holds for every image of the shape: a function that decides by pixel values is refused, but for the
    check that values are finite.

    Args:
        function: Maps ``(1, C, H, W)`` to ``(1, d)``.
        image: Shape ``(1, C, H, W)``.

    Returns:
        The image's node and the result's.

    Raises:
        UnprovenOperationError: If the function draws random numbers, decides by pixel values or leaves torch.
    """
    image = image.detach().clone()
    recorder = _Recorder(image)
    with torch.no_grad():
        # Functional form: no operation in place and no views to keep track of.
        functional = torch.func.functionalize(function, remove="mutations")
        with recorder:
            result = functional(image)
    node = recorder.nodes.get(id(result))
    if node is None:  # functionalize hands out an alias of what was recorded
        found = [recorder.nodes[id(tensor)] for tensor in recorder.alive if _same_memory(tensor, result)]
        if not found:
            raise UnprovenOperationError("Expected the function's value to depend on the image but it does not.")
        node = found[-1]
    if len(node.shape) != 2 or node.shape[0] != 1:
        raise ValueError(f"Expected the function to map one image to shape (1, d) but got {tuple(node.shape)}.")
    return recorder.source, node


def _same_memory(left: Tensor, right: Tensor) -> bool:
    return left.shape == right.shape and left.stride() == right.stride() and left.data_ptr() == right.data_ptr()


_COMPARISONS = {aten.eq, aten.ne, aten.isfinite, aten.isnan, aten.isinf}
_LOGIC = {aten.all, aten.any, aten.logical_and, aten.logical_or, aten.logical_not, aten.bitwise_and, aten.mul}
_LOGIC |= {aten.bitwise_not, aten.bitwise_or, aten.view, aten.sum}


def _require_finiteness_check(node: Node) -> None:
    """Refuse to look at a value, unless it only tells whether something is finite."""
    packet = node.op.overloadpacket if node.op is not None else None
    if packet in _LOGIC:
        for part in node.inputs:
            _require_finiteness_check(part)
        return
    # torch spells isfinite as (x == x) * (abs(x) != inf).
    itself = packet in _COMPARISONS and len(node.args) == 2 and node.args[0] is node.args[1]
    infinity = packet in _COMPARISONS and len(node.args) == 2 and node.args[1] == float("inf")
    if not (itself or infinity or (packet in _COMPARISONS and len(node.args) == 1)):
        raise UnprovenOperationError(
            "Expected a function that treats all images alike but it reads a value that depends on the image "
            f"(after `{node.op}`)."
        )


def topological(result: Node) -> list[Node]:
    """Return the nodes that ``result`` depends on, each after those it is made from; ``result`` comes last."""
    order: list[Node] = []
    seen: set[Node] = set()
    stack: list[tuple[Node, Iterator[Node]]] = [(result, iter(result.inputs))]
    seen.add(result)
    while stack:
        node, remaining = stack[-1]
        following = next((part for part in remaining if part not in seen), None)
        if following is None:
            order.append(node)
            stack.pop()
        else:
            seen.add(following)
            stack.append((following, iter(following.inputs)))
    return order


def digest(order: Iterable[Node]) -> str:
    """Return the SHA-256 of operations, shapes and constants: of all that a bound depends on."""
    hashed = hashlib.sha256()
    number: dict[Node, int] = {}

    def feed(value: object) -> None:
        if isinstance(value, Node):
            hashed.update(f"node {number[value]};".encode())
        elif isinstance(value, Tensor):
            hashed.update(f"{value.dtype} {tuple(value.shape)};".encode())
            hashed.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        else:
            hashed.update(f"{value!r};".encode())

    for node in order:
        number[node] = len(number)
        hashed.update(f"{node.op} {tuple(node.shape)} {node.output}:".encode())
        flat, structure = tree_flatten((node.args, node.kwargs))
        hashed.update(str(structure).encode())
        for value in flat:
            feed(value)
    return hashed.hexdigest()
