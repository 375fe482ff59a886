"""How far to regularise class covariances: chosen on held-out data, for the certificate or for votes under noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from ellips.certificates import Method
from ellips.classifier import Ellips
from ellips.distributed import world_size
from ellips.gaussians import CovarianceType, Moments, SketchedMoments
from ellips.gaussians.regularization import Regularization
from ellips.validation import at_least, fraction, positive, validate_labels, validate_latents


@dataclass(frozen=True)
class RegularizationSearch:
    """A grid of ``pooling`` and ``shrinkage``, and the radius at which certified accuracy shall be largest.

    Attributes:
        radius: Target radius in latent space, in units of the latents; or one per image (input radius times Lipschitz
            constant) when :func:`select_regularization` is called with a tensor in its place. With ``sigma``: in input
            space, on [0, 1] pixels.
        pooling: Values tried.
        shrinkage: Values tried.
        method: Certificate that is counted; ``"pairwise"`` costs little and ranks settings much as ``"exact"`` does.
            Votes have none.
        sigma: Count the votes of noisy copies in place of certificates, for a classifier whose decision is smoothed:
            standard deviation of their noise, on [0, 1] pixels; see :func:`ellips.vote_search.select_by_votes`.
        alpha: Level of the lower bound on each image's share of votes. It only weighs settings against each other: what
            is chosen claims nothing.
        noise: For votes: how many times the covariance that noise gives an image's latents, mean over held-out images,
            is added to that of every class. Directions in which noise moves latents then count less, and votes agree
            more. Each value is tried with each pair; not for covariances of low rank.

    Raises:
        ValueError: If the radius is negative, ``sigma`` is not positive, ``alpha`` is not in (0, 1), a grid is empty
            or leaves [0, 1], or ``noise`` is negative, or given without a ``sigma``.
    """

    radius: float
    pooling: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0)
    shrinkage: Sequence[float] = (0.0, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.75)
    method: Method = "pairwise"
    sigma: float | None = None
    alpha: float = 0.001
    noise: Sequence[float] = (0.0,)

    def __post_init__(self) -> None:
        """Check the values."""
        at_least(0, radius=self.radius)
        positive(sigma=self.sigma)
        fraction(ends=False, alpha=self.alpha)
        for weight in self.noise:
            at_least(0, noise=weight)
        if self.sigma is None and any(self.noise):
            raise ValueError(f"Expected `noise` with the `sigma` of votes alone but got {tuple(self.noise)} without.")
        if not self.size:
            raise ValueError(
                f"Expected values to try but got none: pooling={tuple(self.pooling)}, "
                f"shrinkage={tuple(self.shrinkage)}, noise={tuple(self.noise)}."
            )

    @property
    def size(self) -> int:
        """How many settings are tried."""
        return len(self.candidates()) * len(self.noise)

    def require_covariances(self, covariance_type: str) -> None:
        """Refuse covariances that noise cannot be added to.

        Raises:
            ValueError: If they are of low rank and ``noise`` has anything to add.
        """
        if covariance_type == "low_rank" and any(self.noise):
            raise ValueError(
                f"Expected full or diagonal covariances for `noise` {tuple(self.noise)} of a search by votes but got "
                f"{covariance_type!r}; leave `noise` out, or change `covariance_type`."
            )

    def candidates(self) -> list[Regularization]:
        """Return the settings that are tried, in grid order (pooling outer)."""
        return [Regularization(pooling, shrinkage) for pooling in self.pooling for shrinkage in self.shrinkage]


@dataclass(frozen=True)
class Candidate:
    """One setting and what it achieves on the held-out data.

    Attributes:
        regularization: Pooling and shrinkage.
        accuracy: Share of correct predictions; NaN where the setting leaves a covariance singular.
        certified_accuracy: Share of correct predictions with radius at least the target; NaN likewise.
        mean_radius: Mean of radius where correct, 0 where not, over all images; infinite radii count as 0 here.
        relative_radius: Mean of min(radius / s, 1) where correct, 0 where not, with s the mixture's
            :attr:`~ellips.gaussians.Mixture.scale`; NaN for votes, whose radii are on the image.
        noise: How many times the noise's own covariance was added to that of every class.
        added: What was added, for :meth:`ellips.EllipsHead.finalize`; None: nothing.
    """

    regularization: Regularization
    accuracy: float
    certified_accuracy: float
    mean_radius: float
    relative_radius: float = float("nan")
    noise: float = 0.0
    added: Tensor | None = field(default=None, repr=False, compare=False)


def best_candidate(candidates: Sequence[Candidate], key: Callable[[Candidate], tuple[float, ...]]) -> Candidate:
    """Return the first candidate of the largest key among those that were not singular.

    Raises:
        ValueError: If every one was.
    """
    usable = [candidate for candidate in candidates if candidate.accuracy == candidate.accuracy]
    if not usable:
        raise ValueError(
            "Expected a candidate with positive definite covariances but every one was singular; add larger values of "
            "`shrinkage` or `pooling`."
        )
    return max(usable, key=key)


def select_regularization(
    moments: Moments | SketchedMoments,
    latents: Tensor,
    labels: Tensor,
    search: RegularizationSearch,
    *,
    radius: Tensor | None = None,
    covariance_type: CovarianceType = "full",
    rank: int | None = None,
    ellips: Ellips | None = None,
    after_each: Callable[[], object] = lambda: None,
) -> tuple[Candidate, list[Candidate]]:
    """Choose ``pooling`` and ``shrinkage`` by certified accuracy on held-out latents, straight from the moments.

    Nothing is encoded or projected again: every candidate is fitted from the same moments and scored on the same
    latents. Ties go to the larger clean accuracy, then to the larger mean radius, then to the earlier candidate. The
    held-out data must be neither the training split nor the one that results are reported on. Over several processes
    each passes its own share of the latents, and all return the same.

    Args:
        moments: Of the training split.
        latents: Held-out latents, shape ``(N, d)``.
        labels: Shape ``(N,)``.
        search: Grid, target radius and certificate.
        radius: Target radius per image, shape ``(N,)``, instead of ``search.radius``: an input-space target is
            ``r · L(x)``.
        covariance_type: ``"full"``, ``"diagonal"`` or ``"low_rank"``.
        rank: Of ``"low_rank"`` alone.
        ellips: What is fitted with each setting in turn, and left with one of them; None: one that is made for it.
        after_each: Called after each setting that was tried.

    Returns:
        The best candidate, and all of them in grid order (pooling outer).

    Raises:
        ValueError: If shapes or labels do not fit, or every candidate leaves a covariance singular.
    """
    classes, dim = moments.mean.shape
    validate_latents(latents, dim, "latents")
    validate_labels(labels, classes, latents.shape[0])
    target = torch.full((len(labels),), search.radius) if radius is None else radius
    target = target.to(device=latents.device, dtype=torch.float64)
    if target.shape != labels.shape:
        raise ValueError(f"Expected `radius` to have shape {tuple(labels.shape)} but got {tuple(target.shape)}.")
    if ellips is None:
        ellips = Ellips(classes, dim, covariance_type=covariance_type, rank=rank).to(latents.device)
    candidates = []
    for regularization in search.candidates():
        ellips.regularization = regularization
        candidates.append(score(ellips, moments, latents, labels, target, search.method))
        after_each()
    best = best_candidate(candidates, key=lambda c: (c.certified_accuracy, c.accuracy, c.mean_radius))
    return best, candidates


@torch.no_grad()
def score(
    ellips: Ellips,
    moments: Moments | SketchedMoments,
    latents: Tensor,
    labels: Tensor,
    target: Tensor,
    method: Method,
    certified: Tensor | None = None,
) -> Candidate:
    """Fit a setting, that of ``ellips.regularization``, and say what it achieves on held-out latents of all processes.

    Args:
        ellips: Is fitted.
        moments: Of the training split.
        latents: Shape ``(N, d)``.
        labels: Shape ``(N,)``.
        target: Shape ``(N,)``, float64: target radii.
        method: Certificate that is counted.
        certified: Shape ``(N,)``, bool: the rows that radii are taken of; None: all. Predictions are taken of all.

    Raises:
        ValueError: If there are no latents in any process.
    """
    try:
        ellips.fit_collected(moments)
    except ValueError:  # singular: the search is there to step over such settings
        return Candidate(ellips.regularization, float("nan"), float("nan"), float("nan"))
    taken = torch.ones_like(labels, dtype=torch.bool) if certified is None else certified
    certificate = ellips.certify(latents[taken], method)
    correct = certificate.prediction == labels[taken]
    right = correct.sum() + (ellips.predict(latents[~taken]) == labels[~taken]).sum()
    radius = certificate.radius.where(correct, torch.zeros_like(certificate.radius))
    held = (radius >= target[taken]) & correct
    finite = radius.where(radius.isfinite(), torch.zeros_like(radius))
    relative = (radius / ellips.scale).clamp(max=1)
    sizes = [torch.tensor(float(len(x)), dtype=torch.float64, device=latents.device) for x in (labels, radius)]
    sums = torch.stack([*sizes, *(x.double().sum() for x in (right, held, finite, relative))])
    if world_size() > 1:
        dist.all_reduce(sums)
    count, certificates, correct_ones, *totals = sums.tolist()
    if not certificates:
        raise ValueError("Expected held-out latents to choose the regularisation on but got none.")
    return Candidate(ellips.regularization, correct_ones / count, *(total / certificates for total in totals))
