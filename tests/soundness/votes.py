"""How often a radius from votes exceeds the truth, where the truth is known.

    python -m tests.soundness.votes --count 20000

The latent is the image's first pixel, on which Gaussians of random means, variances and priors cut the line into
intervals. The votes' probabilities are then sums of normal probabilities, and the distance to the nearest point whose
winner is another class is found by bisection. Points are drawn near the boundaries, where claims are hardest.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.stats import norm
from torch import Tensor

from ellips import Ellips
from ellips.input_certifiers import Chain, SmoothedDecision
from ellips.input_certifiers.smoothed_decision import Stopping
from ellips.smoothing.confidence import Counts, Floats

SIGMA = 0.25
LIMIT = 12.0  # of the line that is looked at


def first_pixel(images: Tensor) -> Tensor:
    return images[:, 0, 0, :1]


def gaussians(seed: int, classes: int) -> Ellips:
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(classes, 1, generator=generator).double()
    variances = torch.rand(classes, 1, 1, generator=generator).double() * 0.5 + 0.05
    priors = torch.rand(classes, generator=generator).double() + 0.2
    return Ellips.from_parameters(means, variances, priors / priors.sum())


class Line:
    """The smoothed classifier on the line, exactly."""

    def __init__(self, ellips: Ellips) -> None:
        self.ellips = ellips
        self.edges, self.classes = intervals(lambda x: ellips(torch.from_numpy(x)[:, None]).argmax(1).numpy())
        self.smooth_edges, self.smooth_classes = intervals(lambda x: self.probabilities(x).argmax(1))

    def probabilities(self, x: Floats) -> Floats:
        """Shape ``(N, K)``: how the votes at points ``(N,)`` are distributed."""
        below = norm.cdf((self.edges[None] - x[:, None]) / SIGMA)
        shares = np.zeros((len(x), self.ellips.num_classes))
        np.add.at(shares.T, self.classes, np.diff(below, axis=1).T)
        return shares

    def true_radius(self, x: Floats, prediction: Counts) -> Floats:
        """Distance from each point to the nearest one with another winner; 0 if the prediction is not its own."""
        place = np.searchsorted(self.smooth_edges, x) - 1
        distance = np.minimum(x - self.smooth_edges[place], self.smooth_edges[place + 1] - x)
        return np.where(self.smooth_classes[place] == prediction, distance, 0.0)


def intervals(winner: Callable[[Floats], Counts]) -> tuple[Floats, Counts]:
    """Return where the winner changes along the line, the line's two ends included, and who wins in between."""
    grid = np.linspace(-LIMIT, LIMIT, 40_001)
    found = winner(grid)
    change = np.flatnonzero(np.diff(found))
    low, high = grid[change], grid[change + 1]
    for _ in range(50):
        middle = (low + high) / 2
        same = winner(middle) == found[change]
        low, high = np.where(same, middle, low), np.where(same, high, middle)
    return np.array([-np.inf, *high, np.inf]), found[[*change, -1]]


def count_violations(count: int, alpha: float, stopping: Stopping, seed: int = 0, draws: int = 1000) -> tuple[int, int]:
    """Return claims above the truth, and claims with a positive radius."""
    per_mixture = min(count, 500)
    violations = positive = 0
    for part in range(0, count, per_mixture):
        line = Line(gaussians(seed + part, 2 + part % 3))
        rng = np.random.default_rng(seed + part)
        finite = line.edges[1:-1] if len(line.edges) > 2 else np.zeros(1)
        x = rng.choice(finite, per_mixture) + rng.normal(0, SIGMA, per_mixture)
        images = torch.rand(per_mixture, 1, 1, 2, generator=torch.Generator().manual_seed(part)).double()
        images[:, 0, 0, 0] = torch.from_numpy(x)
        certifier = SmoothedDecision(
            SIGMA, draws, alpha, num_selection=20, stopping=stopping, chunk_size=65536, seed=seed
        )
        votes = certifier.vote(Chain(first_pixel, line.ellips), images)
        radius, prediction = votes.radius.numpy(), votes.prediction.numpy()
        positive += int((radius > 0).sum())
        violations += int(((radius > line.true_radius(x, prediction)) & (prediction >= 0)).sum())
    return violations, positive


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(args)
    for alpha in (0.05, 0.001):
        for stopping in ("early", "fixed"):
            violations, positive = count_violations(given.count, alpha, stopping, given.seed)
            share = violations / given.count
            print(
                f"alpha {alpha:g}, {stopping}: {violations} of {given.count} above ({share:.3%}); {positive} positive"
            )


if __name__ == "__main__":
    main()
