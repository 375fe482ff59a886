"""What estimating the mixture does to a radius: intervals that cover, and the experiment's regression."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import binom

from ellips.classifier import Ellips
from ellips.gaussians.moments import Moments
from ellips.theory.sample_complexity import (
    _Generating,
    _wishart_root,
    radius_error_rate,
    radius_errors,
    radius_interval,
    regress_errors,
    samples_needed,
    signed_radius,
)

F64 = torch.float64


def truth(dim: int = 2) -> Ellips:
    means = torch.zeros(3, dim, dtype=F64)
    means[1, 0], means[2, 1] = 3.0, 3.0
    g = torch.Generator().manual_seed(0)
    x = torch.randn(3, dim, 4 * dim + 2, generator=g, dtype=F64)
    return Ellips.from_parameters(means, x @ x.mT / x.shape[-1], torch.full((3,), 1 / 3, dtype=F64))


@pytest.mark.parametrize("method", ["delta", "bootstrap"])
def test_interval_covers_the_radius_of_the_true_mixture(method: str) -> None:
    """Independent training sets, one point each: the share of covered radii is binomial."""
    mixture, repetitions = truth(), 120 if method == "delta" else 30
    g = torch.Generator().manual_seed(1)
    points, _ = mixture.sample(repetitions, g)
    covered = used = 0
    for z in points.unsqueeze(1):
        z_train, labels = mixture.sample(1500, g)
        fitted = Ellips(3, 2).fit(z_train, labels)
        count = torch.bincount(labels, minlength=3)
        found = radius_interval(fitted, z, count, method=method, num_bootstrap=40)  # type: ignore[arg-type]
        real = float(signed_radius(mixture, z, found.prediction))
        if real > 0.05:  # at the boundary the radius has no derivative
            used += 1
            covered += int(float(found.lower) <= real <= float(found.upper))
    assert used > 0.75 * repetitions
    # The bootstrap's 95 % from 40 replicates is 92 % at best.
    assert binom.ppf(1e-3, used, 0.95 if method == "delta" else 0.92) <= covered


def test_delta_and_bootstrap_agree_on_the_standard_error() -> None:
    mixture = truth(4)
    z, labels = mixture.sample(6000, torch.Generator().manual_seed(2))
    fitted, count = Ellips(3, 4).fit(z, labels), torch.bincount(labels, minlength=3)
    delta = radius_interval(fitted, z[:40], count)
    bootstrap = radius_interval(fitted, z[:40], count, method="bootstrap", num_bootstrap=150)
    far = delta.radius > 0.3
    ratio = (bootstrap.standard_error / delta.standard_error)[far]
    assert float(ratio.median()) == pytest.approx(1, abs=0.1)
    assert float(ratio.min()) > 0.5
    assert bool((delta.lower <= delta.radius).all())
    assert bool((delta.radius <= delta.upper).all())
    assert float(radius_interval(fitted, z[:40], 4 * count).standard_error[far].mean()) == pytest.approx(
        float(delta.standard_error[far].mean()) / 2, rel=1e-2
    )


def test_regularised_classifiers_need_the_bootstrap() -> None:
    z, labels = truth().sample(300, torch.Generator().manual_seed(3))
    count = torch.bincount(labels, minlength=3)
    for options in ({"shrinkage": 0.3, "pooling": 0.5}, {"covariance_type": "diagonal", "shrinkage": 0.1}):
        fitted = Ellips(3, 2, **options).fit(z, labels)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="bootstrap"):
            radius_interval(fitted, z, count)
        found = radius_interval(fitted, z[:5], count, method="bootstrap", num_bootstrap=20)
        assert bool((found.lower <= found.upper).all())


def test_bad_arguments_are_refused() -> None:
    mixture = truth()
    z, count = torch.zeros(1, 2), torch.full((3,), 50)
    for bad in ({"method": "jackknife"}, {"confidence": 1.0}, {"num_bootstrap": 1}):
        with pytest.raises(ValueError, match="Expected"):
            radius_interval(mixture, z, count, **bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="count"):
        radius_interval(mixture, z, count[:2])
    with pytest.raises(ValueError, match="error"):
        samples_needed(0.0, 2)
    with pytest.raises(ValueError, match="four"):
        regress_errors([])


@pytest.mark.parametrize("degrees", [2, 3, 40])
def test_wishart_draws_have_the_right_mean(degrees: int) -> None:
    g = torch.Generator().manual_seed(degrees)
    roots = torch.stack([_wishart_root(degrees, 3, g) for _ in range(4000)])
    draws = roots @ roots.mT
    error = math.sqrt(2 * degrees / 4000)
    assert float((draws.mean(0) - degrees * torch.eye(3)).abs().max()) < 5 * error
    assert int(torch.linalg.matrix_rank(draws[0])) == min(degrees, 3)


def test_drawn_moments_are_those_of_training_sets() -> None:
    mixture = truth()
    g = torch.Generator().manual_seed(4)
    generating = _Generating.of(mixture)
    draws = [generating.moments(torch.full((3,), 100), g) for _ in range(300)]
    assert all(int(m.count.sum()) == 300 for m in draws)
    covariances = torch.stack([m.scatter / (m.count - 1).view(-1, 1, 1) for m in draws]).mean(0)
    assert float((covariances - mixture.covariances).abs().max()) < 0.03 * float(mixture.covariances.max())
    assert isinstance(generating.moments(torch.full((3,), 100), g, stratified=True), Moments)


def test_the_rate_and_its_inverse_agree() -> None:
    assert samples_needed(radius_error_rate(500, 8, 2.0), 8, 2.0) == pytest.approx(500)


def test_the_experiment_shows_the_error_fall_with_n_and_grow_with_d() -> None:
    rows = radius_errors(dims=(2, 10), sizes=(10, 100, 400, 1600), points=20, repetitions=60)
    assert [r["in_regression"] for r in rows] == [True] * 4 + [False] + [True] * 3
    slope = regress_errors(rows)
    # In the regular case the error goes like (d/n)^(1/2): faster than the bound's (d/n)^(1/4).
    assert slope["n"] == pytest.approx(-0.5, abs=0.2)
    assert 0.1 < slope["d"] < 1.0
    assert slope["residual"] < 0.5
