"""What exactly to attack, for each kind of series."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor

from ellips.audit.attacks import Scores
from ellips.audit.claims import Judge
from ellips.audit.slopes import Function
from ellips.input_certifiers import SmoothedEncoder
from ellips.lipschitz import ConstantSource
from ellips.pipeline import ImageClassifier


@dataclass(frozen=True)
class Target:
    """A series as the attacks see it.

    Attributes:
        scores: The scores to attack, of points in float32.
        judge: The predictions to hold the claims against, of points in float64.
        function: The map whose Lipschitz constant is claimed, of points in float64, or None.
        alpha: The share of certificates that may fail, for a probabilistic series.
    """

    scores: Scores
    judge: Judge
    function: Function | None = None
    alpha: float | None = None


def latent_target(classifier: ImageClassifier) -> Target:
    """Return what a series in latent space claims: the points are latents, the classifier is the mixture."""
    ellips = classifier.head.ellips
    return Target(scores=ellips, judge=lambda z: _argmax(ellips, z))


def input_target(classifier: ImageClassifier, source: ConstantSource, noise_copies: int = 16) -> Target:
    """Return what a series in input space claims.

    The prediction is judged by a float64 copy of the classifier, so that float32 rounding at the very boundary is not
    taken for a violation; that of a smoothed encoder by its own certificate, abstentions included.

    Args:
        classifier: The classifier that was certified.
        source: Where its Lipschitz constant came from.
        noise_copies: For a smoothed encoder, the noisy copies behind each gradient of the attack.
    """
    if isinstance(source, SmoothedEncoder):
        smoothed = _SmoothedScores(classifier, source, noise_copies)
        return Target(
            scores=smoothed,
            # The error of sampling is far above that of float32, and thousands of copies are dear enough in it.
            judge=lambda x: source.certify(classifier.head.ellips, classifier.latents, x.float()).prediction,
            alpha=source.alpha,
        )
    precise = deepcopy(classifier).double()
    own_claim = type(source).certify is not ConstantSource.certify
    return Target(
        scores=classifier,
        judge=lambda x: _argmax(precise, x),
        # A source that certifies in its own way claims a constant of something else than the latents.
        function=None if own_claim else precise.latents,
    )


@torch.no_grad()
def _argmax(scores: Scores, points: Tensor, batch_size: int = 256) -> Tensor:
    return torch.cat([scores(part).argmax(1) for part in points.split(batch_size)])


class _SmoothedScores:
    """Scores of the mean latent under a fixed set of noise, differentiable (expectation over transformation)."""

    def __init__(self, classifier: ImageClassifier, source: SmoothedEncoder, copies: int) -> None:
        self.classifier, self.source, self.copies = classifier, source, copies
        self.generator = torch.Generator()

    def __call__(self, images: Tensor) -> Tensor:
        self.generator.manual_seed(self.source.seed)
        noise = torch.randn((self.copies, *images.shape[1:]), generator=self.generator).to(images)
        noisy = images[:, None] + self.source.sigma * noise
        latents = self.source.project(self.classifier.latents(noisy.flatten(0, 1)).double())
        scores: Tensor = self.classifier.head.ellips(latents.view(len(images), self.copies, -1).mean(1))
        return scores
