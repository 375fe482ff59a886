"""Gaussian smoothing of the encoder: a global Lipschitz constant for any encoder, at the price of sampling."""

from __future__ import annotations

import math
import warnings
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Literal, NamedTuple, cast, get_args
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ellips.certificates import METHODS, Certificate, Method, confirm
from ellips.chunks import Chunks, ChunkSize, validate_chunk_size
from ellips.classifier import Ellips
from ellips.input_certifiers.base import AuditTarget, Chain, InputCertifier, validate_noisy_type, validate_shared_alpha
from ellips.lipschitz.base import checked, validate_by_image
from ellips.randomness import image_generator
from ellips.settings import UNRECORDED
from ellips.smoothing import add_noise
from ellips.types import ImageMap, LipschitzBound, Soundness
from ellips.validation import at_least, fraction, one_of, positive

Concentration = Literal["bernstein", "mcdiarmid"]
"""How the error of a sampled mean is bounded: by its observed variance, or by the ball's radius alone."""


BLOCK = 256
"""Copies whose noise is drawn at once, and the most that go through the network at once. Fixed: how a generator's
numbers fall depends on how many are asked for."""

_WARNED: WeakKeyDictionary[Ellips, set[SmoothedEncoder]] = WeakKeyDictionary()
"""Of which classifiers it was said already that projection changes them."""


class SmoothedLatents(NamedTuple):
    """Sampled means of latents under noise.

    Attributes:
        mean: Shape ``(N, d)``, float64.
        error: Shape ``(N,)``, float64: the true mean lies within this L2 distance with the probability asked for.
    """

    mean: Tensor
    error: Tensor


