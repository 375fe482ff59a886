"""A captured graph is believed only after it gave the function's own values on images of many kinds."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ellips.lipschitz.capture.export import export
from ellips.lipschitz.capture.graph import JITTER, Graph, UnprovenOperationError
from ellips.lipschitz.capture.notes import SOME
from ellips.lipschitz.capture.state import random_states, snapshot
from ellips.lipschitz.capture.watch import noted, scrambled, watch
from ellips.precision import full_precision, require_subnormals
from ellips.types import ImageMap

_KEPT = 2  # graphs, each with a copy of its network's weights
_known: OrderedDict[str, tuple[Graph, dict[str, object]]] = OrderedDict()
_ROUNDING = 1e-6  # of float32, relative; a few units in the last place
_GENEROSITY = 8  # the sums of a batch may be added up in another order than those of one image


_SCRAMBLED = 3
_MANY = (9, 33, 257)
_UNIFORM = "uniform images"
_MOST_PIXELS = 1 << 20


def captured(function: ImageMap, images: Tensor, require: Callable[[Graph], object] | None = None) -> Graph:
    """Return the graph of what ``function`` does to an image of the shape of ``images``.

    It is captured once per content: the operations and constants that a run on an image of zeros shows, and all that
    the function can reach, by which it might do something else to several images, or next time. Every call watches such
    a run.

    Args:
        function: Maps images ``(N, C, H, W)`` to ``(N, d)``, each image by itself.
        images: Shape ``(N, C, H, W)``; N may be 0.
        require: Raises where a new graph is of no use, before it is held against the function, which takes longer and
            fails for reasons that lie farther from what the function is made of.

    Raises:
        UnprovenOperationError: If the function cannot be captured, looks at pixel values, or does not give the values
            of its graph.
        RuntimeError: If subnormal numbers are flushed.
    """
    require_subnormals()
    _require_python(function)
    with torch.no_grad(), full_precision(), torch.autocast(images.device.type, enabled=False):
        if len(images):
            function(images[:1].clone())  # what fails here fails in its own words
        seen = watch(function, images.new_zeros(1, *images.shape[1:]))
        key = f"{seen.key} {tuple(images.shape[1:])} {images.dtype} {images.device}"
        known, state = _known.get(key, (None, None))
        if known is not None and state == snapshot(function) and known.is_current:
            _known.move_to_end(key)
            return known
        graph = export(function, images.new_zeros(1, *images.shape[1:]))
        if require is not None:
            require(graph)
        again = watch(graph.run_one, images.new_zeros(1, *images.shape[1:]))
        if seen.counts != again.counts:
            more = sorted({x.split()[0] for x in (seen.counts - again.counts) | (again.counts - seen.counts)})
            raise UnprovenOperationError(
                "Expected a function that does the same whether it is captured or run but operations or their "
                f"constants differ: {', '.join(more)}."
            )
        for seed in range(_SCRAMBLED):
            _require_alike_when_scrambled(function, graph, images.new_zeros(1, *images.shape[1:]), seed)
        compare(function, graph, images)
        _known[key] = graph, snapshot(function)
    while len(_known) > _KEPT:
        _known.popitem(last=False)
    return graph


def _require_python(function: ImageMap) -> None:
    """Refuse modules that run without Python, where nothing of them can be watched."""
    owner = function if isinstance(function, nn.Module) else getattr(function, "__self__", None)
    modules = dict(owner.named_modules()) if isinstance(owner, nn.Module) else {}
    for name, module in modules.items():
        if isinstance(module, torch.jit.ScriptModule):
            raise UnprovenOperationError(
                f"Expected modules in Python but got a {type(module).__name__} ({name or 'the whole'}); hand in "
                "what torch.jit made it of."
            )


def _require_alike_when_scrambled(function: ImageMap, graph: Graph, image: Tensor, seed: int) -> None:
    try:
        found, expected = (scrambled(run, image, seed) for run in (function, graph.run_one))
    except Exception as error:
        raise UnprovenOperationError(f"Expected a function that maps all numbers but it fails: {error}") from error
    if not torch.equal(found, expected):  # noise, of which nothing was computed
        raise UnprovenOperationError(
            "Expected a function that does the same whether it is captured or run but it takes other numbers."
        )


def compare(function: ImageMap, graph: Graph, images: Tensor) -> None:
    """Run the function and its graph side by side.

    Args:
        function: The function.
        graph: Its graph.
        images: Some images, ``(N, C, H, W)``, to be tried along with random ones.

    Raises:
        UnprovenOperationError: If they differ by more than float32 rounds, which is measured against float64; or if the
            function changes anything that it can reach.
    """
    before, drawn = snapshot(function), random_states()
    kinds = dict(_batches(images))
    expected = {kind: _expected(graph, batch, kind) for kind, batch in kinds.items()}
    least = expected[_UNIFORM].spread
    share = max(each.share(least) for each in expected.values())
    for kind, batch in kinds.items():
        precise, allowed = expected[kind].precise, expected[kind].allowed(share, least)
        for mode, value in _MODES.items():
            _require(function, value, batch, precise, allowed, f"{kind} ({len(batch)} at once, {mode})")
    for value in _MODES.values():  # does it look at numbers when it is run otherwise?
        noted(partial(value, function), batch[:1].expand(2, *batch.shape[1:]))
    one, several = (
        noted(partial(_without_gradients, function), batch[:1].expand(n, *batch.shape[1:])) for n in (1, SOME)
    )
    if not several.kinds <= one.kinds:
        raise UnprovenOperationError(
            f"Expected a function that treats each image by itself but of {SOME} images it makes something else, by "
            f"{', '.join(sorted({x.split()[0] for x in several.kinds - one.kinds}))}."
        )
    for count in _MANY:  # the same image many times
        if count * images[:1].numel() <= _MOST_PIXELS:
            many = batch[:1].expand(count, *batch.shape[1:])
            _require(function, _without_gradients, many, precise[:1], allowed[:1], f"{count} images at once")
    if drawn != random_states():
        raise UnprovenOperationError(
            "Expected a function that does the same at every call but it draws random numbers."
        )
    after = snapshot(function)
    changed = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    if changed:
        raise UnprovenOperationError(
            f"Expected a function that remembers nothing but a call changes {', '.join(changed[:3])}."
        )


@dataclass(frozen=True)
class _Expected:
    """A graph's values of some images.

    Attributes:
        precise: In float64, ``(N, d)``.
        rounded: How far those of its own precision are from them.
        spread: How far they are from those of an image of zeros, at most. Unlike their size it tells nothing of a
            constant: however large it is, rounding is a share of it in its own column alone.
    """

    precise: Tensor
    rounded: Tensor
    spread: float

    def share(self, least: float) -> float:
        """Return the largest share of a value, and of the spread, that rounding takes."""
        shares = (self.rounded / self._size(least))[self.rounded.isfinite()]
        return float(shares.max()) if shares.numel() else 0.0

    def allowed(self, share: float, least: float) -> Tensor:
        """Return how far from the precise values a function may be, by what rounding takes on images of all kinds."""
        allowed = (_GENEROSITY * share + _ROUNDING) * self._size(least)
        return torch.where(self.rounded.isfinite(), allowed, torch.inf)

    def _size(self, least: float) -> Tensor:
        return self.precise.abs() + max(self.spread, least) + 1e-30


def _expected(graph: Graph, batch: Tensor, kind: str) -> _Expected:
    """Return the graph's values in float64, and how far from them float32 may be."""
    try:
        one_by_one, precise = graph.run(batch), graph.run(batch.double())
        coarse = (graph.run(batch.double(), JITTER) - precise).abs().amax(1)
        away = (precise - graph.run(torch.zeros_like(batch[:1]).double())).abs()
    except Exception as error:
        raise UnprovenOperationError(
            f"Expected a function that can be evaluated in float64 but got: {error}"
        ) from error
    scale = precise.abs().amax(1)
    if not bool((coarse <= _ROUNDING * scale + _ROUNDING)[torch.isfinite(scale)].all()):
        raise UnprovenOperationError(
            f"Expected a function that float64 can evaluate but on {kind} numbers cancel almost entirely; rounding "
            f"moves its values by {float(coarse.max()):.2g}."
        )
    return _Expected(precise, (one_by_one - precise).abs(), float(torch.where(away.isfinite(), away, 0).max()))


