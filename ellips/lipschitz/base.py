"""What every source of a Lipschitz constant has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from types import MethodType
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ellips.lipschitz.capture import JITTER, UnprovenOperationError, captured
from ellips.precision import full_precision, in_float32, reduced_precision
from ellips.types import ImageMap, LipschitzBound

_PROBES = 16
_BY_IMAGE = 1e-3  # of the largest value: what other batch sizes may change by other orders of summation in float32
_BY_IMAGE_REDUCED = 0.1  # the same for networks in half precision, which are held in float32, too


class ConstantSource(ABC):
    """A way to obtain a Lipschitz constant of exactly the function that is handed in, and of no other.

    A source holds settings, no model: subclasses are frozen dataclasses, built by their class path from a YAML file,
    whose fields are what a run records.
    """

    def __call__(self, function: ImageMap, images: Tensor) -> LipschitzBound:
        """Bound or estimate the constant of ``function`` around each image.

        Args:
            function: Maps images to latents, each image by itself; a module must be in eval mode.
            images: Shape ``(N, C, H, W)``, values in [0, 1].

        Returns:
            One constant per image.

        Raises:
            ValueError: If the images have another shape, hold NaN, or the function has a layer in training mode.
        """
        with checked(function, images) as inputs:
            return self.bound(function, inputs)

    @abstractmethod
    def bound(self, function: ImageMap, images: Tensor) -> LipschitzBound:
        """Do the work of :meth:`__call__`; input is checked, gradients are possible, autocast is off."""


def validate_images(images: Tensor) -> None:
    """Refuse what is no batch of images.

    Raises:
        ValueError: If the shape is not ``(N, C, H, W)``, the type not floating point, or a value not finite.
    """
    if images.ndim != 4 or not images.is_floating_point():
        raise ValueError(
            "Expected `images` to be floating point of shape (N, C, H, W) "
            f"but got {images.dtype} of shape {tuple(images.shape)}."
        )
    if not bool(torch.isfinite(images).all()):
        raise ValueError("Expected `images` to be finite but got NaN or infinity.")


@torch.no_grad()
def evaluation_error(function: ImageMap, images: Tensor, values: Tensor) -> Tensor:
    """Return how far a network's values are from those that it gives in float64, and float64's from exact ones.

    The first is computed. The second is estimated by the effect of :data:`JITTER` at random, and has no proof.
    What is evaluated in float64 is the captured graph, so that no conversion inside the network can defeat it, with
    weights that are computed from others computed in float64, too.

    Args:
        function: Maps images to latents.
        images: Shape ``(N, C, H, W)``.
        values: Shape ``(N, d)``, what ``function`` gave of the images in its own precision.

    Returns:
        L2 distances, shape ``(N,)``, float64; infinite where a value is not a number.

    Raises:
        UnprovenOperationError: If the function cannot be captured: what float32 rounds is then unknown.
    """
    with checked(function, images) as inputs:
        try:
            graph = captured(function, inputs)
            precise = graph.run(inputs.double())
            moved = graph.run(inputs.double(), JITTER) - precise  # what float64 itself may lose
        except UnprovenOperationError as refusal:
            raise UnprovenOperationError(
                "Expected a function whose rounding can be measured in float64, as a deterministic certificate needs; "
                f"change the function, or claim soundness='estimated'. {refusal}"
            ) from refusal
    difference = precise.to(values.device) - values.double()
    error: Tensor = torch.linalg.vector_norm(difference, dim=1) + torch.linalg.vector_norm(moved, dim=1).to(
        values.device
    )
    return torch.where(error.isnan(), torch.inf, error)


def in_float64(function: ImageMap) -> ImageMap:
    """Return a copy of a network, or of the method of one, that computes in float64; other functions as they are.

    An encoder in half precision does so, too: autocast leaves float64 alone.
    """
    owner = owning_module(function)
    if owner is None:
        return function
    precise = deepcopy(owner).double()
    return precise if function is owner else getattr(precise, cast(MethodType, function).__name__)


def owning_module(function: ImageMap) -> nn.Module | None:
    """Return the module that ``function`` is, or is a method of; None if there is none."""
    owner = function if isinstance(function, nn.Module) else getattr(function, "__self__", None)
    return owner if isinstance(owner, nn.Module) else None


def validate_eval_mode(function: ImageMap) -> None:
    """Refuse layers in training mode or without running statistics: they make it another function at every call.

    Raises:
        ValueError: If the function, or the module it is a method of, has one.
    """
    module = owning_module(function)
    if module is None:
        return
    for name, layer in module.named_modules():
        stateful = isinstance(layer, nn.modules.batchnorm._BatchNorm | nn.modules.dropout._DropoutNd)
        if stateful and layer.training:
            raise ValueError(
                f"Expected every layer to be in eval mode but got `{name}` ({type(layer).__name__}) in training "
                "mode; call .eval() on the classifier first."
            )
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.running_mean is None:
            raise ValueError(
                f"Expected every layer to map each image by itself but `{name}` ({type(layer).__name__}) has no "
                "running statistics and uses those of the batch; train it with track_running_stats=True."
            )


def validate_by_image(function: ImageMap, images: Tensor, sigma: float, owner: nn.Module | None = None) -> None:
    """Refuse functions whose value at an image depends on the other images of its batch, or on earlier calls.

    A certificate is about a function of one image. The function is held against itself on noisy copies: twice, in a
    part of the batch in another order, and alone. What is made to escape a test of some batches cannot be excluded.
    In half precision rounding hides much, so such a network is held in float32 first, and then as it is.

    Args:
        function: Maps images to vectors.
        images: Shape ``(N, C, H, W)``; without any there is nothing to hold.
        sigma: Standard deviation of the copies' noise.
        owner: The module that the function runs; None: the one that it is, or is a method of.

    Raises:
        ValueError: If values differ by more than rounding does.
    """
    if not len(images):
        return
    owner = owner or owning_module(function)
    with in_float32(owner):
        _hold_by_image(function, images, sigma, _BY_IMAGE)
    if reduced_precision(owner):
        _hold_by_image(function, images, sigma, _BY_IMAGE_REDUCED)


@torch.no_grad()
def _hold_by_image(function: ImageMap, images: Tensor, sigma: float, tolerance: float) -> None:
    generator = torch.Generator().manual_seed(len(images))
    some = images[torch.arange(_PROBES, device=images.device) % len(images)]
    probes = some + sigma * torch.randn(some.shape, generator=generator).to(some)
    whole, part = function(probes), torch.arange(_PROBES - 1, 0, -3, device=images.device)
    again = torch.cat([function(probes), function(probes[part]), function(probes[:1])])
    expected = torch.cat([whole, whole[part], whole[:1]])
    largest = (again - expected).abs().max()
    if not bool(largest <= tolerance * expected.abs().max()):
        raise ValueError(
            "Expected a classifier that maps each image by itself, always in the same way, but its values change with "
            f"the other images of a batch or from call to call (by {float(largest):.3g}); look for statistics of the "
            "batch, dropout, noise, or something that is remembered."
        )


@contextmanager
def checked(function: ImageMap, images: Tensor) -> Iterator[Tensor]:
    """Check the input of a source and yield the images ready for differentiation, whatever mode the caller is in.

    Inside, autocast and TF32 are off, and so are fused attention kernels, which have no forward-mode derivative.

    Raises:
        ValueError: See :meth:`ConstantSource.__call__`.
    """
    validate_images(images)
    validate_eval_mode(function)
    with (
        torch.inference_mode(False),
        full_precision(),
        torch.autocast(images.device.type, enabled=False),
        sdpa_kernel(SDPBackend.MATH),
    ):
        # A tensor made in inference mode can not be differentiated; a clone made outside of it can.
        yield images.detach().clone()
