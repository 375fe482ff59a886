from __future__ import annotations

import numpy as np
from scipy import stats

from ellips.lipschitz.extreme_value import fit_maxima


def test_the_fit_finds_the_end_of_the_support() -> None:
    maxima = stats.weibull_max.rvs(3, 5.0, 1.0, size=500, random_state=np.random.default_rng(0))
    extreme = fit_maxima(maxima)
    assert extreme.fitted
    assert extreme.pvalue > 0.05
    assert abs(extreme.value - 5.0) < abs(maxima.max() - 5.0)


def test_the_fit_does_not_depend_on_the_scale() -> None:
    maxima = stats.weibull_max.rvs(3, 5.0, 1.0, size=100, random_state=np.random.default_rng(1))
    assert np.isclose(fit_maxima(1e-4 * maxima).value, 1e-4 * fit_maxima(maxima).value, rtol=1e-6)


def test_a_fit_that_may_not_be_believed_gives_the_sample_maximum() -> None:
    generator = np.random.default_rng(2)
    two_heaps = np.concatenate([generator.normal(1, 1e-3, 200), generator.normal(2, 1e-3, 200)])
    extreme = fit_maxima(two_heaps)
    assert not extreme.fitted
    assert extreme.value == two_heaps.max()
    assert extreme.pvalue < 0.05


def test_a_fit_that_runs_away_gives_the_sample_maximum() -> None:
    maxima = stats.weibull_max.rvs(3, 5.0, 1.0, size=100, random_state=np.random.default_rng(1))
    extreme = fit_maxima(maxima, max_stretch=1.0)
    assert not extreme.fitted
    assert extreme.value == maxima.max()


def test_equal_maxima_are_their_own_estimate() -> None:
    extreme = fit_maxima(np.full(50, 3.0))
    assert (extreme.value, extreme.pvalue, extreme.fitted) == (3.0, 1.0, False)
    assert fit_maxima(np.zeros(5)).value == 0.0


def test_one_maximum_is_its_own_estimate() -> None:
    assert fit_maxima(np.array([2.0])).value == 2.0
