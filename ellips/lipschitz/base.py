"""What a Lipschitz constant is here, and what every source of one has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from types import MethodType
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ellips.types import SOUNDNESS_ORDER, Soundness

if TYPE_CHECKING:
    from ellips.certificates import Certificate, Method
    from ellips.classifier import Ellips

ImageMap = Callable[[Tensor], Tensor]
"""A map of images ``(N, C, H, W)`` with values in [0, 1] to vectors ``(N, d)``, image by image; may be a module."""


@dataclass(frozen=True)
class LipschitzBound:
    """Per image: an L2 Lipschitz constant, the ball around the image it is claimed on, and what kind of claim it is.

    Attributes:
        constant: Shape ``(N,)``, float64, at least 0: latent length per unit of image length.
        ball_radius: Shape ``(N,)``, float64: L2 radius of the ball on which the constant is claimed; inf is everywhere.
        soundness: What the claim is worth (see :data:`ellips.types.Soundness`).
        source: How the constant was obtained, settings included, for the table and the summary.
        diagnostics: Per-image figures by name, each of shape ``(N,)``, such as a fit's p-value or a residual.

    Raises:
        ValueError: If shapes disagree, a number is negative or NaN, or the soundness is unknown.
    """

    constant: Tensor
    ball_radius: Tensor
    soundness: Soundness
    source: str
    diagnostics: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what cannot be a bound."""
        if self.constant.ndim != 1:
            raise ValueError(f"Expected `constant` to have shape (N,) but got {tuple(self.constant.shape)}.")
        if self.soundness not in SOUNDNESS_ORDER:
            raise ValueError(f"Expected `soundness` to be one of {SOUNDNESS_ORDER} but got {self.soundness!r}.")
        for name, value in {"ball_radius": self.ball_radius, **self.diagnostics}.items():
            if value.shape != self.constant.shape:
                raise ValueError(
                    f"Expected `{name}` to have the shape of `constant`, {tuple(self.constant.shape)}, "
                    f"but got {tuple(value.shape)}."
                )
        for name, value in (("constant", self.constant), ("ball_radius", self.ball_radius)):
            if not bool((value >= 0).all()):  # NaN fails this too
                raise ValueError(f"Expected `{name}` to be numbers of at least 0 but got {value}.")

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.constant)


class LipschitzSource(ABC):
    """A way to obtain a Lipschitz constant of the map image -> latent.

    A source holds settings, no model, so that it can be built by its class path from a YAML file.
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

    def certify(self, classifier: Ellips, latents: ImageMap, images: Tensor, method: Method = "exact") -> Certificate:
        """Certify images: the latent certificate, carried to the input by this source's constant.

        Sources that replace the latent or look past it (smoothing, score margins) override this.

        Args:
            classifier: The fitted Gaussians.
            latents: Maps images to the latents that ``classifier`` scores.
            images: Shape ``(N, C, H, W)``, values in [0, 1].
            method: The latent certificate, ``exact``, ``pairwise`` or ``theorem``.

        Returns:
            A certificate in the input space; its radii are L2 on [0, 1] pixels. A ``deterministic`` one speaks of the
            network in exact arithmetic: how far the latents are from those in float64 is subtracted from the latent
            radius and given as the diagnostic ``latent_error``.
        """
        with torch.no_grad():
            certified = latents(images)
            certificate = classifier.certify(certified, method=method)
        bound = self(latents, images)
        if bound.soundness == "deterministic":
            error = evaluation_error(latents, images, certified)
            bound = replace(bound, diagnostics={**bound.diagnostics, "latent_error": error})
            certificate = certificate.less(error)
        return certificate.to_input(bound)


def _check_images(images: Tensor) -> None:
    if images.ndim != 4 or not images.is_floating_point():
        raise ValueError(
            "Expected `images` to be floating point of shape (N, C, H, W) "
            f"but got {images.dtype} of shape {tuple(images.shape)}."
        )
    if not bool(torch.isfinite(images).all()):
        raise ValueError("Expected `images` to be finite but got NaN or infinity.")


@torch.no_grad()
def evaluation_error(function: ImageMap, images: Tensor, values: Tensor) -> Tensor:
    """Return how far a network's values are from those that it gives in float64.

    A function that is neither a module nor the method of one cannot be run in float64; it is taken at its word, 0.

    Args:
        function: Maps images to latents.
        images: Shape ``(N, C, H, W)``.
        values: Shape ``(N, d)``, what ``function`` gave of the images in its own precision.

    Returns:
        L2 distances, shape ``(N,)``, float64.
    """
    owner = owning_module(function)
    if owner is None:
        return torch.zeros(len(images), dtype=torch.float64, device=images.device)
    precise = deepcopy(owner).double()
    again: ImageMap = precise if function is owner else getattr(precise, cast(MethodType, function).__name__)
    difference = again(images.double()) - values.double()
    # What float64 itself rounds is far below a millionth of what float32 does.
    error: Tensor = torch.linalg.vector_norm(difference, dim=1) * (1 + 1e-6)
    return error


def owning_module(function: ImageMap) -> nn.Module | None:
    """Return the module that ``function`` is, or is a method of; None if there is none."""
    owner = function if isinstance(function, nn.Module) else getattr(function, "__self__", None)
    return owner if isinstance(owner, nn.Module) else None


def _check_eval(function: ImageMap) -> None:
    """Refuse layers in training mode: batch statistics and dropout make it another function at every call."""
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


@contextmanager
def checked(function: ImageMap, images: Tensor) -> Iterator[Tensor]:
    """Check the input of a source and yield the images ready for differentiation, whatever mode the caller is in.

    Inside, autocast is off, and so are fused attention kernels, which have no forward-mode derivative.

    Raises:
        ValueError: See :meth:`LipschitzSource.__call__`.
    """
    _check_images(images)
    _check_eval(function)
    with (
        torch.inference_mode(False),
        torch.autocast(images.device.type, enabled=False),
        sdpa_kernel(SDPBackend.MATH),
    ):
        # A tensor made in inference mode can not be differentiated; a clone made outside of it can.
        yield images.detach().clone()
