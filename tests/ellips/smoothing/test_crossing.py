from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import norm

from ellips.smoothing import crossing, votes_needed
from ellips.smoothing.crossing import votes_needed_at_last


def rejected(path: tuple[int, ...], needed: list[int], looks: list[int]) -> bool:
    return any(sum(path[:draws]) >= votes for draws, votes in zip(looks, needed, strict=True))


@pytest.mark.parametrize("needed", [[4, 6], [5, 7], [3, 8], [3, 4]])
@pytest.mark.parametrize("margin", [0.0, 0.7, 1.5])
@pytest.mark.parametrize("alpha", [0.3, 0.05, 1e-4])
def test_the_number_is_the_smallest_that_every_path_together_allows(
    needed: list[int], margin: float, alpha: float
) -> None:
    looks, p0 = [4, 7, 10], float(norm.cdf(margin))
    found = votes_needed_at_last(np.array([*needed, 0]), np.array(looks), margin, alpha)
    weights = {path: p0 ** sum(path) * (1 - p0) ** (10 - sum(path)) for path in itertools.product((0, 1), repeat=10)}

    def probability(last: int) -> float:
        return sum(w for path, w in weights.items() if rejected(path, [*needed, last], looks))

    smallest = next((last for last in range(12) if probability(last) <= alpha), 11)
    assert found == max(smallest, 0) or (smallest == 11 and found >= 11)


@pytest.mark.parametrize("margin", [0.0, 0.5, 2.0, 3.0])
def test_a_single_look_is_clopper_and_pearsons(margin: float) -> None:
    alone = votes_needed_at_last(np.array([0]), np.array([1000]), margin, 0.001)
    assert alone == votes_needed(np.array([margin]), 1000, 0.001)[0]
    for first in (1, 2, 5, 100):  # a look at which nothing is ever rejected
        again = votes_needed_at_last(np.array([first + 1, 0]), np.array([first, 1000]), margin, 0.001)
        assert again == alone


def test_earlier_rejections_are_paid_for() -> None:
    looks = np.array([100, 500, 1000])
    free = votes_needed_at_last(np.array([101, 501, 0]), looks, 1.0, 0.001)
    paid = votes_needed_at_last(np.array([94, 440, 0]), looks, 1.0, 0.001)
    assert free < paid
    assert votes_needed_at_last(np.array([50, 501, 0]), looks, 1.0, 0.001) > 1000  # alpha is spent at the first look


@pytest.mark.parametrize("margin", [0.0, 1.0])
@pytest.mark.parametrize("needed", [[94, 440], [60, 501]])
def test_what_sums_are_rounded_by_is_taken_off_alpha(
    margin: float, needed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """More room for rounding is as good as a smaller alpha: at the last look, and where the first ones spend it all."""
    looks, votes = np.array([100, 500, 1000]), np.array([*needed, 0])
    for alpha in (0.3, 0.03, 0.003):
        smaller = votes_needed_at_last(votes, looks, margin, alpha / 1.5)
        with monkeypatch.context() as patched:
            patched.setattr(crossing, "_RELATIVE", 0.5)
            assert votes_needed_at_last(votes, looks, margin, alpha) == smaller
        assert smaller > votes_needed_at_last(votes, looks, margin, alpha) or smaller == 1001


@pytest.mark.parametrize("left_out", [1e-9, 1e-6, 1e-4, 1e-3])
def test_what_is_left_out_counts_as_failure(left_out: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """However much is left out at either end of a distribution, at however many looks: never are fewer votes enough."""
    often = np.arange(20, 1001, 20)
    for looks, votes in ((np.array([20, 100, 500, 1000]), np.array([21, 94, 440, 0])), (often, often + 1)):
        for margin in (0.0, 1.0):
            for alpha in (0.3, 0.1, 0.03, 0.003):
                whole = votes_needed_at_last(votes, looks, margin, alpha)
                with monkeypatch.context() as patched:
                    patched.setattr(crossing, "_LEFT_OUT", left_out)
                    assert votes_needed_at_last(votes, looks, margin, alpha) >= whole


def test_ends_that_are_left_out_are_small_and_all_of_them_is_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crossing, "_LEFT_OUT", 2.0**-6)
    others = 2.0 ** -np.array([9.0, 8, 7, 6, 1, 2, 5, 7, 8])
    kept, first, lost = crossing._trimmed(others, 7)
    assert kept.tolist() == others[3:7].tolist()
    assert first == 7 + 3
    assert lost == others[:3].sum() + others[7:].sum()
