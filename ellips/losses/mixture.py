"""Losses on what the mixture says as a classifier: cross-entropy of its scores, hinge on its certified radius."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from ellips.certificates import certify
from ellips.gaussians import CovarianceType, Mixture
from ellips.gaussians.covariance import class_covariances, precision_factor
from ellips.gaussians.moments import Moments
from ellips.losses.base import LatentLoss
from ellips.losses.groups import class_blocks
from ellips.validation import one_of, positive

Gaussians = Literal["batch", "fitted"]
_TAIL = 10.0  # widths beyond ε from where the sigmoid, below 5e-5, is constant


def batch_moments(latents: Tensor, labels: Tensor, num_classes: int) -> Moments:
    """Return a batch's moments per class, differentiable in the latents; float64.

    Args:
        latents: Shape ``(n, d)``.
        labels: Shape ``(n,)``, int64.
        num_classes: K.
    """
    wide = latents.double()
    d = wide.shape[1]
    count = torch.zeros(num_classes, dtype=torch.int64, device=labels.device)
    mean, scatter = wide.new_zeros(num_classes, d), wide.new_zeros(num_classes, d, d)
    for block in class_blocks(labels):
        rows = block.gather(wide)
        center = rows.sum(1) / block.count.unsqueeze(1)
        rows = (rows - center.unsqueeze(1)) * block.mask.unsqueeze(-1)
        count = count.index_copy(0, block.label, block.count)
        mean = mean.index_copy(0, block.label, center)
        scatter = scatter.index_copy(0, block.label, rows.mT @ rows)
    return Moments(count, mean, scatter)


def batch_mixture(latents: Tensor, labels: Tensor, like: Mixture) -> Mixture:
    """Return the mixture fitted to a batch, differentiable in its latents.

    In the place of covariances of low rank come full ones: leading directions have no gradient where two lead as much.

    Args:
        latents: Shape ``(n, d)``.
        labels: Shape ``(n,)``, int64; every class must occur.
        like: The mixture whose classes, covariance type, pooling and shrinkage are taken over; it is not changed.

    Raises:
        ValueError: If a class has no samples in the batch or its covariance is singular.
    """
    moments = batch_moments(latents, labels, like.num_classes)
    kind: CovarianceType = "full" if like.covariance_type == "low_rank" else like.covariance_type
    covariances = class_covariances(moments, kind, like.regularization)
    mixture = Mixture(like.num_classes, like.dim, covariance_type=kind).to(latents.device)
    # Buffers may hold tensors with a history; `fit_moments` would copy their values alone.
    mixture.means = moments.mean
    mixture.precision_factors = precision_factor(covariances)
    mixture.log_priors = (moments.count.double() / len(labels)).log()
    mixture.fitted = torch.ones_like(mixture.fitted)
    return mixture


class MixtureLoss(LatentLoss):
    """A loss that needs Gaussians.

    Args:
        gaussians: ``"batch"``: those of the batch itself, so that the loss sees how means and covariances move with
            the latents; every class must occur in every global batch. ``"fitted"``: the mixture's own, from the last
            exact fit, or trained along if they are parameters (:meth:`ellips.gaussians.Mixture.trainable_`).
        weight: See :class:`LatentLoss`.
        start_step: See :class:`LatentLoss`.

    Raises:
        ValueError: If ``gaussians`` is unknown.
    """

    def __init__(self, gaussians: Gaussians = "batch", weight: float = 1.0, start_step: int = 0) -> None:
        super().__init__(weight, start_step)
        one_of(get_args(Gaussians), gaussians=gaussians)
        self.gaussians: Gaussians = gaussians

    @property
    def uses_mixture(self) -> bool:
        """Always: for its settings if not for its Gaussians."""
        return True

    @property
    def needs_fitted_mixture(self) -> bool:
        """Whether the mixture must be fitted before the first step."""
        return self.gaussians == "fitted"

    def resolve(self, latents: Tensor, labels: Tensor, mixture: Mixture | None) -> Mixture:
        """Return the Gaussians to use for a batch.

        Raises:
            ValueError: If there is no mixture, or a class is missing from the batch.
        """
        if mixture is None:
            raise ValueError(f"Expected a `mixture` for {type(self).__name__} but got None; pass one.")
        return mixture if self.gaussians == "fitted" else batch_mixture(latents, labels, mixture)


class ScoreCrossEntropy(MixtureLoss):
    """Cross-entropy of the mixture's posterior, whose logits are half its scores.

    Args:
        gaussians: See :class:`MixtureLoss`.
        weight: See :class:`LatentLoss`.
        start_step: See :class:`LatentLoss`.

    Raises:
        ValueError: From the call, if a label is not a class of the mixture.
    """

    def compute(self, latents: Tensor, labels: Tensor, mixture: Mixture | None, step: int) -> Tensor:
        """Return the mean over the batch, in nats."""
        scores = self.resolve(latents, labels, mixture)(latents)
        return F.cross_entropy(0.5 * scores, labels).to(latents.dtype)


class CertifiedRadius(MixtureLoss):
    """Hinge on the certified radius, or the share of images that are not certified, so that training optimises it.

    The hinge is ``mean max(0, ε − R_i)``. With a ``width`` w it is ``mean sigmoid((ε − R_i) / w)``: for small w the
    share of images that are not certified at ε. Hopeless images pull as little then as those far beyond ε, where the
    hinge has them pull as much as any; so begin with Gaussians that are good already, such as fitted ones.

    ``R_i`` is the radius around a correctly classified latent. Where the prediction is wrong it is continued below
    zero by the first-order distance to the boundary with the class that is predicted, ``m / (2‖b‖)`` with margin m < 0,
    which meets the radius at m = 0. Images whose radius exceeds ε, or ε + 10 w, no longer count.

    The radius is in units of the latents, so a projector that may scale them can meet any ε by scaling: use it with
    latents on the unit ball (``latent_norm="ball"``), or beside losses that hold the scale.

    Args:
        radius: Target ε, in latent space.
        method: ``"exact"`` or ``"pairwise"``.
        gaussians: See :class:`MixtureLoss`.
        weight: See :class:`LatentLoss`.
        start_step: See :class:`LatentLoss`.
        width: w, in latent space; None: the hinge.

    Raises:
        ValueError: If ``radius`` or ``width`` is not positive or ``method`` is not differentiable.
    """

    def __init__(
        self,
        radius: float,
        method: Literal["exact", "pairwise"] = "exact",
        gaussians: Gaussians = "batch",
        weight: float = 1.0,
        start_step: int = 0,
        width: float | None = None,
    ) -> None:
        super().__init__(gaussians, weight, start_step)
        positive(radius=radius, width=width)
        one_of(("exact", "pairwise"), method=method)
        self.radius = float(radius)
        self.method: Literal["exact", "pairwise"] = method
        self.width = None if width is None else float(width)

    def compute(self, latents: Tensor, labels: Tensor, mixture: Mixture | None, step: int) -> Tensor:
        """Return the mean hinge or sigmoid over the batch."""
        ceiling = self.radius + _TAIL * (self.width or 0.0)
        signed = signed_radius(self.resolve(latents, labels, mixture), latents, labels, self.method, ceiling)
        lack = self.radius - signed
        counted = lack.clamp(min=0) if self.width is None else torch.sigmoid(lack / self.width)
        return counted.mean().to(latents.dtype)


def signed_radius(
    mixture: Mixture,
    latents: Tensor,
    labels: Tensor,
    method: Literal["exact", "pairwise"] = "exact",
    ceiling: float = float("inf"),
) -> Tensor:
    """Return the certified radius where the prediction is right, minus a first-order distance where it is wrong.

    Args:
        mixture: A fitted mixture.
        latents: Shape ``(n, d)``.
        labels: Shape ``(n,)``, int64.
        method: ``"exact"`` or ``"pairwise"``.
        ceiling: Radii above it are cut to it, without gradient.

    Returns:
        Shape ``(n,)``, float64, differentiable in latents and mixture.
    """
    z = latents.double()
    scores: Tensor = mixture(z)
    own = F.one_hot(labels, mixture.num_classes).bool()
    margin, rival = (scores.gather(1, labels.unsqueeze(1)) - scores).masked_fill(own, torch.inf).min(1)
    right = (margin > 0).nonzero().squeeze(1)
    wrong = (margin <= 0).nonzero().squeeze(1)
    signed: Tensor = 0 * margin  # in the graph even where every radius is above the ceiling
    if len(wrong):
        half_gradient_norm = mixture.half_gradient(z[wrong], labels[wrong], rival[wrong]).norm(dim=1)
        distance = margin[wrong] / (2 * half_gradient_norm).clamp(min=torch.finfo(z.dtype).tiny)
        signed = signed.index_copy(0, wrong, distance)
    if len(right):
        with torch.no_grad():
            below = certify(mixture, z[right], method).radius < ceiling
        signed = signed.index_fill(0, right[~below], ceiling)
        if bool(below.any()):
            signed = signed.index_copy(0, right[below], certify(mixture, z[right[below]], method).radius)
    return signed
