"""A proven Lipschitz constant: norms of affine pieces times slopes of what lies between them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ellips.lipschitz.base import ConstantSource
from ellips.lipschitz.capture import captured
from ellips.lipschitz.capture.graph import Graph, Node, UnprovenOperationError
from ellips.lipschitz.spectral import affine, moves, slopes, stacks  # noqa: F401 - they fill the allow-list
from ellips.lipschitz.spectral.norms import SLACK, SMALLEST, finite, matrix_norm, times
from ellips.lipschitz.spectral.rules import Effect, Sign, effect
from ellips.types import ImageMap, LipschitzBound
from ellips.validation import at_least

_MAX_DENSE_ELEMENTS = 1 << 26  # 0.5 GB of float64
_UNIT = 2.0**-53  # rounding of one float64 operation
_AS_IT_IS, _ABSOLUTE = Sign(lambda constants: constants), Sign(torch.abs)


@dataclass(frozen=True)
class SpectralProduct(ConstantSource):
    """A global bound that holds for every image, proven from the weights: ``deterministic``.

    The function is captured by torch.export, preprocessing included, and its graph believed only after it gave the
    function's own values on images of many kinds. Every operation of the graph has to be on an allow-list. Affine
    pieces (resize, grey to RGB, normalisation, convolution, BatchNorm in eval mode, pooling by averages, linear layers)
    are bounded by their norm, what lies between them by its slope, sums (residual connections) by the sum. A piece that
    has few enough inputs or outputs is written out as one matrix and bounded by its exact singular value decomposition;
    of others, linear layers are decomposed exactly each by itself, and convolutions, with the BatchNorm behind them
    folded in, bounded by Gram iteration. Nothing is bounded by power iteration, which approaches from below. All norms
    are computed in float64 and raised for rounding. The claim is for the function of one image in exact arithmetic.

    What is not on the list (attention, LayerNorm, decisions by pixel values) is refused by name.

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
        value = self.constant(function, images)
        constant = torch.full((len(images),), value, dtype=torch.float64, device=images.device)
        return LipschitzBound(
            constant=constant,
            ball_radius=torch.full_like(constant, torch.inf),
            soundness="deterministic",
            source=repr(self),
        )

    @torch.no_grad()
    def constant(self, function: ImageMap, images: Tensor) -> float:
        """Return the constant of ``function`` on images of the shape of ``images``, ``(N, C, H, W)``."""
        graph, spare = captured(function, images, self._require_rules), 1.0
        if graph.in_float64 is not None:
            graph, spare = graph.in_float64, 1 + SLACK  # for what float64 loses where it computes weights from others
        key = graph.digest  # weights included: the same bound is not computed twice, nor a stale one returned
        if key not in self._known:
            self._known[key] = _Bounds(graph, self.dense_limit, self.gram_iterations).total()
        return spare * self._known[key]

    def _require_rules(self, graph: Graph) -> None:
        """Refuse what is not on the list by its own name, before anything else about the function is found out."""
        for node in graph.nodes:
            effect(node, self.gram_iterations)


