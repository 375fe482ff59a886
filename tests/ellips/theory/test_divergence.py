"""Estimates of KL(P‖Q) where the truth is known, and their limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import binom
from torch.distributions import MultivariateNormal, kl_divergence

from ellips.classifier import Ellips
from ellips.errors import NotFittedError
from ellips.theory.divergence import kl_knn, kl_likelihood

F64 = torch.float64
PRIORS = torch.tensor([0.3, 0.7], dtype=F64)


def gaussians(dim: int, shift: float, seed: int = 3) -> tuple[Ellips, Ellips, float]:
    """True mixture P, fitted mixture Q with moved means and covariances, and KL(P‖Q)."""
    g = torch.Generator().manual_seed(seed)
    means = 2 * torch.randn(2, dim, generator=g, dtype=F64)
    x, y = torch.randn(2, 2, dim, 4 * dim + 4, generator=g, dtype=F64)
    moved = means + shift * torch.randn(2, dim, generator=g, dtype=F64) / math.sqrt(dim)
    cov = x @ x.mT / x.shape[-1]
    other = (1 - shift / 2) * cov + shift / 2 * y @ y.mT / y.shape[-1]
    kl = kl_divergence(MultivariateNormal(moved, other), MultivariateNormal(means, cov))
    return (
        Ellips.from_parameters(moved, other, PRIORS),
        Ellips.from_parameters(means, cov, PRIORS),
        float(PRIORS @ kl),
    )


@pytest.mark.parametrize("dim", [1, 2, 4, 8])
@pytest.mark.parametrize("shift", [0.0, 0.8])
def test_interval_covers_the_known_divergence_in_nine_of_ten_repetitions(dim: int, shift: float) -> None:
    truth, fitted, kl = gaussians(dim, shift)
    assert (kl < 1e-12) == (shift == 0)
    covered = 0
    for repetition in range(50):
        z, labels = truth.sample(400, torch.Generator().manual_seed(repetition))
        # Always the same 400 · share latents per class would be a milder test: shares are drawn too.
        found = kl_knn(fitted, z, labels, num_references=8, num_bootstrap=200)
        covered += found.lower <= kl <= found.upper
    assert covered >= 45


def test_estimate_is_unbiased_on_gaussians_in_high_dimension_where_the_plain_one_is_useless() -> None:
    truth, fitted, _ = gaussians(64, 0.0)
    values, plain = [], []
    for repetition in range(4):
        labels = torch.arange(600) % 2
        z = truth.means[labels] + torch.linalg.solve_triangular(
            truth.factors[labels],
            torch.randn(600, 64, 1, generator=torch.Generator().manual_seed(repetition), dtype=F64),
            upper=False,
        ).squeeze(-1)
        shares = kl_knn(fitted, z, labels, num_bootstrap=2)
        values.append(float(shares.per_class.mean()))
        plain.append(float(kl_knn(fitted, z, labels, num_references=0, num_bootstrap=2).per_class.mean()))
    assert abs(np.mean(values)) < 4 * np.std(values, ddof=1) / 2 + 0.1
    assert np.mean(plain) < -5
    assert shares.bias_correction == pytest.approx(np.mean(plain), abs=0.5)


def test_class_shares_enter() -> None:
    truth, _, _ = gaussians(2, 0.0)
    other = Ellips.from_parameters(truth.means, truth.covariances, torch.tensor([0.6, 0.4], dtype=F64))
    z, labels = truth.sample(3000, torch.Generator().manual_seed(0))
    expected = float((PRIORS * (PRIORS / other.priors).log()).sum())
    for estimate in (kl_knn, kl_likelihood):
        found = estimate(other, z, labels)
        assert found.lower <= expected <= found.upper
        assert found.value == pytest.approx(expected, abs=0.06)


def test_bimodal_classes_are_seen_by_both_in_low_dimension() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1600, 2, generator=g, dtype=F64)
    x[:, 0] += 3 * torch.sign(torch.randn(1600, generator=g, dtype=F64))
    labels = torch.arange(1600) % 2
    ellips = Ellips.from_parameters(
        torch.zeros(2, 2, dtype=F64), torch.tensor([[10.0, 1.0]] * 2, dtype=F64), torch.tensor([0.5, 0.5], dtype=F64)
    )
    # Entropy of the even mixture by quadrature.
    t = np.linspace(-15, 15, 20001)
    p = (np.exp(-((t - 3) ** 2) / 2) + np.exp(-((t + 3) ** 2) / 2)) / 2 / math.sqrt(2 * math.pi)
    q = np.exp(-(t**2) / 20) / math.sqrt(20 * math.pi)
    kl = float((p * np.log(p / q)).sum() * (t[1] - t[0]))
    nearest, likelihood = kl_knn(ellips, x, labels), kl_likelihood(ellips, x, labels)
    assert nearest.value == pytest.approx(kl, abs=0.15)
    assert likelihood.value == pytest.approx(kl, abs=0.07)  # its standard error is 0.018
    assert likelihood.lower <= kl
    assert (nearest.estimator, likelihood.estimator) == ("knn", "likelihood")


def test_the_likelihood_gap_never_claims_more_than_there_is() -> None:
    over = 0
    for repetition in range(20):
        truth, fitted, kl = gaussians(4, 0.8, seed=repetition)
        z, labels = truth.sample(300, torch.Generator().manual_seed(repetition))
        over += kl_likelihood(fitted, z, labels, components=(1, 2), num_bootstrap=100).lower > kl
    assert over <= binom.ppf(0.9999, 20, 0.05)


def test_coinciding_latents_make_it_infinite() -> None:
    truth, fitted, _ = gaussians(2, 0.0)
    z, labels = truth.sample(200, torch.Generator().manual_seed(0))
    rows = (labels == 1).nonzero().squeeze(1)[:10]
    z[rows] = z[rows[0]].clone()
    assert kl_knn(fitted, z, labels).value == math.inf


def test_it_can_be_repeated_and_capped_and_written() -> None:
    truth, fitted, _ = gaussians(3, 0.5)
    z, labels = truth.sample(500, torch.Generator().manual_seed(0))
    one, two = kl_knn(fitted, z, labels), kl_knn(fitted, z, labels)
    assert one.to_dict() == two.to_dict()
    assert kl_knn(fitted, z, labels, max_per_class=100).count == 200
    assert one.count == 500
    assert one.dim == 3
    assert len(one.to_dict()["per_class"]) == 2


def test_bad_input_is_refused() -> None:
    truth, fitted, _ = gaussians(3, 0.5)
    z, labels = truth.sample(50, torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="class 0 has"):
        kl_knn(fitted, z[labels == 0][:6], labels[labels == 0][:6])
    with pytest.raises(NotFittedError):
        kl_knn(Ellips(2, 3), z, labels)
    with pytest.raises(ValueError, match="neighbors"):
        kl_knn(fitted, z, labels, neighbors=0)
    with pytest.raises(ValueError, match="confidence"):
        kl_knn(fitted, z, labels, confidence=1.0)
    with pytest.raises(ValueError, match="folds"):
        kl_likelihood(fitted, z, labels, folds=1)
    with pytest.raises(ValueError, match="at least one"):
        kl_knn(fitted, z[:0], labels[:0])
    with pytest.raises(ValueError, match="span"):
        kl_knn(fitted, z[:, :1].expand(50, 3), labels)
