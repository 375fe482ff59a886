from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import binom, binomtest, norm

from ellips.smoothing import MixtureTest, clopper_pearson_lower, votes_needed
from ellips.smoothing.confidence import radius_of

MARGINS = np.array([0.0, 0.1, 0.5, 1.0, 2.0, 3.0, 3.7])


@pytest.mark.parametrize(("successes", "draws"), [(1, 1), (50, 100), (99, 100), (100, 100), (9_990, 10_000)])
@pytest.mark.parametrize("alpha", [0.05, 0.001, 1e-6])
def test_the_bound_is_that_of_clopper_and_pearson(successes: int, draws: int, alpha: float) -> None:
    bound = clopper_pearson_lower(successes, draws, alpha)
    interval = binomtest(successes, draws).proportion_ci(1 - 2 * alpha, method="exact")
    assert bound == pytest.approx(interval.low, rel=1e-9)
    assert binom.sf(successes - 1, draws, bound) == pytest.approx(alpha, rel=1e-6)


def test_no_success_proves_nothing_and_bad_arguments_are_named() -> None:
    assert clopper_pearson_lower(0, 10, 0.1) == 0
    with pytest.raises(ValueError, match="successes"):
        clopper_pearson_lower(11, 10, 0.1)
    with pytest.raises(ValueError, match="alpha"):
        clopper_pearson_lower(1, 10, 0.0)
    with pytest.raises(ValueError, match="draws"):
        clopper_pearson_lower(0, 0, 0.1)
    for alpha in (0.0, 1.0):
        with pytest.raises(ValueError, match="alpha"):
            MixtureTest(alpha, 100)
    with pytest.raises(ValueError, match="draws"):
        MixtureTest(0.1, 0)


@pytest.mark.parametrize("draws", [1, 7, 100, 10_000])
@pytest.mark.parametrize("alpha", [0.05, 0.001])
def test_the_votes_needed_are_the_fewest_whose_bound_reaches_the_probability(draws: int, alpha: float) -> None:
    for margin, needed in zip(MARGINS, votes_needed(MARGINS, draws, alpha).tolist(), strict=True):
        p0 = norm.cdf(margin)
        assert needed == draws + 1 or clopper_pearson_lower(needed, draws, alpha) >= p0 * (1 - 1e-9)
        assert needed == 0 or clopper_pearson_lower(needed - 1, draws, alpha) < p0


def test_a_probability_next_to_the_level_is_not_taken_for_one_below_it() -> None:
    """What SciPy rounds is on the side of more votes, of one margin among others, too."""
    margin = np.array([1.0, 0.2])
    for others in (0, 3, 9):
        likely = float(binom.cdf(others, 100, norm.sf(margin[0])))
        for share, needed in ((1 - 2e-9, 1), (1 - 7e-10, 1), (1 + 7e-10, 1), (1 + 2e-9, 0)):
            assert votes_needed(margin, 100, likely * share)[0] == 100 - others + needed


def test_a_value_next_to_the_threshold_is_not_over_it() -> None:
    """Likewise of the test that may be looked at at any time: its logarithm is compared with some slack."""
    margin, draws, votes = np.array([0.7]), np.array([200]), np.array([178])

    def beyond(log_level: float) -> float:
        value = MixtureTest(math.exp(log_level), 1000).log_value(votes, draws, margin)
        return float(value[0]) + log_level

    for away, needed in ((-7e-7, 179), (7e-7, 179), (2e-6, 178)):
        level = brentq(lambda x, away=away: beyond(x) - away, math.log(1e-12), math.log(0.5), xtol=1e-12)
        assert MixtureTest(math.exp(level), 1000).votes_needed(margin, draws).tolist() == [[needed]]


def direct_mixture(successes: int, draws: int, margin: float, alternatives: list[tuple[float, float]]) -> float:
    p0, rest = norm.cdf(margin), norm.sf(margin)
    failures = draws - successes
    return sum(
        w * ((p0 + gap) / p0) ** successes * ((rest - gap) / rest if failures else 1) ** failures
        for gap, w in alternatives
    )


def test_the_value_is_the_mixture_of_likelihood_ratios_that_it_says() -> None:
    test = MixtureTest(0.001, 1000)
    for margin in (0.3, 1.0, 2.5):
        found = [(float(gap), weight) for gap, weight in test._alternatives(np.array(margin))]
        alternatives = [(norm.sf(margin), 1 - sum(w for _, w in found)), *found]
        assert all(0 < gap <= norm.sf(margin) for gap, _ in alternatives)
        for draws, successes in [(1, 0), (1, 1), (40, 40), (60, 55)]:
            expected = direct_mixture(successes, draws, margin, alternatives)
            value = test.log_value(np.array(successes), np.array(draws), np.array(margin))
            assert float(value) == pytest.approx(math.log(expected), abs=1e-8)


@pytest.mark.parametrize("margin", [0.0, 0.5, 2.0, 3.0])
@pytest.mark.parametrize("ratio", [1.0, 0.999, 0.9, 0.5])
def test_its_mean_never_grows_under_the_null_hypothesis(margin: float, ratio: float) -> None:
    """The one fact that the claim rests on: E[M_(n+1) | s, n] <= M_n for every p <= p0, with equality at p0."""
    test, p = MixtureTest(0.001, 1000), ratio * norm.cdf(margin)
    for draws in (0, 1, 10, 300, 5000):  # beyond what the alternatives are laid out for, too
        for successes in {0, draws // 2, max(draws - 1, 0), draws}:
            now, win, lose = (
                float(test.log_value(np.array(s), np.array(n), np.array(margin)))
                for s, n in ((successes, draws), (successes + 1, draws + 1), (successes, draws + 1))
            )
            mean = p * math.exp(win - now) + (1 - p) * math.exp(lose - now)
            assert mean <= 1 + 1e-9
            if ratio == 1.0:
                assert mean == pytest.approx(1, abs=1e-9)
    assert float(test.log_value(np.array(0), np.array(0), np.array(margin))) == pytest.approx(0, abs=1e-12)


def test_the_mixtures_votes_needed_are_the_fewest_that_reach_the_level() -> None:
    test, draws = MixtureTest(0.01, 500), np.array([1, 5, 33, 200, 500])
    needed = test.votes_needed(MARGINS, draws)
    assert needed.shape == (7, 5)
    for i, margin in enumerate(MARGINS):
        for k, n in enumerate(draws.tolist()):
            values = test.log_value(np.arange(n + 1), np.full(n + 1, n), np.full(n + 1, margin))
            above = np.flatnonzero(values >= math.log(1 / 0.01) + 1e-6)
            assert needed[i, k] == (above[0] if len(above) else n + 1)
    assert (np.diff(needed[:, -1]) >= 0).all()


def test_a_radius_needs_more_than_half_of_the_votes() -> None:
    assert radius_of(0.5, 1.0) == 0
    assert radius_of(0.4, 1.0) == 0
    assert radius_of(norm.cdf(1.5), 0.5) == pytest.approx(0.75)
    with pytest.raises(ValueError, match="sigma"):
        radius_of(0.9, 0.0)
