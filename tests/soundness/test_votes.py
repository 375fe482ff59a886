"""Radii from votes against distances that are known; in full size: ``python -m tests.soundness.votes``."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import binom
from torch import Tensor

from ellips import Ellips
from ellips.input_certifiers import Chain, SmoothedDecision, SmoothedEncoder
from ellips.smoothing import add_noise
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


STEP = 2.0**-26
AT = torch.full((1, 2, 16, 16), 0.25)
"""To get from here just below 0, noise of 0.25 times more than 1 is needed, whose last bit in float32 is 2 steps."""


def last_bits(images: Tensor) -> Tensor:
    """Return 1 where a value just below 0 is an odd number of steps, else −1, shape ``(N, 1)``."""
    x = images.flatten(1).double()
    odd = ((x / STEP) % 2 != 0) & (x < 0) & (x > -(2.0**-6))
    return 2 * odd.any(1, keepdim=True).double() - 1


def test_last_bits_of_noisy_images_tell_nothing() -> None:
    """A step further on, float32 noise would lead to odd numbers alone: another class, at a distance of 1e-6."""
    noise = torch.randn(200, *AT.shape[1:], generator=torch.Generator().manual_seed(0))
    assert (last_bits(AT + 0.25 * noise) == -1).all()
    assert (last_bits(AT - STEP + 0.25 * noise) == 1).double().mean() > 0.99
    exact = torch.randn(200, *AT.shape[1:], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rounded = (AT.double() + 0.25 * exact).float()
    assert torch.equal(add_noise(AT[0], exact, 0.25), rounded)
    assert torch.equal(add_noise(AT[0].double(), exact, 0.25), rounded.double())  # float64 has last bits, too
    means, ones = torch.tensor([[-1.0], [1.0]]).double(), torch.ones(2, 1).double()
    chain = Chain(last_bits, Ellips.from_parameters(means, ones, torch.tensor([0.5, 0.5])))
    found = [SmoothedDecision(num_samples=200).vote(chain, x).prediction for x in (AT, AT - STEP)]
    assert found[0] == found[1] == 1
    here, there = (SmoothedEncoder(num_samples=200).smooth(last_bits, x).mean for x in (AT, AT - STEP))
    assert float(here - there) == pytest.approx(0, abs=0.1)
