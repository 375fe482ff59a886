"""What every way from a latent certificate to a radius on the image has in common."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ellips.certificates import Certificate, Prover
from ellips.chunks import Chunks
from ellips.classifier import Ellips
from ellips.lipschitz.base import in_float64, owning_module
from ellips.precision import reduced_precision
from ellips.types import ImageMap, Series, Soundness

Predictor = Callable[[Tensor], Tensor]
"""Maps points, float64, to predicted classes ``(N,)``, −1 for an abstention."""


class Chain(NamedTuple):
    """The map that is certified, from the image to the scores.

    Attributes:
        latents: Images ``(N, C, H, W)`` with values in [0, 1] to latents ``(N, d)``, image by image; differentiable.
        ellips: The fitted Gaussians on these latents.
        features: Images to the encoder's features, which the latents are made of; None: not known.
        prover: What proves claims of these Gaussians as they are now, where many batches share one; None: it is made
            where it is needed.
    """

    latents: ImageMap
    ellips: Ellips
    features: ImageMap | None = None
    prover: Prover | None = None

    def scores(self, images: Tensor) -> Tensor:
        """Return scores ``(N, K)``, float64."""
        scores: Tensor = self.ellips(self.latents(images))
        return scores

    def decide(self, images: Tensor) -> Tensor:
        """Return the classes of the highest scores, ``(N,)``."""
        return self.scores(images).argmax(1)


@dataclass(frozen=True)
class AuditTarget:
    """What an audit has to attack so that it attacks what was claimed, and nothing else.

    Attributes:
        scores: Scores ``(N, K)`` of points in float32, differentiable, for gradients to climb.
        predict: The predictions to hold the claims against.
        function: The map whose Lipschitz constant is claimed, of points in float64; None: no constant of it is.
        alpha: The share of certificates that may fail; None: none may.
    """

    scores: ImageMap
    predict: Predictor
    function: ImageMap | None = None
    alpha: float | None = None


class InputCertifier(ABC):
    """A way to a certificate on the image.

    Subclasses are frozen dataclasses: they hold settings, no model, can be built by their class path from a YAML file,
    and their fields are what a run records.
    """

    @abstractmethod
    def certify(self, chain: Chain, images: Tensor, latents: Tensor, certificate: Certificate) -> Certificate:
        """Certify images.

        Args:
            chain: The classifier.
            images: Shape ``(N, C, H, W)``, values in [0, 1].
            latents: Their latents, shape ``(N, d)``, as ``chain.latents`` gave them.
            certificate: The certificate of these latents.

        Returns:
            A certificate in input space; its radii are ℓ2 on [0, 1] pixels. Its prediction is that of the classifier
            which the certificate is about, which need not be the chain's own.

        Raises:
            ValueError: If the images have another shape, hold NaN, or the chain has a layer in training mode.
        """

    def certify_with_latents(
        self, chain: Chain, images: Tensor, latents: Tensor, certificate: Certificate
    ) -> tuple[Certificate, Tensor | None]:
        """Certify images as :meth:`certify` does, and return what is needed to check the latent radii afterwards.

        Returns:
            The certificate; and the latents ``(N, d)`` that its latent radii were proven of, where those are not
            ``latents`` themselves. None: there are none, and nothing is kept.
        """
        return self.certify(chain, images, latents, certificate), None

    @abstractmethod
    def target(self, chain: Chain) -> AuditTarget:
        """Name the function that the certificates are about."""

    def validate_run(self, count: int) -> None:  # noqa: B027 - most claims are about each image by itself
        """Refuse a run over so many images if the certificates' claim does not cover them.

        Args:
            count: Distinct images that one run certifies.

        Raises:
            ValueError: If the claim is about fewer images.
        """

    @property
    def files(self) -> dict[str, str]:
        """SHA-256 of what it reads from files, by the name of the setting that names one: a run is of one content."""
        return {}

    @property
    def strongest(self) -> Soundness | None:
        """The strongest word that its certificates ever have; None: not known."""
        return None

    @property
    def source_name(self) -> str:
        """Short name of what carries the radius to the image, for :class:`ellips.types.Series`."""
        return short_name(type(self))

    def series(self, method: str) -> Series:
        """Return the series that its certificates make, from latent certificates by a method."""
        return Series("input", method, self.source_name)


def short_name(kind: type) -> str:
    """Return a class name in small letters with hyphens: ``JacobianNorm`` is ``jacobian-norm``."""
    return re.sub(r"(?<!^)(?=[A-Z])", "-", kind.__name__).lower()


def series_of(certifiers: Sequence[InputCertifier], method: str) -> list[Series]:
    """Return a series for each certifier, numbered where one's name comes again."""
    found: list[Series] = []
    for certifier in certifiers:
        series = certifier.series(method)
        numbered = (Series(series.space, series.method, f"{series.source}-{i}") for i in range(2, len(certifiers) + 2))
        found.append(series if series not in found else next(s for s in numbered if s not in found))
    return found


def validate_noisy_type(images: Tensor) -> None:
    """Refuse images in half precision: noise in so few bits is far from a Gaussian, of which all theorems speak.

    Raises:
        ValueError: If they are.
    """
    if images.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"Expected images in float32 or float64, to which Gaussian noise can be added, but got {images.dtype}; an "
            "encoder in half precision converts them itself."
        )


def validate_shared_alpha(num_images: int, alpha: float, count: int) -> None:
    """Refuse a run over more images than share ``alpha``: all of them together would claim too much.

    Args:
        num_images: Number that shares it; 1: each image by itself.
        alpha: What is shared.
        count: Distinct images of the run.

    Raises:
        ValueError: If there are more, and ``num_images`` is not 1.
    """
    if 1 < num_images < count:
        raise ValueError(
            f"Expected at most num_images={num_images} images to share alpha={alpha:g} but got {count}; "
            "raise `num_images`, or set it to 1 for a claim about each image by itself."
        )


def chain_target(chain: Chain, *, constant: bool) -> AuditTarget:
    """Return the chain itself as a target, judged by a float64 copy.

    So float32 rounding at the very boundary is not taken for a violation. Predictions of an encoder in half precision
    are another function's than those of float64, and are judged as they are made.

    Args:
        chain: The classifier.
        constant: Whether a Lipschitz constant of ``chain.latents`` is claimed.
    """
    precise = in_float64(chain.latents)
    as_it_is = reduced_precision(owning_module(chain.latents))
    judge = Chain((lambda points: chain.latents(points.float())) if as_it_is else precise, chain.ellips)
    return AuditTarget(
        scores=chain.scores,
        predict=lambda points: predict(judge.scores, points),
        function=precise if constant else None,
    )


@torch.no_grad()
def predict(scores: ImageMap, points: Tensor) -> Tensor:
    """Return the classes of the highest scores, as many points at a time as memory takes."""
    return Chunks("auto", 256).run(lambda part: (scores(part).argmax(1),), points)[0]
