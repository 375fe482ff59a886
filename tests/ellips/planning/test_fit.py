"""How often a fit encodes; `tests/commands/test_plan.py` counts it at runs of the digits."""

from __future__ import annotations

from dataclasses import replace

from ellips.planning import FitPlan, Work, searched_by
from ellips.regularization_search import RegularizationSearch

PLAN = FitPlan({"train": 101, "val": 20}, epochs=6, validate_every=2, cached=False, search="val")


def test_without_a_cache_every_epoch_encodes_for_training_and_for_the_exact_fit() -> None:
    assert (PLAN.validations, PLAN.fits) == (3, 6)
    assert PLAN.training() == PLAN.fitting() == Work(6 * 101)
    assert (PLAN.validation(), PLAN.regularization()) == (Work(3 * 20), Work(6 * 20))
    assert replace(PLAN, processes=2).training() == Work(6 * 100)


def test_a_cache_is_filled_once_and_serves_all_but_fresh_augmentation() -> None:
    cached = replace(PLAN, cached=True, rows={**PLAN.rows, "votes": 200}, search="votes")
    assert cached.encode() == Work(321)
    assert cached.training() == cached.fitting() == cached.validation() == cached.regularization() == Work()
    assert replace(cached, fresh=True).training() == Work(6 * 101)


def test_gaussians_are_fitted_once_where_nothing_or_they_themselves_are_trained() -> None:
    assert replace(PLAN, trained=False).fits == replace(PLAN, train_mixture=True).fits == 1
    assert replace(PLAN, fitted_first=True).fits == replace(PLAN, sanity_rows=2).fits == 7


def test_a_search_reads_clean_images_or_votes_and_tries_its_grid() -> None:
    grid = RegularizationSearch(0.5, pooling=(0.0, 0.5), shrinkage=(0.1, 0.2, 0.3))
    assert searched_by(grid, given=True) == ("val", 6)
    assert searched_by(replace(grid, sigma=0.25), given=True) == ("votes", 6)
    assert searched_by(None, given=False) == searched_by("auto", given=True) == (None, 0)
    assert searched_by("auto", given=False) == ("val", 35)