@dataclass(frozen=True)
class SmoothedEncoder(InputCertifier):
    """Replace the latent f(x) by the mean of f(x + noise), whose Lipschitz constant is known: ``probabilistic``.

    If f has values in a ball of radius B, ``g(x) = E f(x + sigma * N(0, I))`` is ``B * sqrt(2 / pi) / sigma``-Lipschitz
    everywhere, whatever f is (each component along a unit vector is a smoothed function with values in [-B, B]).
    Every sampled latent is projected on that ball, so B is not a condition but part of the map. The classifier that
    is certified scores g(x); only a sampled mean of g(x) is known, so a ball of uncertainty around it is subtracted
    from the latent radius, and where nothing is left the classifier abstains.

    Fit the Gaussians to latents that noise has moved, or clean and noisy latents will not agree; a head with
    ``latent_norm="ball"`` is not changed by the projection, others may be, which is warned of.

    Args:
        sigma: Standard deviation of the noise on [0, 1] pixels.
        num_samples: Noisy copies per image; an even number, at least 4.
        alpha: Allowed probability that a certificate does not hold, over the drawing of the noise.
        num_images: Number of images that share ``alpha``: each gets ``alpha / num_images``, and then *all* hold
            together with probability at least ``1 - alpha``. 1: each holds with that probability by itself.
        norm_bound: Radius B of the ball.
        concentration: ``bernstein`` or ``mcdiarmid``; see :func:`mean_error`.
        chunk_size: Noisy copies that go through the network at once, at most 256; ``"auto"``: as many as memory takes.
            It changes no mean.
        seed: Seed; each image's noise depends on the image and the seed only.

    Raises:
        ValueError: If a setting is out of range.
    """

    sigma: float = 0.25
    num_samples: int = 1000
    alpha: float = 0.001
    num_images: int = 1
    _: KW_ONLY
    norm_bound: float = 1.0
    concentration: Concentration = "bernstein"
    chunk_size: ChunkSize = field(default="auto", repr=False, compare=False, metadata=UNRECORDED)
    seed: int = 0

    def __post_init__(self) -> None:
        positive(sigma=self.sigma, norm_bound=self.norm_bound)
        fraction(alpha=self.alpha, ends=False)
        at_least(1, num_images=self.num_images)
        validate_chunk_size(self.chunk_size)
        if self.num_samples < 4 or self.num_samples % 2:
            raise ValueError(f"Expected `num_samples` to be even and at least 4 but got {self.num_samples}.")
        one_of(get_args(Concentration), concentration=self.concentration)

    def smooth(self, latents: ImageMap, images: Tensor) -> SmoothedLatents:
        """Sample the smoothed latents of images, each image by itself.

        Args:
            latents: Maps ``(M, C, H, W)`` to ``(M, d)``.
            images: Shape ``(N, C, H, W)``, values in [0, 1].

        Raises:
            ValueError: As for every source.
        """
        with checked(latents, images) as inputs, torch.no_grad():  # in this order: the first enables gradients
            validate_noisy_type(inputs)
            validate_by_image(latents, inputs, self.sigma)
            chunks = Chunks(self.chunk_size, BLOCK)
            found = [self._smooth_one(latents, image, chunks) for image in inputs]
            if not found:
                empty = latents(inputs).double()
                return SmoothedLatents(empty, empty.sum(dim=1))
        return SmoothedLatents(torch.stack([x.mean for x in found]), torch.stack([x.error for x in found]))

    def _smooth_one(self, latents: ImageMap, image: Tensor, chunks: Chunks) -> SmoothedLatents:
        def of_chunk(noise: Tensor) -> tuple[Tensor]:
            return (self.project(latents(add_noise(image, noise, self.sigma)).double()),)

        generator = image_generator(image, self.seed)
        samples: list[Tensor] = []
        remaining = self.num_samples
        while remaining:
            count = min(BLOCK, remaining)
            remaining -= count
            noise = torch.randn((count, *image.shape), generator=generator, dtype=torch.float64)
            samples += chunks.run(of_chunk, noise.to(image.device))
        values = torch.cat(samples)
        error = mean_error(values, self.norm_bound, self.alpha / self.num_images, self.concentration)
        return SmoothedLatents(values.mean(dim=0), values.new_tensor(error))

    def project(self, values: Tensor) -> Tensor:
        """Project latents ``(N, d)`` on the ball of radius ``norm_bound``, differentiably."""
        length = torch.linalg.vector_norm(values, dim=1, keepdim=True)
        projected: Tensor = values * (self.norm_bound / length).clamp_max(1.0)
        return projected

    @property
    def constant(self) -> float:
        """The Lipschitz constant of the *smoothed* map, rounded up; the map that is smoothed need not have one."""
        return self.norm_bound * math.sqrt(2 / math.pi) / self.sigma * (1 + 4 * torch.finfo(torch.float64).eps)

    def certify(self, chain: Chain, images: Tensor, latents: Tensor, certificate: Certificate) -> Certificate:
        """Certify the smoothed classifier: what is left of the latent radius, over the constant.

        See :meth:`InputCertifier.certify`. Of the latents' certificate only the method is used: the latent that counts
        here is the mean under noise. ``latent_radius`` of the result is that mean's radius less the uncertainty. Where
        none is left the prediction is −1 and the radius 0. Diagnostics: ``latent_error``, the uncertainty;
        ``projected``, 1 where projection alone changes the prediction.

        Warns:
            UserWarning: If projection changes the prediction of an image: then clean accuracy changes, too.

        Raises:
            ValueError: If the certificate is by no latent method.
        """
        return self.certify_with_latents(chain, images, latents, certificate)[0]

    def certify_with_latents(
        self, chain: Chain, images: Tensor, latents: Tensor, certificate: Certificate
    ) -> tuple[Certificate, Tensor]:
        """Certify as :meth:`certify` does, and return the sampled means, shape ``(N, d)``."""
        one_of(METHODS, method=certificate.method)
        method = cast(Method, certificate.method)
        projected = self._projected(chain.ellips, latents)
        smoothed = self.smooth(chain.latents, images)
        means = confirm(chain.ellips, smoothed.mean, chain.ellips.certify(smoothed.mean, method=method), chain.prover)
        found = means.less(smoothed.error)
        prediction = torch.where(found.radius > 0, found.prediction, -torch.ones_like(found.prediction))
        corrected = torch.where(found.radius > 0, found.diagnostics["corrected"], 0.0)  # not where it abstains
        bound = LipschitzBound(
            constant=torch.full_like(found.radius, self.constant),
            ball_radius=torch.full_like(found.radius, torch.inf),
            soundness="probabilistic",
            source=repr(self),
            diagnostics={"latent_error": smoothed.error, "projected": projected.to(found.radius)},
        )
        found = replace(found, prediction=prediction, diagnostics={**found.diagnostics, "corrected": corrected})
        return found.to_input(bound), smoothed.mean

    def _projected(self, ellips: Ellips, latents: Tensor) -> Tensor:
        """Return where projection alone, noise aside, changes the prediction, shape ``(N,)``; 0 or 1.

        The first batch where it does is warned of.
        """
        with torch.no_grad():
            changed = ellips.predict(latents) != ellips.predict(self.project(latents.double()))
        said = _WARNED.setdefault(ellips, set())
        if bool(changed.any()) and self not in said:
            said.add(self)
            warnings.warn(
                f"Projection on the ball of radius norm_bound={self.norm_bound:g} changes the prediction of "
                f"{int(changed.sum())} of the {len(changed)} images of this batch "
                f"({100 * float(changed.double().mean()):.1f} %): another classifier is certified than the one that "
                "was trained. Train the head with latent_norm='ball', or raise norm_bound. This is said once; the "
                "diagnostic `projected` tells it of every image.",
                stacklevel=4,
            )
        return changed.double()

    def validate_run(self, count: int) -> None:
        """Refuse a run over more images than share ``alpha``; see :func:`validate_shared_alpha`."""
        validate_shared_alpha(self.num_images, self.alpha, count)

    @property
    def strongest(self) -> Soundness:
        """Means are sampled."""
        return "probabilistic"

    def target(self, chain: Chain) -> AuditTarget:
        """Name the smoothed classifier, judged by its own certificates, abstentions included.

        The error of sampling is far above that of float32, and thousands of copies are dear enough in it.
        """

        def predictions(points: Tensor) -> Tensor:
            smoothed = self.smooth(chain.latents, points.float())
            found = chain.ellips.certify(smoothed.mean).less(smoothed.error)
            return torch.where(found.radius > 0, found.prediction, -1)

        return AuditTarget(scores=_SmoothedScores(chain, self), predict=predictions, alpha=self.alpha / self.num_images)