class _Bounds:
    """Goes through a graph from the image to the result, from one end of an affine piece to the next."""

    def __init__(self, graph: Graph, dense_limit: int, gram_iterations: int) -> None:
        self.graph = graph
        self.dense_limit = dense_limit
        # All of them, so that what the result does not depend on is refused too: a decision may hide behind it.
        self.effects: dict[Node, Effect] = {node: effect(node, gram_iterations) for node in graph.nodes}
        self.origins = self._origins()
        self.constants: dict[Node, float] = {graph.source: 1.0}

    def total(self) -> float:
        """Return the bound of the whole."""
        for node in self.graph.needed:
            if self.origins[node] is node:
                self.constants[node] = self._step(node, self._of)
        value = self._of(self.graph.result) * (1 + 1e-12)  # sums and products of the bounds themselves
        if not SMALLEST < value < math.inf:
            raise UnprovenOperationError(
                f"Expected a positive, finite Lipschitz constant but got {value}: the latents would not depend on the "
                "image, or leave the range of numbers; check the weights."
            )
        return value

    def _origins(self) -> dict[Node, Node]:
        """Return for each node where its affine piece begins: at the image, or behind what is not affine."""
        origins = {self.graph.source: self.graph.source}
        for node in self.graph.nodes:
            found = {origins[part] for part in self.effects[node].parts}
            together = len(found) == 1 and self.effects[node].apply is not None
            origins[node] = found.pop() if together else node
        return origins

    def _of(self, node: Node) -> float:
        origin = self.origins[node]
        if node not in self.constants:
            self.constants[node] = times(self.constants[origin], self._piece(origin, node))
        return self.constants[node]

    def _step(self, node: Node, of: Callable[[Node], float]) -> float:
        """Bound a node from the bounds of its parts."""
        done = self.effects[node]
        if done.scale is not None and done.parts[0] is not self.graph.source:
            before = self.effects[done.parts[0]]
            if before.scaled is not None:  # a factor per channel belongs to the layer before
                return times(of(before.parts[0]), before.scaled(done.scale))
        bounds = [times(of(part), gain) for part, gain in zip(done.parts, done.gains(), strict=True)]
        return finite(math.hypot(*bounds) if done.joined else math.fsum(bounds))

    def _piece(self, origin: Node, end: Node) -> float:
        """Bound the affine piece from ``origin`` to ``end``."""
        if not origin.numel or not end.numel:
            return 0.0  # no numbers, no distances
        inside = self._between(origin, end)
        small = min(origin.numel, end.numel) <= self.dense_limit
        if small and origin.numel * end.numel <= _MAX_DENSE_ELEMENTS:
            return finite(matrix_norm(self._matrix(origin, end, inside)) + self._rounding(origin, end, inside))
        constants = {origin: 1.0}

        def of(node: Node) -> float:
            # On demand, so that what BatchNorm is folded into is not bounded by itself as well.
            if node not in constants:
                constants[node] = self._step(node, of)
            return constants[node]

        return of(end)

    def _between(self, origin: Node, end: Node, *, deep: bool = False) -> list[Node]:
        """Return the nodes of the affine piece between two nodes, in order, ``end`` included.

        Args:
            origin: Where the piece begins.
            end: Where it ends.
            deep: With those that the rule of another one speaks for.
        """
        needed = {end}
        for node in reversed(self.graph.nodes):
            if node in needed and node is not origin:
                needed.update(node.inputs if deep else self.effects[node].parts)
        return [node for node in self.graph.nodes if node in needed and node is not origin]

    def _apply(self, origin: Node, end: Node, inside: list[Node], value: Tensor, sign: Sign) -> Tensor:
        """Run the linear part of a piece in float64: nothing that is added can swallow what it is added to."""
        values: dict[Node, Tensor] = {origin: value}
        for node in inside:
            done = self.effects[node]
            assert done.apply is not None
            values[node] = sign.after(done.apply([values[part] for part in done.parts], sign))
        return values[end]

    def _matrix(self, origin: Node, end: Node, inside: list[Node]) -> Tensor:
        """Write a piece out as a matrix, ``(outputs, inputs)`` or its transpose, whichever is easier."""
        device = self._device(inside)
        if origin.numel <= end.numel:
            basis = torch.eye(origin.numel, dtype=torch.float64, device=device).view(-1, *origin.shape)
            return torch.stack([self._apply(origin, end, inside, vector, _AS_IT_IS).flatten() for vector in basis])
        pull_back = self._transposed(origin, end, inside, _AS_IT_IS)
        basis = torch.eye(end.numel, dtype=torch.float64, device=device).view(-1, *end.shape)
        matrix = torch.stack([pull_back(vector).flatten() for vector in basis])
        self._require_transpose(origin, end, inside, matrix)
        return matrix

    def _require_transpose(self, origin: Node, end: Node, inside: list[Node], matrix: Tensor) -> None:
        """Autograd gave the matrix, and it can be told to hide parts of a function: hold it against the function."""
        # No two of its numbers are the same: columns in another order are noticed, too.
        probe = torch.linspace(0.5, 1, origin.numel, dtype=torch.float64, device=matrix.device)
        expected = self._apply(origin, end, inside, probe.view(origin.shape), _AS_IT_IS).flatten()
        scale = self._apply(origin, end, inside, probe.view(origin.shape), _ABSOLUTE).max()
        if not bool(((matrix @ probe - expected).abs() <= 1e-9 * scale).all()):
            raise UnprovenOperationError("Expected autograd to know the linear operations but it gives another matrix.")

    def _transposed(self, origin: Node, end: Node, inside: list[Node], sign: Sign) -> Callable[[Tensor], Tensor]:
        zero = torch.zeros(origin.shape, dtype=torch.float64, device=self._device(inside))
        with torch.enable_grad():
            found: Any = torch.func.vjp(lambda value: self._apply(origin, end, inside, value, sign), zero)
        pull_back: Callable[[Tensor], tuple[Tensor]] = found[1]
        return lambda vector: pull_back(vector)[0]

    def _rounding(self, origin: Node, end: Node, inside: list[Node]) -> float:
        """Bound what float64 may lose of a piece's matrix M, where large entries cancel too.

        Entry by entry the error is at most a multiple of what the same operations give with absolute values (Higham
        2002, §3.5), a matrix A whose norm is at most the root of its largest row sum times its largest column sum. What
        is so small that it vanishes may be multiplied by large numbers afterwards: with :data:`SMALLEST` added to every
        number on the way the multiple holds for it, too. That adds a vector to each column of A.
        """
        device = self._device(inside)
        ones = torch.ones(origin.shape, dtype=torch.float64, device=device)
        rows = self._apply(origin, end, inside, ones, _ABSOLUTE).max()
        vanished = self._apply(origin, end, inside, 0 * ones, Sign(torch.abs, SMALLEST))
        ones = torch.ones(end.shape, dtype=torch.float64, device=device)
        columns = self._transposed(origin, end, inside, _ABSOLUTE)(ones).max()
        # No number is a sum of more terms than there are in all that it is made from, pieces within a piece included.
        terms = sum(part.numel + 10 for node in self._between(origin, end, deep=True) for part in node.inputs)
        length = math.sqrt(float(rows)) * math.sqrt(float(columns))
        length += math.sqrt(origin.numel) * float(torch.linalg.vector_norm(vanished))
        return 2 * _UNIT * terms * length

    def _device(self, inside: list[Node]) -> torch.device:
        tensors = (x for node in inside for x in (*node.args, *node.kwargs.values()) if isinstance(x, Tensor))
        return next((tensor.device for tensor in tensors), torch.device("cpu"))
