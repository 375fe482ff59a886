"""A captured graph is believed only after it gave the function's own values on images of many kinds."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

import torch
from torch import Tensor

from ellips.lipschitz.capture.export import export
from ellips.lipschitz.capture.graph import Graph, UnprovenOperationError
from ellips.lipschitz.capture.watch import watch
from ellips.types import ImageMap

_KEPT = 2  # graphs, each with a copy of its network's weights
_known: OrderedDict[str, Graph] = OrderedDict()
_ROUNDING = 1e-6  # of float32, relative; a few units in the last place
_GENEROSITY = 8  # the sums of a batch may be added up in another order than those of one image


def captured(function: ImageMap, images: Tensor) -> Graph:
    """Return the graph of what ``function`` does to an image of the shape of ``images``.

    It is captured once per content: the operations and constants that a run on an image of zeros shows. Every call
    watches such a run.

    Args:
        function: Maps images ``(N, C, H, W)`` to ``(N, d)``, each image by itself.
        images: Shape ``(N, C, H, W)``; N may be 0.

    Raises:
        UnprovenOperationError: If the function cannot be captured, looks at pixel values, or does not give the values
            of its graph.
    """
    with torch.no_grad():
        seen = watch(function, images.new_zeros(1, *images.shape[1:]))
        key = f"{seen.key} {tuple(images.shape[1:])} {images.dtype} {images.device}"
        if key in _known:
            _known.move_to_end(key)
            return _known[key]
        graph = export(function, images.new_zeros(1, *images.shape[1:]))
        again = watch(graph.run_one, images.new_zeros(1, *images.shape[1:]))
        if seen.counts != again.counts:
            more = sorted((seen.counts - again.counts) | (again.counts - seen.counts))
            raise UnprovenOperationError(
                "Expected a function that does the same whether it is captured or run but the operations differ: "
                f"{', '.join(more)}."
            )
        compare(function, graph, images)
    _known[key] = graph
    while len(_known) > _KEPT:
        _known.popitem(last=False)
    return graph


def compare(function: ImageMap, graph: Graph, images: Tensor) -> None:
    """Run the function and its graph side by side.

    Args:
        function: The function.
        graph: Its graph.
        images: Some images, ``(N, C, H, W)``, to be tried along with random ones.

    Raises:
        UnprovenOperationError: If they differ by more than float32 rounds, which is measured against float64.
    """
    for kind, batch in _batches(images):
        one_by_one, precise = graph.run(batch), graph.run(batch.double())
        scale = precise.abs().amax(1)
        allowed = _GENEROSITY * (one_by_one - precise).abs().amax(1) + _ROUNDING * scale + 1e-30
        for mode, value in _MODES.items():
            try:
                found = value(function, batch)
            except Exception as error:
                raise UnprovenOperationError(
                    f"Expected a function that maps every image, but on {kind} ({len(batch)} at once, {mode}) it "
                    f"fails: {error}"
                ) from error
            if found.shape != one_by_one.shape:
                raise UnprovenOperationError(
                    f"Expected the function to map {tuple(batch.shape)} to {tuple(one_by_one.shape)} but got "
                    f"{tuple(found.shape)}."
                )
            difference = (found.double() - precise).abs().amax(1)
            if not bool((difference <= allowed)[torch.isfinite(scale)].all()):
                raise UnprovenOperationError(
                    "Expected a function that does the same at every call, to each image by itself, but it gives other "
                    f"values than its own captured graph on {kind} ({len(batch)} at once, {mode})."
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


# Every way that certificates and attacks run a function.
_MODES = {
    "without gradients": _without_gradients,
    "with gradients": _with_gradients,
    "in inference mode": _in_inference_mode,
}


def _batches(images: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield images of many kinds, in batches of many sizes."""
    generator = torch.Generator().manual_seed(0)
    shape = images.shape[1:]

    def uniform(count: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator, dtype=torch.float64)

    def normal(count: int) -> Tensor:
        return torch.randn(count, *shape, generator=generator, dtype=torch.float64)

    kinds = {
        "uniform images": uniform(1),
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