class _SmoothedScores:
    """Scores of the mean latent under a fixed set of noise, differentiable (expectation over transformation)."""

    def __init__(self, chain: Chain, certifier: SmoothedEncoder, copies: int = 16) -> None:
        self.chain, self.certifier, self.copies = chain, certifier, copies
        self.generator = torch.Generator()

    def __call__(self, images: Tensor) -> Tensor:
        self.generator.manual_seed(self.certifier.seed)
        noise = torch.randn((self.copies, *images.shape[1:]), generator=self.generator).to(images)
        noisy = images[:, None] + self.certifier.sigma * noise
        latents = self.certifier.project(self.chain.latents(noisy.flatten(0, 1)).double())
        scores: Tensor = self.chain.ellips(latents.view(len(images), self.copies, -1).mean(1))
        return scores


def mean_error(samples: Tensor, norm_bound: float, alpha: float, concentration: Concentration = "bernstein") -> float:
    """Bound the L2 distance of a sample mean from the true mean, with probability at least ``1 - alpha``.

    ``mcdiarmid``: exchanging one sample moves the mean by at most 2B / n, and the expected distance is at most
    B / sqrt(n), so by the bounded-difference inequality ``B (1 + sqrt(2 ln(1 / alpha))) / sqrt(n)``.
    ``bernstein``: ``sqrt(2 V ln(2 / a) / n) + 4 B ln(2 / a) / n`` for vectors of variance V (Pinelis 1994, as in
    Smale & Zhou 2007, lemma 2), with a = alpha / 2. The other half of alpha pays for V, which is bounded from above
    by the empirical Bernstein inequality (Maurer & Pontil 2009, theorem 4) for half the squared distances of disjoint
    pairs of samples.

    What float64 may round is added, of the mean as well: the sum of n vectors loses at most n u times their lengths.

    Args:
        samples: Shape ``(n, d)``, independent, with norms of at most ``norm_bound``; n even.
        norm_bound: The radius B.
        alpha: Allowed probability of failure.
        concentration: ``bernstein``, tighter where samples agree, or ``mcdiarmid``.
    """
    count = len(samples)
    rounded = 4 * (count + samples.shape[1] + 16) * torch.finfo(torch.float64).eps
    if concentration == "mcdiarmid":
        return norm_bound * ((1 + rounded) * (1 + math.sqrt(2 * math.log(1 / alpha))) / math.sqrt(count) + rounded)
    logarithm = math.log(4 / alpha)
    halves = (samples[0::2] - samples[1::2]).square().sum(dim=1) / 2  # expectation V, in [0, 2 B^2]
    pairs = len(halves)
    spread = math.sqrt(2 * float(halves.var()) * logarithm / pairs)
    variance = float(halves.mean()) + spread + 14 * norm_bound**2 * logarithm / (3 * (pairs - 1))
    error = math.sqrt(2 * variance * logarithm / count) + 4 * norm_bound * logarithm / count
    return (1 + rounded) * error + rounded * norm_bound