def _require(function: ImageMap, value: _Mode, batch: Tensor, precise: Tensor, allowed: Tensor, where: str) -> None:
    try:
        found = value(function, batch)
    except Exception as error:
        raise UnprovenOperationError(
            f"Expected a function that maps every image, but on {where} it fails: {error}"
        ) from error
    if found is None:
        return
    if found.shape != (len(batch), precise.shape[1]):
        raise UnprovenOperationError(
            f"Expected the function to map {tuple(batch.shape)} to {(len(batch), precise.shape[1])} but got "
            f"{tuple(found.shape)}."
        )
    near = (found.double() - precise).abs() <= allowed  # false for NaN
    if not bool((near | ~torch.isfinite(allowed)).all()):
        raise UnprovenOperationError(
            "Expected a function that does the same at every call, to each image by itself, but it gives other values "
            f"than its own captured graph on {where}."
        )


def _without_gradients(function: ImageMap, batch: Tensor) -> Tensor:
    with torch.no_grad():
        return function(batch.clone())


def _with_gradients(function: ImageMap, batch: Tensor) -> Tensor:
    with torch.enable_grad():
        return function(batch.clone().requires_grad_()).detach()


def _in_inference_mode(function: ImageMap, batch: Tensor) -> Tensor:
    with torch.inference_mode():
        return function(batch.clone()).clone()


