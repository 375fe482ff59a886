"""The types that the parts of the project hand to each other."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from ellips.certificates import METHODS
from ellips.types import DEFAULT_RADII, SOUNDNESS_ORDER, SPACES, LipschitzBound, Series, weakest


@pytest.mark.parametrize(
    ("series", "name", "label"),
    [
        (Series("latent", "exact"), "latent-exact", "exact"),
        (Series("latent", "theorem"), "latent-theorem", "theorem"),
        (Series("input", "exact", "clever"), "input-exact-clever", "exact-clever"),
        (Series("input", "pairwise", "jacobian-norm"), "input-pairwise-jacobian-norm", "pairwise-jacobian-norm"),
        (Series("input", "margin", "clever-2"), "input-margin-clever-2", "margin-clever-2"),
    ],
)
def test_a_series_is_named_by_space_method_and_source(series: Series, name: str, label: str) -> None:
    assert (series.name, series.label, str(series)) == (name, label, name)


def test_series_of_other_parts_have_other_names_and_are_other_keys() -> None:
    latent = [Series("latent", method) for method in METHODS]
    given = [*latent, *(Series("input", *parts) for parts in product(METHODS, ("clever", "known-constant")))]
    assert len({series.name for series in given}) == len(set(given)) == len(given) == 9
    assert Series("latent", "exact") == given[METHODS.index("exact")]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (("outer", "exact"), r"`space` to be one of \('latent', 'input'\) but got 'outer'"),
        (("input", "exact"), "`source` with a series in input space .* but got None in input space"),
        (("latent", "exact", "clever"), "none in latent space but got 'clever' in latent space"),
    ],
)
def test_a_series_that_cannot_be_one_is_refused(parts: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Series(*parts)  # type: ignore[arg-type]


def test_every_space_has_default_radii_in_order() -> None:
    assert DEFAULT_RADII.keys() == set(SPACES)
    for radii in DEFAULT_RADII.values():
        assert 0 < radii[0]
        assert list(radii) == sorted(set(radii))


def test_a_chain_claims_what_its_weakest_part_does() -> None:
    for i, j in product(range(4), repeat=2):
        assert weakest(SOUNDNESS_ORDER[i], SOUNDNESS_ORDER[j]) == SOUNDNESS_ORDER[max(i, j)]
    with pytest.raises(ValueError, match="at least one"):
        weakest()
    with pytest.raises(ValueError, match="`soundness` to be one of"):
        weakest("exact", "sure")  # type: ignore[arg-type]


def ones(*shape: int) -> Tensor:
    return torch.ones(*shape, dtype=torch.float64)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"constant": ones(2, 1)}, "constant"),
        ({"constant": torch.tensor([1.0, float("nan")])}, "constant"),
        ({"constant": -ones(2)}, "constant"),
        ({"ball_radius": ones(3)}, "ball_radius"),
        ({"ball_radius": -ones(2)}, "ball_radius"),
        ({"soundness": "sure"}, "soundness"),
        ({"diagnostics": {"residual": ones(1)}}, "residual"),
    ],
)
def test_a_bound_that_cannot_be_one_is_refused(changed: dict[str, object], message: str) -> None:
    arguments = {"constant": ones(2), "ball_radius": ones(2), "soundness": "estimated", "source": "test"} | changed
    with pytest.raises(ValueError, match=message):
        LipschitzBound(**arguments)  # type: ignore[arg-type]
