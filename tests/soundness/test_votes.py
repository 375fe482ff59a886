"""Radii from votes against distances that are known; in full size: ``python -m tests.soundness.votes``."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import binom

from tests.soundness.votes import Line, count_violations, gaussians

COUNT = 1500


@pytest.mark.parametrize("stopping", ["early", "fixed"])
@pytest.mark.parametrize("alpha", [0.1, 0.001])
def test_the_radius_exceeds_the_true_distance_in_no_more_than_alpha(stopping: str, alpha: float) -> None:
    violations, positive = count_violations(COUNT, alpha, stopping, draws=300)  # type: ignore[arg-type]
    assert positive > 0.5 * COUNT
    assert violations <= binom.ppf(1 - 1e-6, COUNT, alpha)
    if alpha == 0.1 and stopping == "fixed":
        assert violations > 0.02 * COUNT  # claims that fail are seen: Clopper and Pearson's use what they may


def test_the_truth_is_that_of_many_votes() -> None:
    line = Line(gaussians(1, 4))
    x = np.array([-0.3, 0.1, 0.8])
    noise = np.random.default_rng(0).normal(0, 0.25, (200_000, 1))
    votes = gaussians(1, 4)(torch.from_numpy((x + noise).reshape(-1, 1))).argmax(1).view(-1, 3)
    for i in range(3):
        share = np.bincount(votes[:, i].numpy(), minlength=4) / len(votes)
        np.testing.assert_allclose(share, line.probabilities(x)[i], atol=0.005)
    radius = line.true_radius(x, line.probabilities(x).argmax(1))
    assert np.isfinite(radius).all()
    inside, outside = (
        np.stack([line.probabilities(x + sign * factor * radius).argmax(1) for sign in (-1, 1)])
        for factor in (1 - 1e-9, 1 + 1e-9)
    )
    assert (inside == line.probabilities(x).argmax(1)).all()
    assert (outside != inside).any(0).all()