def _channels_last(function: ImageMap, batch: Tensor) -> Tensor:
    with torch.no_grad():
        return function(batch.clone(memory_format=torch.channels_last))


def _part_of_more(function: ImageMap, batch: Tensor) -> Tensor:
    with torch.no_grad():
        return function(torch.cat([batch, batch], 3)[..., : batch.shape[3]])


def _in_float64(function: ImageMap, batch: Tensor) -> Tensor | None:
    try:
        with torch.no_grad():
            return function(batch.double())
    except (RuntimeError, TypeError):
        return None  # weights in float32 take no other images


_Mode = Callable[[ImageMap, Tensor], Tensor | None]
_MODES: dict[str, _Mode] = {
    "without gradients": _without_gradients,
    "with gradients": _with_gradients,
    "in inference mode": _in_inference_mode,
    "channels last in memory": _channels_last,
    "part of a larger tensor": _part_of_more,
    "in float64": _in_float64,
}
"""Every way that certificates and attacks run a function, and some more by which it could tell them apart."""


def _batches(images: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield images of many kinds, in batches of many sizes."""
    generator = torch.Generator().manual_seed(0)
    shape = images.shape[1:]

    def uniform(count: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator, dtype=torch.float64)

    def normal(count: int) -> Tensor:
        return torch.randn(count, *shape, generator=generator, dtype=torch.float64)

    kinds = {
        _UNIFORM: uniform(1),
        "black and white noise": uniform(3).round(),
        "one grey": uniform(5)[:, :1, :1, :1].expand(-1, *shape),
        "black, white and grey images": torch.stack([torch.full(shape, v, dtype=torch.float64) for v in (0, 1, 0.5)]),
        "large numbers of both signs": 100 * normal(2),
        "tiny numbers": 1e-4 * normal(2),
        "numbers outside [0, 1]": 3 * normal(1),
    }
    for kind, batch in kinds.items():
        yield kind, batch.to(images.device, images.dtype)
    if len(images):
        yield "the images", images[:4].detach().clone()
