"""A proven Lipschitz constant: norms of affine pieces times slopes of what lies between them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ellips.lipschitz.base import ConstantSource
from ellips.lipschitz.spectral import rules
from ellips.lipschitz.spectral.norms import matrix_norm
from ellips.lipschitz.spectral.tracing import Node, digest, topological, trace
from ellips.types import ImageMap, LipschitzBound
from ellips.validation import at_least

_MAX_DENSE_ELEMENTS = 1 << 26  # 0.5 GB of float64


@dataclass(frozen=True)
class SpectralProduct(ConstantSource):
    """A global bound that holds for every image, proven from the weights: ``deterministic``.

    The function is recorded on one image, preprocessing included. Its affine pieces (resize, grey to RGB,
    normalisation, convolution, BatchNorm in eval mode, pooling by averages, linear layers) are bounded by their norm,
    what lies between them by its slope, sums (residual connections) by the sum. A piece that has few enough inputs or
    outputs is written out as one matrix and bounded by its exact singular value decomposition; of others, linear layers
    are decomposed exactly each by itself, and convolutions, with the BatchNorm behind them folded in, bounded by Gram
    iteration. Nothing is bounded by power iteration, which approaches from below. All norms are computed in float64 and
    raised by a relative 1e-7 for rounding. The claim is for the function in exact arithmetic.

    What has no proven constant (attention, LayerNorm, decisions by pixel values) is refused.

    Args:
        dense_limit: Write an affine piece out as one matrix if it has at most this many inputs or outputs; 0 never.
        gram_iterations: Gram iterations per convolution.

    Raises:
        ValueError: If a setting is out of range.
    """

    dense_limit: int = 1024
    gram_iterations: int = 10
    _known: dict[str, float] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        at_least(0, dense_limit=self.dense_limit)
        at_least(1, gram_iterations=self.gram_iterations)

    def bound(self, function: ImageMap, images: Tensor) -> LipschitzBound:
        """Return the constant, the same for every image; see :meth:`ConstantSource.__call__`.

        Raises:
            UnprovenOperationError: If the function does something for which no constant is proven.
        """
        value = self.constant(function, images.new_zeros(1, *images.shape[1:]))
        constant = torch.full((len(images),), value, dtype=torch.float64, device=images.device)
        return LipschitzBound(
            constant=constant,
            ball_radius=torch.full_like(constant, torch.inf),
            soundness="deterministic",
            source=repr(self),
        )

    @torch.no_grad()
    def constant(self, function: ImageMap, image: Tensor) -> float:
        """Return the constant of ``function`` on images of the shape of ``image``, ``(1, C, H, W)``."""
        source, result = trace(function, image)
        order = topological(result)
        key = digest(order)  # weights included: the same bound is not computed twice, nor a stale one returned
        if key not in self._known:
            self._known[key] = self._bound_graph(source, order)
        return self._known[key]

    def _bound_graph(self, source: Node, order: list[Node]) -> float:
        """Go through the graph from the image to the result, from one end of an affine piece to the next."""
        origins = _origins(order)
        constants: dict[Node, float] = {source: 1.0}

        def of(node: Node) -> float:
            origin = origins[node]
            if node is not origin and node not in constants:
                constants[node] = constants[origin] * self._piece(origin, node, order)
            return constants[node]

        for node in order:
            if node is not source and origins[node] is node:
                constants[node] = rules.constant(node, of, self.gram_iterations)
        return of(order[-1])

    def _piece(self, origin: Node, end: Node, order: list[Node]) -> float:
        """Bound the affine piece from ``origin`` to ``end``."""
        inside = [node for node in _between(origin, end, order) if node is not origin]
        small = min(origin.numel, end.numel) <= self.dense_limit
        if small and origin.numel * end.numel <= _MAX_DENSE_ELEMENTS:
            return matrix_norm(_matrix(origin, end, inside))
        constants = {origin: 1.0}

        def of(node: Node) -> float:
            # On demand, so that what BatchNorm is folded into is not bounded by itself as well.
            if node not in constants:
                constants[node] = rules.constant(node, of, self.gram_iterations)
            return constants[node]

        return of(end)


def _origins(order: list[Node]) -> dict[Node, Node]:
    """Return for each node where the affine piece it belongs to begins: at the image, or behind what is not affine."""
    origins: dict[Node, Node] = {}
    for node in order:
        found = {origins[part] for part in node.inputs}
        together = len(found) == 1 and rules.is_affine(node)
        origins[node] = found.pop() if together else node
    return origins


def _between(origin: Node, end: Node, order: list[Node]) -> list[Node]:
    """Return the nodes of the affine piece between two nodes, in the order of ``order``, ends included."""
    needed = {end}
    for node in reversed(order):
        if node in needed and node is not origin:
            needed.update(node.inputs)
    return [node for node in order if node in needed]


def _matrix(origin: Node, end: Node, inside: list[Node]) -> Tensor:
    """Write an affine piece out as a matrix, float64, ``(outputs, inputs)`` or its transpose, whichever is easier."""
    device = next((x.device for node in inside for x in node.args if isinstance(x, Tensor)), torch.device("cpu"))
    zero = torch.zeros(origin.shape, dtype=torch.float64, device=device)

    def run(value: Tensor) -> Tensor:
        return _replay(origin, end, inside, value)

    if origin.numel <= end.numel:
        basis = torch.eye(origin.numel, dtype=torch.float64, device=device).view(-1, *origin.shape)
        offset = run(zero)
        return torch.stack([(run(vector) - offset).flatten() for vector in basis])
    with torch.enable_grad():
        found: Any = torch.func.vjp(run, zero)
    pull_back = found[1]
    basis = torch.eye(end.numel, dtype=torch.float64, device=device).view(-1, *end.shape)
    return torch.stack([pull_back(vector)[0].flatten() for vector in basis])


def _replay(origin: Node, end: Node, inside: list[Node], value: Tensor) -> Tensor:
    """Run the recorded operations in float64 from ``origin`` on."""
    values: dict[Node, Tensor] = {origin: value}

    def concrete(item: object) -> object:
        if isinstance(item, Node):
            return values[item]
        if isinstance(item, Tensor) and item.is_floating_point():
            return item.double()
        return torch.float64 if item is torch.float32 else item

    for node in inside:
        args, kwargs = tree_map(concrete, (node.args, node.kwargs))
        result = node.op(*args, **kwargs)
        values[node] = result if node.output is None else result[node.output]
    return values[end]
