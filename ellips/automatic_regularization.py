"""How far to regularise class covariances where nobody says: chosen on held-out data, without a grid to type."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

import torch
import torch.distributed as dist
from torch import Tensor

from ellips.classifier import Ellips
from ellips.distributed import world_size
from ellips.gaussians import Moments, Regularization, SketchedMoments
from ellips.regularization_search import Candidate, score
from ellips.validation import validate_labels, validate_latents

POOLING: Final = (0.0, 0.25, 0.5, 0.75, 1.0)
SHRINKAGE: Final = (0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.75)  # all positive: a class may have fewer images than dimensions
MAX_SETTINGS: Final = len(POOLING) * len(SHRINKAGE)
START: Final = Regularization(0.5, 0.1)
MAX_IMAGES: Final = 1000  # held-out images that settings are scored on; more would cost more and decide little
MAX_RIVALS: Final = 100_000  # of those that are certified with each setting: with 1,000 classes 100 images, in seconds


def choose_automatically(
    ellips: Ellips,
    moments: Moments | SketchedMoments,
    latents: Tensor,
    labels: Tensor,
    index: Tensor,
    after_each: Callable[[], object] = lambda: None,
) -> tuple[Candidate, list[Candidate]]:
    """Choose ``pooling`` and ``shrinkage`` on held-out latents, straight from the moments.

    Of the settings whose accuracy is within one standard error of the best one's (Breiman et al. 1984), the one with
    the largest mean radius in units of the mixture's scale wins (``exact`` certificates), then the more accurate, then
    the first. Nothing in it depends on the scale of the latents, and nothing has to be known beforehand. The grid
    is not gone through as a whole: from (0.5, 0.1) all values of one parameter are tried with the other held, and the
    other way round, then likewise from the best so far, until it stays.

    Settings that leave a covariance singular are passed over; with positive shrinkage and pooling, only classes without
    images make all of them so. At most 1,000 images are looked at, one of every n of the split by ``index``, the same
    in any number of processes; the radius is the mean over so many of them that images times classes stay within
    100,000. The held-out data must be neither the training split nor the one that results are reported on. Over
    several processes each passes its own share, and all return the same.

    Args:
        ellips: What is fitted with each setting in turn; it is left with one of them, and has to be fitted anew.
        moments: Of the training split.
        latents: Held-out latents, shape ``(N, d)``.
        labels: Shape ``(N,)``.
        index: Shape ``(N,)``, positions in the split.
        after_each: Called after each setting that was tried; they are at most :data:`MAX_SETTINGS`.

    Returns:
        The best candidate, and all that were tried, in order.

    Raises:
        ValueError: If shapes or labels do not fit, there are no held-out latents, or no setting gives covariances; the
            message is that of the strongest one.
    """
    validate_latents(latents, ellips.dim, "latents")
    validate_labels(labels, ellips.num_classes, len(latents))
    step = _step(_total(labels), MAX_IMAGES)
    kept = one_of_every(step, index)
    latents, labels, block = latents[kept], labels[kept], index[kept] // step
    count, target = _total(labels), torch.zeros(len(labels), dtype=torch.float64, device=latents.device)
    certified = one_of_every(_step(count, max(1, MAX_RIVALS // ellips.num_classes)), block)
    tried: dict[Regularization, Candidate] = {}
    here = START
    while True:
        for setting in _lines_through(here):
            if setting not in tried:
                ellips.regularization = setting
                tried[setting] = score(ellips, moments, latents, labels, target, "exact", certified)
                after_each()
        candidates = list(tried.values())
        best = _best(candidates, count)
        if best is None:
            ellips.regularization = Regularization(POOLING[-1], SHRINKAGE[-1])
            ellips.fit_collected(moments)  # says what is wrong
            raise ValueError("Expected a setting that gives positive definite covariances but every one was singular.")
        if best.regularization == here:
            return best, candidates
        here = best.regularization


def _lines_through(here: Regularization) -> list[Regularization]:
    """Return the settings that share a parameter with one."""
    row = [Regularization(here.pooling, shrinkage) for shrinkage in SHRINKAGE]
    return [*row, *(Regularization(pooling, here.shrinkage) for pooling in POOLING)]


def _best(candidates: Sequence[Candidate], count: int) -> Candidate | None:
    """Return the largest mean radius among those that are as accurate as the best, within its standard error."""
    usable = [candidate for candidate in candidates if not math.isnan(candidate.accuracy)]
    if not usable:
        return None
    top = max(candidate.accuracy for candidate in usable)
    share = (top * count + 1) / (count + 2)  # an accuracy of 1 has an error, too
    level = top - math.sqrt(share * (1 - share) / count)
    accurate = [candidate for candidate in usable if candidate.accuracy >= level]
    return max(accurate, key=lambda candidate: (candidate.relative_radius, candidate.accuracy))


def one_of_every(n: int, index: Tensor) -> Tensor:
    """Return which of some positions in a split are looked at: one of every n, now the first, now another.

    Processes that take positions in turns so have about as many each, which they would not if it were always the first.
    Which of the n it is goes by multiples of the golden section, which are spread evenly (Knuth 1973, section 6.4).

    Args:
        n: At least 1.
        index: Shape ``(N,)``, int64.

    Returns:
        Shape ``(N,)``, bool; position 0 is always among them.
    """
    block = index // n
    return index % n == (block * 2654435769 % 2**32) * n // 2**32


def _step(total: int, most: int) -> int:
    """Return the least n of which one of every n are at most so many."""
    return max(1, -(-total // most))


def _total(labels: Tensor) -> int:
    """Return the number of rows of all processes.

    Raises:
        ValueError: If there are none.
    """
    total = torch.tensor(len(labels), device=labels.device)
    if world_size() > 1:
        dist.all_reduce(total)
    if not total:
        raise ValueError("Expected held-out latents to choose the regularisation on but got none.")
    return int(total)
