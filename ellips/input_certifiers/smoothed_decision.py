"""Randomised smoothing of the decision (Cohen et al. 2019): a radius on the image for any encoder, by votes."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from ellips.certificates import Certificate, decisions
from ellips.chunks import ChunkSize, validate_chunk_size
from ellips.encoders.linear import LinearHead
from ellips.encoders.weights import state_digest
from ellips.input_certifiers.base import AuditTarget, Chain, InputCertifier, validate_noisy_type, validate_shared_alpha
from ellips.lipschitz.base import owning_module, validate_by_image, validate_eval_mode, validate_images
from ellips.precision import full_precision
from ellips.settings import UNRECORDED
from ellips.smoothing import Decision, VotePlan, count_votes, majority, soft_votes
from ellips.smoothing.voting import COPIES, LEVEL, Votes
from ellips.types import ImageMap, Series, Soundness
from ellips.validation import at_least, fraction, one_of, positive

Stopping = Literal["early", "fixed"]
"""When drawing ends: as soon as the radii that are asked for are decided, or after a fixed number of draws."""


@dataclass(frozen=True)
class SmoothedDecision(InputCertifier):
    """Replace the decision on x by the class that wins most votes of x + noise: ``probabilistic``.

    Each noisy copy goes through encoder, projector and Gaussians, and votes for the class of the highest score. If the
    class gets a share above p of the votes under noise N(0, sigma²), the *vote's* prediction is the same within
    ``sigma * Phi^-1(p)``, whatever the network is (Cohen et al. 2019, Theorem 1). p is a lower confidence bound: the
    radius does not hold with probability at most ``alpha``, over the drawing of the noise. The classifier that is
    certified is the vote, neither the network on the clean image nor that of :class:`SmoothedEncoder`, so that the
    radii are never combined with theirs.

    Fit the Gaussians to noisy features (``augment`` and ``copies`` of the datamodule), or few votes will be right.

    Args:
        sigma: Standard deviation of the noise on [0, 1] pixels.
        num_samples: Most draws of an image that are counted; they bound the largest radius: 2.5 sigma at 1,000, 3.2
            sigma at 10,000 and 3.8 sigma at 100,000 with ``alpha`` 0.001.
        alpha: Allowed probability that a radius does not hold.
        num_images: Number of images that share ``alpha``: each gets ``alpha / num_images``, and then *all* hold
            together with probability at least ``1 - alpha``. 1: each holds with that probability by itself.
        num_selection: Most draws that select the class, apart from those that are counted.
        stopping: ``early``: stop when every radius of ``radii`` is decided, soundly whatever the votes
            (:class:`ellips.smoothing.VotePlan`); a radius that is unlikely to be reached is given up. ``fixed``: count
            all draws and take Clopper and Pearson's bound, as Cohen et al. define ``certify``.
        radii: Radii that early stopping decides; None: every quarter of sigma, up to the largest that can be proven.
        linear_head: A file of :class:`ellips.encoders.LinearHead`, as ``ellips train-encoder`` writes it: votes are
            then those of the encoder with its own linear classifier, the peer of Gaussians on the same noise; None:
            of the Gaussians.
        chunk_size: Noisy copies that go through the network at once, of whichever image of a batch; ``"auto"``: as
            many as memory takes, at most 1,024. It changes no vote.
        seed: Seed; noise depends on the image, the seed and the kind of device only.

    Raises:
        ValueError: If a setting is out of range.
    """

    sigma: float = 0.25
    num_samples: int = 10_000
    alpha: float = 0.001
    num_images: int = 1
    _: KW_ONLY
    num_selection: int = 100
    stopping: Stopping = "early"
    radii: tuple[float, ...] | None = None
    linear_head: str | None = None
    chunk_size: ChunkSize = field(default="auto", repr=False, compare=False, metadata=UNRECORDED)
    seed: int = 0

    def __post_init__(self) -> None:
        positive(sigma=self.sigma)
        fraction(alpha=self.alpha, ends=False)
        at_least(
            1,
            num_samples=self.num_samples,
            num_images=self.num_images,
            num_selection=self.num_selection,
        )
        validate_chunk_size(self.chunk_size)
        one_of(get_args(Stopping), stopping=self.stopping)
        if self.radii is not None:
            for radius in self.radii:
                positive(radii=radius)
            object.__setattr__(self, "radii", tuple(float(radius) for radius in self.radii))  # a YAML list is one, too

    @property
    def plan(self) -> VotePlan:
        """When votes are counted, and what they prove."""
        alpha = self.alpha / self.num_images
        if self.stopping == "fixed":
            return VotePlan.fixed(self.sigma, self.num_samples, alpha)
        return VotePlan.stopping(self.sigma, self.num_samples, alpha, self.radii)

    def vote(self, chain: Chain, images: Tensor) -> Votes:
        """Count the votes of images.

        Args:
            chain: The classifier that is smoothed.
            images: Shape ``(N, C, H, W)``, values in [0, 1].

        Raises:
            ValueError: See :meth:`InputCertifier.certify`.
        """
        validate_images(images)
        validate_noisy_type(images)
        validate_eval_mode(chain.latents)
        validate_by_image(self.scores(chain), images, self.sigma, owning_module(chain.latents))
        return count_votes(
            self.decision(chain),
            images.detach(),
            self.plan,
            num_selection=self.num_selection,
            seed=self.seed,
            chunk_size=self.chunk_size,
        )

    def scores(self, chain: Chain) -> ImageMap:
        """Return the scores whose largest is a copy's vote, whatever autocast and TF32 are set to around them.

        Raises:
            ValueError: If they are a linear head's, and the encoder is not known or has other features.
            WeightsNotFoundError: If the head's file is not there.
        """
        return _undisturbed(chain.scores if self.linear_head is None else linear_scores(chain, self.linear_head))

    def decision(self, chain: Chain) -> Decision:
        """Return the classifier that is smoothed; the chain must not change while it is in use.

        Raises:
            ValueError: See :meth:`scores`.
            WeightsNotFoundError: See :meth:`scores`.
        """
        if self.linear_head is not None:
            scores = self.scores(chain)
            return lambda images: scores(images).argmax(1)
        decide = decisions(chain.ellips)
        return _undisturbed(lambda images: decide(chain.latents(images)))

    def certify(self, chain: Chain, images: Tensor, latents: Tensor, certificate: Certificate) -> Certificate:
        """Certify the vote; latents of clean images and their certificate have no part in it.

        See :meth:`InputCertifier.certify`. ``rival`` is the other class with most votes, −1 if none has any.
        Diagnostics: ``votes`` for the prediction, the ``draws`` they were counted in, and ``selection_draws``.
        """
        votes = self.vote(chain, images)
        unknown = torch.full_like(votes.radius, torch.nan)
        return Certificate(
            prediction=votes.prediction,
            radius=votes.radius,
            rival=votes.rival,
            margin=unknown,
            multiplier=unknown,  # no latent certificate stands behind this one
            method="votes",
            soundness="probabilistic",
            space="input",
            source=repr(self),
            diagnostics={
                "votes": votes.votes.double(),
                "draws": votes.draws.double(),
                "selection_draws": votes.selection.double(),
            },
        )

    def validate_run(self, count: int) -> None:
        """Refuse a run over more images than share ``alpha``; see :func:`validate_shared_alpha`."""
        validate_shared_alpha(self.num_images, self.alpha, count)

    def target(self, chain: Chain) -> AuditTarget:
        """Name the vote, judged by a majority of votes that tells two classes apart with certainty."""
        copies = min(self.num_samples, 1000)

        def predictions(points: Tensor) -> Tensor:
            return majority(
                self.decision(chain),
                points.float(),
                self.sigma,
                copies=copies,
                seed=self.seed,
                level=LEVEL,
                chunk_size=self.chunk_size,
            )

        return AuditTarget(
            scores=lambda images: soft_votes(self.scores(chain), images, self.sigma, COPIES, self.seed),
            predict=predictions,
            alpha=self.alpha / self.num_images,
        )

    @property
    def files(self) -> dict[str, str]:
        """The linear head, as it votes."""
        return {} if self.linear_head is None else {"linear_head": f"sha256:{state_digest(_head(self.linear_head))}"}

    @property
    def strongest(self) -> Soundness:
        """Votes are sampled."""
        return "probabilistic"

    def series(self, method: str) -> Series:
        """Return the series of votes, whatever the latent method."""
        return Series("input", "votes", self.source_name)

    @property
    def source_name(self) -> str:
        """The class, and whether a linear head votes."""
        return super().source_name + ("" if self.linear_head is None else "-linear-head")


def _undisturbed(function: ImageMap) -> ImageMap:
    """Wrap a map of images so that it computes in its own precision, whatever is set around it."""

    def alone(images: Tensor) -> Tensor:
        with full_precision(), torch.autocast(images.device.type, enabled=False):
            return function(images)

    return alone


def linear_scores(chain: Chain, file: str) -> ImageMap:
    """Return the scores of the encoder's own linear classifier.

    Args:
        chain: The classifier whose encoder is meant.
        file: See :class:`ellips.encoders.LinearHead`.

    Raises:
        ValueError: If the chain does not know its encoder, or it has other features.
        WeightsNotFoundError: If there is no such file.
    """
    encoder, head = chain.features, _head(file)
    width = getattr(encoder, "feature_dim", head.in_features)
    if encoder is None or width != head.in_features:
        got = "a classifier without one" if encoder is None else f"one with {width}"
        raise ValueError(f"Expected an encoder with {head.in_features} features for {file} but got {got}.")

    def scores(images: Tensor) -> Tensor:
        found: Tensor = head.to(images.device)(encoder(images))
        return found

    return scores


def _head(file: str) -> LinearHead:
    path = Path(file).expanduser()
    written = sorted(path.iterdir()) if path.is_dir() else [path] if path.is_file() else []
    return _read_head(file, tuple((part.name, *_written(part)) for part in written))


def _written(path: Path) -> tuple[int, int]:
    about = path.stat()
    return about.st_mtime_ns, about.st_size


@lru_cache(maxsize=4)
def _read_head(file: str, changed: tuple[tuple[str, int, int], ...]) -> LinearHead:
    del changed  # a file that was written anew is another one
    return LinearHead(file)
