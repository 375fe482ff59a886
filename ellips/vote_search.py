"""How far to regularise class covariances for a classifier whose decision is smoothed: chosen by votes under noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product

import torch
import torch.distributed as dist
from torch import Tensor

from ellips.certificates import decisions
from ellips.distributed import world_size
from ellips.gaussians import CovarianceType, Mixture, Moments, SketchedMoments
from ellips.regularization_search import Candidate, RegularizationSearch, best_candidate
from ellips.smoothing.confidence import clopper_pearson_lower, radius_of
from ellips.validation import validate_labels, validate_latents

_ROWS = 8192  # latents whose scores are held at once


def select_by_votes(
    moments: Moments | SketchedMoments,
    latents: Tensor,
    labels: Tensor,
    search: RegularizationSearch,
    *,
    covariance_type: CovarianceType = "full",
    rank: int | None = None,
    mixture: Mixture | None = None,
    after_each: Callable[[], object] = lambda: None,
) -> tuple[Candidate, list[Candidate]]:
    """Choose ``pooling`` and ``shrinkage`` by the votes of noisy copies of held-out images, straight from the moments.

    An image's class is the one with most votes; its radius is ``σ Φ⁻¹(p)``, with p the Clopper–Pearson lower bound of
    that class's share (Cohen et al. 2019). The class and its share come from the same votes, so these radii compare
    settings and certify nothing. With ``search.noise`` multiples of :func:`noise_covariance` of these latents are added
    to every class's covariance, too. Nothing is encoded or projected again. Ties go to the larger mean radius, then to
    the larger share of right decisions, then to the earlier candidate. Over several processes each passes its own
    images, and all return the same.

    Args:
        moments: Of the training split, as it is seen under noise.
        latents: Of n noisy copies of each held-out image, shape ``(N, n, d)``.
        labels: Shape ``(N,)``.
        search: Grid and target radius in input space; its ``sigma`` is that of the noise.
        covariance_type: ``"full"``, ``"diagonal"`` or ``"low_rank"``.
        rank: Of ``"low_rank"`` alone.
        mixture: What is fitted with each setting in turn, and left with one of them; None: one that is made for it.
        after_each: Called after each setting that was tried.

    Returns:
        The best candidate, and all of them in grid order (pooling outer, noise inner). Their radii are in input space.

    Raises:
        ValueError: If the search has no ``sigma``, shapes or labels do not fit, no share of n votes could reach the
            target radius, every candidate leaves a covariance singular, or noise is to be added to covariances of low
            rank.
    """
    if search.sigma is None:
        raise ValueError("Expected a search with the `sigma` of the noise for votes but got None.")
    classes, dim = moments.mean.shape
    if latents.ndim != 3:
        raise ValueError(f"Expected `latents` to have shape (N, n, d) but got {tuple(latents.shape)}.")
    validate_latents(latents.flatten(0, 1), dim, "latents")
    validate_labels(labels, classes, latents.shape[0])
    radii = vote_radii(latents.shape[1], search.sigma, search.alpha).to(latents.device)
    if radii[-1] < search.radius:
        raise ValueError(
            f"Expected a target `radius` that {latents.shape[1]} noisy copies of an image could reach, at most "
            f"{float(radii[-1]):.3g} with sigma={search.sigma} and alpha={search.alpha}, but got {search.radius}; "
            "raise the number of copies (data.init_args.val_copies) or alpha, or lower the radius."
        )
    if mixture is None:
        mixture = Mixture(classes, dim, covariance_type=covariance_type, rank=rank).to(latents.device)
    search.require_covariances(mixture.covariance_type)
    noise = noise_covariance(latents) if any(search.noise) else None
    candidates = []
    for regularization, weight in product(search.candidates(), search.noise):
        mixture.regularization = regularization
        added = _weighted(noise, weight, mixture.covariance_type)
        found = _score(mixture, moments, latents, labels, radii, search.radius, added)
        candidates.append(replace(found, noise=weight))
        after_each()
    best = best_candidate(candidates, key=lambda c: (c.certified_accuracy, c.mean_radius, c.accuracy))
    return replace(best, added=_weighted(noise, best.noise, mixture.covariance_type)), candidates


def noise_covariance(latents: Tensor) -> Tensor:
    """Return the covariance of the latents of an image's noisy copies, mean over the images of all processes.

    Args:
        latents: Shape ``(N, n, d)``: n copies of each image, at least 2.

    Returns:
        Shape ``(d, d)``, float64.

    Raises:
        ValueError: If there are no two copies of any image.
    """
    images, copies, dim = latents.shape
    sums = latents.new_zeros(dim, dim, dtype=torch.float64)
    for part in latents.split(max(1, _ROWS // max(copies, 1))):
        away = (part.double() - part.double().mean(1, keepdim=True)).flatten(0, 1)
        sums += away.T @ away
    freedom = torch.tensor(float(images * (copies - 1)), dtype=torch.float64, device=latents.device)
    if world_size() > 1:
        dist.all_reduce(sums)
        dist.all_reduce(freedom)
    if freedom <= 0:
        raise ValueError(
            f"Expected at least 2 noisy copies of an image but got latents of shape {tuple(latents.shape)}."
        )
    return sums / freedom


def _weighted(noise: Tensor | None, weight: float, covariance_type: CovarianceType) -> Tensor | None:
    if noise is None or not weight:
        return None
    return weight * (noise.diagonal() if covariance_type == "diagonal" else noise)


def vote_radii(copies: int, sigma: float, alpha: float) -> Tensor:
    """Return the radius ``σ Φ⁻¹(p)`` that each number of votes gives, 0 where p is at most one half.

    Args:
        copies: Votes in all, n.
        sigma: Standard deviation of the noise.
        alpha: p is the one-sided Clopper–Pearson lower bound at this level.

    Returns:
        Shape ``(n + 1,)``, float64: for 0 to n votes.

    Raises:
        ValueError: If an argument is out of range.
    """
    lower = [clopper_pearson_lower(won, copies, alpha) for won in range(copies + 1)]
    return torch.tensor([radius_of(share, sigma) for share in lower], dtype=torch.float64)


def _score(
    mixture: Mixture,
    moments: Moments | SketchedMoments,
    latents: Tensor,
    labels: Tensor,
    radii: Tensor,
    target: float,
    added: Tensor | None,
) -> Candidate:
    try:
        mixture.fit_collected(moments, added)
    except ValueError:  # singular: the search is there to step over such settings
        return Candidate(mixture.regularization, float("nan"), float("nan"), float("nan"))
    sums = latents.new_zeros(4, dtype=torch.float64)
    if len(labels):
        won, decision = _count_votes(mixture, latents).max(1)
        correct = decision == labels
        radius = radii[won] * correct
        sums = torch.stack([torch.ones_like(radius), correct.double(), (radius >= target).double(), radius]).sum(1)
    if world_size() > 1:
        dist.all_reduce(sums)
    count, accuracy, certified, mean_radius = (float(x) for x in sums)
    if not count:
        raise ValueError("Expected held-out latents to choose the regularisation on but got none.")
    return Candidate(mixture.regularization, accuracy / count, certified / count, mean_radius / count)


def _count_votes(mixture: Mixture, latents: Tensor) -> Tensor:
    """Return how many copies of each image every class wins, shape ``(N, K)``."""
    decide, rows = decisions(mixture), latents.flatten(0, 1).split(_ROWS)
    classes = torch.cat([decide(part) for part in rows]).view(latents.shape[:2])
    votes = torch.zeros(len(latents), mixture.num_classes, dtype=torch.int64, device=latents.device)
    return votes.scatter_add(1, classes, torch.ones_like(classes))
