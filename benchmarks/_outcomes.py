"""How classifiers fare on the same noise, and what it loses to stop counting votes early."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ellips import Ellips
from ellips.input_certifiers import SmoothedEncoder
from ellips.input_certifiers.smoothed_encoder import mean_error
from ellips.smoothing import VotePlan

SIGMA = 0.25
ALPHA = 0.001
RADII = tuple(SIGMA * f for f in (0.5, 1.0, 1.5, 2.0))
RADII_3_SIGMA = (*RADII, 3 * SIGMA)
BALLS = (0.5, 0.75, 0.9, 1.0)  # quantiles of the features' lengths: radii tried for the smoothed encoder's ball
SHOWN = (0.0, 0.05, 0.1, *RADII, 3 * SIGMA)


class Outcome(NamedTuple):
    """One classifier on the test images.

    Attributes:
        radius: Shape ``(N,)``, 0 where wrong or abstaining.
        right: Shape ``(N,)``: whether the prediction is.
        passes: Images through the encoder, for each image.
        votes: Shape ``(N,)``: for the class selected, where they are of a fixed number.
    """

    radius: Tensor
    right: Tensor
    passes: Tensor
    votes: Tensor | None = None

    def of(self, rows: Tensor) -> Outcome:
        """Return that of some images."""
        return Outcome(*(None if column is None else column[rows] for column in self))

    def certified(self, limit: float) -> float:
        """Return the share in per cent that is right with a radius of at least ``limit``."""
        return 100 * float((self.right & (self.radius >= limit)).double().mean())

    def summary(self) -> dict[str, Any]:
        """Return the figures that are reported."""
        accuracy = {f"{limit:g}": round(self.certified(limit), 2) for limit in SHOWN}
        passes, radius = float(self.passes.double().mean()), float(self.radius.mean())
        return {"certified_accuracy": accuracy, "mean_radius": radius, "passes_per_image": passes}


def outcome(prediction: Tensor, radius: Tensor, labels: Tensor, passes: Tensor) -> Outcome:
    """Set radii to 0 where predictions are wrong."""
    right = prediction == labels
    return Outcome(torch.where(right, radius, 0.0), right, passes)


def best_ball(latents: Tensor, held_out: Tensor, labels: Tensor, ellips: Ellips, draws: int) -> float:
    """Radius of the ball on which the smoothed encoder projects: most mean radius on the validation split."""
    lengths = torch.linalg.vector_norm(latents, dim=1).double()
    radii = {float(lengths.quantile(q)) for q in BALLS}
    return max(radii, key=lambda ball: float(encoder_outcome(held_out, labels, ellips, ball, draws).radius.mean()))


def encoder_outcome(latents: Tensor, labels: Tensor, ellips: Ellips, ball: float, draws: int) -> Outcome:
    """The smoothed encoder from noisy latents ``(N, n, d)``; with fewer than ``draws``, errors as if of that many."""
    certifier = SmoothedEncoder(SIGMA, draws, ALPHA, norm_bound=ball)
    values = [certifier.project(x.double()) for x in latents]
    means = torch.stack([x.mean(0) for x in values])
    shrink = (latents.shape[1] / draws) ** 0.5
    error = torch.tensor([mean_error(x, ball, ALPHA) for x in values]).double() * shrink
    found = ellips.certify(means).less(error)
    prediction = torch.where(found.radius > 0, found.prediction, -1)
    return outcome(prediction, found.radius / certifier.constant, labels, torch.full_like(labels, draws))


def votes_outcome(counted: Tensor, selected: Tensor, labels: Tensor, classes: int) -> Outcome:
    """Votes at a fixed number of draws (Cohen et al. 2019), from the classes of all copies, shapes ``(N, n)``."""
    plan = VotePlan.fixed(SIGMA, counted.shape[1], ALPHA)
    choice = torch.stack([torch.bincount(x, minlength=classes).argmax() for x in selected])
    votes = (counted == choice[:, None]).sum(1)
    rungs = plan.proven(votes.numpy(), 0)
    radius = [plan.radius(int(r), int(v)) if r else 0.0 for r, v in zip(rungs, votes, strict=True)]
    prediction = torch.where(torch.from_numpy(rungs > 0), choice, -1)
    passes = torch.full_like(labels, counted.shape[1] + selected.shape[1])
    return outcome(prediction, torch.tensor(radius).double(), labels, passes)._replace(votes=votes)


def points_lost(fixed: Outcome, draws: int, radii: Sequence[float], repetitions: int = 200) -> float:
    """Return the most certified accuracy that stopping early is expected to lose at any radius, in points.

    Votes are drawn anew, ``repetitions`` times for each image, and both plans see the same ones. An image's share of
    votes is drawn, too, from what its votes tell of it (Jeffreys' rule): one of 120 images whose votes happen to lie
    between the last looks of the two plans would be 0.83 points, whatever the plans are.
    """
    assert fixed.votes is not None
    plan, whole = VotePlan.stopping(SIGMA, draws, ALPHA, radii), VotePlan.fixed(SIGMA, draws, ALPHA)
    generator = np.random.default_rng(0)
    counted = np.repeat(fixed.votes[fixed.right].numpy(), repetitions)
    share = generator.beta(counted + 0.5, draws - counted + 0.5)
    seen, over = np.zeros_like(counted), np.zeros(len(counted), dtype=bool)
    rungs, before = np.zeros_like(counted), 0
    for look, count in enumerate(plan.looks.tolist()):
        seen = seen + generator.binomial(count - before, share)
        before = count
        rungs[~over] = np.maximum(rungs[~over], plan.proven(seen[~over], look))
        over[~over] = plan.is_over(rungs[~over], seen[~over], look)
    early = np.where(rungs > 0, plan.radii[np.maximum(rungs, 1) - 1], 0.0)
    counts = np.arange(draws + 1)
    proven = whole.proven(counts, 0) > 0
    late = np.array([whole.radius(1, v) if p else 0.0 for v, p in zip(counts.tolist(), proven, strict=True)])[seen]
    return max(100 * float((late >= r).sum() - (early >= r).sum()) / repetitions / len(fixed.votes) for r in radii)


def spread_of_ratio(ours: Tensor, theirs: Tensor) -> float:
    """Return the standard error of the ratio of two means over the same images (delta method)."""
    ratio = ours.mean() / theirs.mean()
    return float((ours - ratio * theirs).std() / theirs.mean() / len(ours) ** 0.5)
