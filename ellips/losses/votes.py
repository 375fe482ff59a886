"""Losses on how the noisy copies of an image vote: what decides the radius of a smoothed classifier."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ellips.gaussians import Mixture
from ellips.losses.mixture import Gaussians, MixtureLoss
from ellips.validation import at_least, positive

_EDGE = 1e-12  # shares of votes are cut to [1e-12, 1 - 1e-12]: seven standard deviations, where no gradient is left


class VoteLoss(MixtureLoss):
    """A loss on soft votes: the posterior of the Gaussians, averaged over the noisy copies of each image.

    The mean posterior stands for the share of copies that each class wins, which has no gradient (MACER, Zhai et al.
    2020). The latents of one image must stand together in the batch: ``batch_by_image`` of the datamodule sees to it.

    Args:
        copies: Noisy copies of each image that stand together.
        gaussians: See :class:`MixtureLoss`.
        temperature: What the logits are divided by: above 1 each copy's posterior is softer than the Gaussians say.
        weight: See :class:`LatentLoss`.
        start_step: See :class:`LatentLoss`.

    Raises:
        ValueError: If ``copies`` is below 2 or ``temperature`` not positive; from the call, if the batch does not
            consist of groups of ``copies`` rows with the same label.
    """

    def __init__(
        self,
        copies: int,
        gaussians: Gaussians = "batch",
        temperature: float = 1.0,
        weight: float = 1.0,
        start_step: int = 0,
    ) -> None:
        super().__init__(gaussians, weight, start_step)
        at_least(2, copies=copies)
        positive(temperature=temperature)
        self.copies = copies
        self.temperature = temperature

    def log_votes(self, latents: Tensor, labels: Tensor, mixture: Mixture | None) -> tuple[Tensor, Tensor]:
        """Return the logarithm of each image's mean posterior ``(m, K)``, float64, and its label ``(m,)``."""
        self._validate_groups(labels)
        scores = self.resolve(latents, labels, mixture)(latents)
        posterior = (0.5 / self.temperature * scores).log_softmax(1).view(-1, self.copies, scores.shape[1])
        return posterior.logsumexp(1) - math.log(self.copies), labels[:: self.copies]

    def _validate_groups(self, labels: Tensor) -> None:
        whole = len(labels) % self.copies == 0
        if not whole or bool((labels.view(-1, self.copies) != labels[:: self.copies, None]).any()):
            raise ValueError(
                f"Expected a batch of {self.copies} noisy copies of each image, one after the other, but got "
                f"{len(labels)} rows that are not; set `copies` of the data to {self.copies} and `batch_by_image`."
            )


class VoteCrossEntropy(VoteLoss):
    """Cross-entropy of the mean posterior of each image's noisy copies; arguments as :class:`VoteLoss`."""

    def compute(self, latents: Tensor, labels: Tensor, mixture: Mixture | None, step: int) -> Tensor:
        """Return the mean over images, in nats."""
        votes, label = self.log_votes(latents, labels, mixture)
        return F.nll_loss(votes, label).to(latents.dtype)


class VoteRadius(VoteLoss):
    """Hinge on the radius that soft votes give, where they are right: ``mean [right] max(0, ε − R_i)``.

    ``R_i = ½ (Φ⁻¹(p_1) − Φ⁻¹(p_2))``, in units of the noise's standard deviation, with p_1 and p_2 the two largest
    entries of the mean posterior (Cohen et al. 2019, eq. 3; Zhai et al. 2020, eq. 9). Images that the votes get wrong
    do not count: stand it beside :class:`VoteCrossEntropy`, which sees to those.

    Args:
        radius: Target ε, in units of sigma; images whose radius exceeds it no longer count.
        copies: See :class:`VoteLoss`.
        gaussians: See :class:`MixtureLoss`.
        temperature: See :class:`VoteLoss`.
        weight: See :class:`LatentLoss`.
        start_step: See :class:`LatentLoss`.

    Raises:
        ValueError: As :class:`VoteLoss`, and if ``radius`` is not positive.
    """

    def __init__(
        self,
        radius: float,
        copies: int,
        gaussians: Gaussians = "batch",
        temperature: float = 1.0,
        weight: float = 1.0,
        start_step: int = 0,
    ) -> None:
        super().__init__(copies, gaussians, temperature, weight, start_step)
        positive(radius=radius)
        self.radius = float(radius)

    def compute(self, latents: Tensor, labels: Tensor, mixture: Mixture | None, step: int) -> Tensor:
        """Return the mean over images."""
        votes, label = self.log_votes(latents, labels, mixture)
        top, winner = votes.exp().clamp(_EDGE, 1 - _EDGE).topk(2, dim=1)
        quantile = torch.special.ndtri(top)
        radius = 0.5 * (quantile[:, 0] - quantile[:, 1])
        right = winner[:, 0] == label
        shortfall: Tensor = (self.radius - radius).clamp(min=0) * right
        return shortfall.mean().to(latents.dtype)
