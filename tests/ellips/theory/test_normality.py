"""Mardia's tests: right statistics, right false-positive rate, power where it is due."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch
from scipy.stats import binom, kurtosis, skew
from torch import Tensor

from ellips.theory.normality import _skewness, mardia


def gaussian(n: int, dim: int, seed: int) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rejections(samples: int, n: int, dim: int, alpha: float, **options: object) -> int:
    z = gaussian(samples * n, dim, seed=11)
    labels = torch.arange(samples).repeat_interleave(n)
    return int((~mardia(z, labels, **options).passed(alpha)).sum())


def test_one_dimension_is_the_classical_skewness_and_kurtosis() -> None:
    z = gaussian(200, 1, 0).exp()
    result = mardia(z)
    assert float(result.skewness) == pytest.approx(skew(z[:, 0].numpy()) ** 2, rel=1e-12)
    assert float(result.kurtosis) == pytest.approx(kurtosis(z[:, 0].numpy(), fisher=False), rel=1e-12)


def test_statistics_are_those_of_the_definition() -> None:
    z = gaussian(60, 4, 1).exp().numpy()
    centred = z - z.mean(0)
    gram = centred @ np.linalg.inv(np.cov(z.T, bias=True)) @ centred.T
    result = mardia(torch.from_numpy(z))
    assert float(result.skewness) == pytest.approx((gram**3).mean(), rel=1e-10)
    assert float(result.kurtosis) == pytest.approx((gram.diagonal() ** 2).mean(), rel=1e-10)


def test_statistics_are_affine_invariant_even_when_badly_scaled() -> None:
    z = gaussian(300, 6, 2).sinh()
    scaled = z * torch.logspace(-6, 6, 6, dtype=torch.float64) + 1e3
    plain, moved = mardia(z), mardia(scaled)
    assert float(moved.skewness) == pytest.approx(float(plain.skewness), rel=1e-6)
    assert float(moved.kurtosis) == pytest.approx(float(plain.kurtosis), rel=1e-6)


def test_both_ways_to_the_skewness_agree() -> None:
    w = gaussian(30, 5, 3)
    pairs = float((w @ w.T).pow(3).mean())
    padded = _skewness(w)  # n > d²: over the tensor
    assert padded == pytest.approx(pairs, rel=1e-12)
    assert _skewness(w[:20]) == pytest.approx(float((w[:20] @ w[:20].T).pow(3).mean()), rel=1e-12)


@pytest.mark.parametrize(("n", "dim"), [(100, 2), (200, 8), (400, 32)])
def test_false_positive_rate_with_asymptotic_pvalues(n: int, dim: int) -> None:
    # The skewness' variance exceeds that of chi-square at finite n: the level 0.05 is held up to 0.02.
    for alpha, worst in ((0.05, 0.07), (0.01, 0.02)):
        count = rejections(400, n, dim, alpha)
        assert binom.ppf(1e-4, 400, alpha) <= count <= binom.ppf(1 - 1e-4, 400, worst)


@pytest.mark.parametrize(("n", "dim"), [(20, 3), (40, 12)])
def test_false_positive_rate_with_simulated_pvalues_is_exact_in_small_samples(n: int, dim: int) -> None:
    samples = 600
    z, labels = gaussian(samples * n, dim, 12), torch.arange(samples).repeat_interleave(n)
    result = mardia(z, labels, calibration="monte_carlo", num_simulations=999)
    # The simulated reference is shared, so its own error adds to the binomial one.
    spread = math.sqrt(0.05 * 0.95 * (1 / samples + 1 / 999))
    for pvalue in (result.skewness_pvalue, result.kurtosis_pvalue):
        assert float((pvalue < 0.05).double().mean()) == pytest.approx(0.05, abs=4 * spread)


def test_at_128_dimensions_and_5000_samples_it_is_stable_and_accepts_gaussians() -> None:
    factor = torch.linalg.qr(gaussian(128, 128, 4)).Q * torch.logspace(-2, 2, 128, dtype=torch.float64)
    start = time.perf_counter()
    result = mardia((gaussian(5000, 128, 5) @ factor.T + 7).float())
    assert time.perf_counter() - start < 20
    assert float(result.pvalue) > 0.001
    assert float(result.skewness) == pytest.approx(128 * 129 * 130 / 5000, rel=0.01)
    assert float(result.kurtosis) == pytest.approx(128 * 130, rel=0.01)


@pytest.mark.parametrize("dim", [2, 16])
def test_power_on_skewed_and_on_heavy_tailed_data(dim: int) -> None:
    n, samples = 300, 20
    labels = torch.arange(samples).repeat_interleave(n)
    base = gaussian(samples * n, dim, 6)
    scale = torch.from_numpy(np.random.default_rng(0).chisquare(5, (samples * n, 1)) / 5).sqrt()
    skewed, heavy = mardia((0.6 * base).exp(), labels), mardia(base / scale, labels)
    assert float((skewed.skewness_pvalue < 0.01).double().mean()) >= 0.95
    assert float((heavy.kurtosis_pvalue < 0.01).double().mean()) >= 0.95
    assert skewed.pass_rate() <= 0.05
    assert heavy.pass_rate() <= 0.05


def test_light_tails_are_found_too() -> None:
    uniform = torch.rand(500, 3, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    assert float(mardia(uniform).kurtosis_pvalue) < 1e-6


def test_classes_that_cannot_be_tested_say_so_and_leave_the_rate_alone() -> None:
    z = torch.cat([gaussian(100, 4, 21), gaussian(4, 4, 9), gaussian(50, 4, 10)[:, :1].expand(50, 4)])
    labels = torch.tensor([0] * 100 + [1] * 4 + [2] * 50)
    result = mardia(z, labels, num_classes=4)
    assert result.count.tolist() == [100, 4, 50, 0]
    assert result.tested.tolist() == [True, False, False, False]
    assert result.pass_rate() == 1.0
    assert not result.passed()[1:].any()
    assert math.isnan(mardia(z[:3], labels[:3]).pass_rate())
    assert len(result.table()) == 4


def test_bad_input_is_refused() -> None:
    z = gaussian(10, 2, 0)
    with pytest.raises(ValueError, match="calibration"):
        mardia(z, calibration="exact")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="finite"):
        mardia(z / 0)
    with pytest.raises(ValueError, match="labels"):
        mardia(z, torch.zeros(9, dtype=torch.int64))
    with pytest.raises(ValueError, match="num_simulations"):
        mardia(z, calibration="monte_carlo", num_simulations=0)
