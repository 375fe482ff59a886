from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import beta, binom, norm

from ellips.smoothing import VotePlan
from ellips.smoothing.confidence import Counts


def crossing_probability(needed: Counts, looks: Counts, p: float) -> float:
    """The exact probability that the votes ever reach what is needed at a look, summed over all paths."""
    reached, votes, before = 0.0, np.ones(1), 0
    for draws, count in zip(looks.tolist(), needed.tolist(), strict=True):
        step = draws - before
        votes = np.convolve(votes, binom.pmf(np.arange(step + 1), step, p))
        reached += float(votes[count:].sum())
        votes, before = votes[:count], draws
    return reached


@pytest.mark.parametrize("draws", [1, 5, 9])
def test_of_few_draws_nothing_is_proven(draws: int) -> None:
    plan = VotePlan.stopping(0.25, draws, 0.001, None)
    assert plan.radii.tolist() == [0.0]
    assert (plan.needed > draws).all()


@pytest.mark.parametrize("draws", [20, 100, 700])
@pytest.mark.parametrize("alpha", [0.2, 0.001])
@pytest.mark.parametrize("targets", [None, (0.5,), (0.2, 0.9, 1.7)])
def test_no_rung_is_proven_falsely_more_often_than_alpha_whatever_ends_the_drawing(
    draws: int, alpha: float, targets: tuple[float, ...] | None
) -> None:
    plan = VotePlan.stopping(1.0, draws, alpha, targets)
    for rung in range(0, len(plan.radii), 7):
        for p in norm.cdf(plan.radii[rung]) * np.array([1.0, 0.999, 0.97]):
            assert crossing_probability(plan.needed[rung], plan.looks, p) <= alpha
    at_the_edge = [
        crossing_probability(plan.needed[rung], plan.looks, norm.cdf(radius)) for rung, radius in enumerate(plan.radii)
    ]
    assert max(at_the_edge) > 0.3 * alpha  # and what is allowed is used


@pytest.mark.parametrize("votes_missing", [0, 1, 3])
def test_the_last_look_proves_nearly_what_a_fixed_number_of_draws_proves(votes_missing: int) -> None:
    early, fixed = VotePlan.stopping(1.0, 1000, 0.001, None), VotePlan.fixed(1.0, 1000, 0.001)
    votes, last = np.array(1000 - votes_missing), len(early.looks) - 1
    one = early.radius(int(early.proven(votes, last)), int(votes))
    other = fixed.radius(int(fixed.proven(votes, 0)), int(votes))
    assert 0.96 * other < one < other


@pytest.mark.parametrize(("votes", "draws", "alpha"), [(51, 100, 0.001), (93, 100, 0.001), (10_000, 10_000, 0.05)])
def test_the_fixed_plan_is_the_certificate_of_cohen_et_al(votes: int, draws: int, alpha: float) -> None:
    plan = VotePlan.fixed(0.5, draws, alpha)
    lower = beta.ppf(alpha, votes, draws - votes + 1)  # statsmodels' proportion_confint(votes, draws, 2 alpha, "beta")
    rungs = int(plan.proven(np.array(votes), 0))
    assert (rungs > 0) == (lower > 0.5)
    if rungs:
        assert plan.radius(rungs, votes) == 0.5 * norm.ppf(lower)
    assert plan.is_over(np.array([rungs]), np.array([votes]), 0).all()


def test_every_target_is_a_rung_bit_for_bit() -> None:
    targets = (0.1, 0.3, 36 / 255, 0.7)
    plan = VotePlan.stopping(0.3, 1000, 0.001, targets)
    assert set(targets) <= set(plan.radii.tolist())
    assert plan.radii[0] == 0
    assert (np.diff(plan.radii) > 0).all()
    assert plan.radii[-1] == 0.7


def test_rungs_are_proven_in_order_and_looks_grow() -> None:
    plan = VotePlan.stopping(1.0, 900, 0.001, None)
    assert (np.diff(plan.needed, axis=0) >= 0).all()
    assert plan.looks[0] == 32
    assert plan.looks[-1] == plan.draws == 900
    assert (np.diff(plan.looks) >= 1).all()
    assert plan.proven(np.array([0, 900]), len(plan.looks) - 1).tolist() == [0, len(plan.radii)]


def test_drawing_goes_on_while_a_target_may_be_reached_and_ends_when_none_can() -> None:
    plan = VotePlan.stopping(1.0, 1000, 0.001, (1.0,))
    top, look = len(plan.radii), int(np.searchsorted(plan.looks, 200))
    draws = int(plan.looks[look])

    def is_over(rungs: int, votes: int, at: int = look) -> bool:
        return bool(plan.is_over(np.array([rungs]), np.array([votes]), at)[0])

    assert is_over(top, draws)  # all that is asked for is proven
    assert not is_over(top - 1, draws)
    assert is_over(1, round(0.80 * draws))  # 0.87 of all are needed, of what remains even more
    assert not is_over(1, round(0.86 * draws))
    assert is_over(0, draws // 3)  # no majority will come of it
    assert is_over(0, 0, len(plan.looks) - 1)


def test_a_target_beyond_what_the_draws_can_prove_is_given_up_at_once() -> None:
    plan = VotePlan.stopping(1.0, 100, 0.001, (0.5, 9.0))
    rungs = int(np.searchsorted(plan.radii, 0.5, side="right"))
    assert plan.is_over(np.array([len(plan.radii) - 1]), np.array([32]), 0).all()
    assert not plan.is_over(np.array([rungs - 2]), np.array([32]), 0).any()


@pytest.mark.parametrize(
    ("arguments", "name"),
    [((0.0, 10, 0.1, None), "sigma"), ((1.0, 0, 0.1, None), "draws"), ((1.0, 10, 1.0, None), "alpha")],
)
def test_bad_settings_are_named(arguments: tuple[float, int, float, None], name: str) -> None:
    with pytest.raises(ValueError, match=f"`{name}`"):
        VotePlan.stopping(*arguments)
    with pytest.raises(ValueError, match=f"`{name}`"):
        VotePlan.fixed(*arguments[:3])
