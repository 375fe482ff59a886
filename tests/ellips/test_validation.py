from __future__ import annotations

import math

import pytest
import torch

from ellips.validation import (
    all_at_least,
    at_least,
    fraction,
    one_of,
    positive,
    validate_labels,
    validate_latents,
)

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize("value", [2, 2.0, 3, INF, None])
def test_at_least_takes_numbers_from_the_bound_on_and_none(value: float | None) -> None:
    at_least(2, steps=value)


@pytest.mark.parametrize("value", [1, 1.999, -INF, NAN])
def test_at_least_names_what_is_smaller_or_nan(value: float) -> None:
    with pytest.raises(ValueError, match=rf"^Expected `steps` to be at least 2 but got {value}\.$"):
        at_least(2, start=2, steps=value)


@pytest.mark.parametrize("value", [5e-324, 1, 1e308, None])
def test_positive_takes_finite_numbers_above_zero_and_none(value: float | None) -> None:
    positive(radius=value)
    positive(finite=False, radius=value)


@pytest.mark.parametrize("value", [0, -0.0, -1, -INF, NAN])
def test_positive_names_what_is_not_above_zero(value: float) -> None:
    with pytest.raises(ValueError, match=rf"^Expected `radius` to be positive and finite but got {value}\.$"):
        positive(sigma=1.0, radius=value)
    with pytest.raises(ValueError, match=rf"^Expected `radius` to be positive but got {value}\.$"):
        positive(finite=False, radius=value)


def test_positive_takes_infinity_only_where_it_may() -> None:
    positive(finite=False, radius=INF)
    with pytest.raises(ValueError, match="`radius` to be positive and finite but got inf"):
        positive(radius=INF)


@pytest.mark.parametrize("value", [5e-324, 0.5, 1 - 1e-16, None])
def test_fraction_takes_what_lies_between_zero_and_one_and_none(value: float | None) -> None:
    fraction(pooling=value)
    fraction(ends=False, pooling=value)


@pytest.mark.parametrize("value", [0, 1])
def test_fraction_takes_its_ends_only_where_it_may(value: float) -> None:
    fraction(pooling=value)
    with pytest.raises(ValueError, match=rf"`pooling` to be in \(0, 1\) but got {value}"):
        fraction(ends=False, pooling=value)


@pytest.mark.parametrize("value", [-1e-9, 1 + 1e-9, INF, -INF, NAN])
def test_fraction_names_what_lies_outside(value: float) -> None:
    with pytest.raises(ValueError, match=rf"^Expected `pooling` to be in \[0, 1\] but got {value}\.$"):
        fraction(shrinkage=0.5, pooling=value)
    with pytest.raises(ValueError, match=r"\(0, 1\)"):
        fraction(ends=False, pooling=value)


def test_one_of_takes_the_options_and_nothing_else() -> None:
    one_of(("exact", "pairwise"), method="exact", other="pairwise")
    one_of((1, None), channels=None)
    for value in ("", None, NAN, INF, 0):
        expected = rf"^Expected `method` to be one of \('exact', 'theorem'\) but got {value!r}\.$"
        with pytest.raises(ValueError, match=expected):
            one_of(["exact", "theorem"], method=value)


def test_all_at_least_looks_at_every_entry() -> None:
    all_at_least(0, radius=torch.tensor([0.0, 1.0, INF]), target=torch.empty(0), other=None)
    for bad, shown in (([0.0, -1.0], "-1"), ([1.0, NAN], "nan"), ([-INF, 1.0], "-inf")):
        with pytest.raises(ValueError, match=rf"^Expected every `radius` to be at least 0 but got {shown}\.$"):
            all_at_least(0, constant=torch.ones(2), radius=torch.tensor(bad))
    with pytest.raises(ValueError, match="`prediction` to be at least -1 but got -2"):
        all_at_least(-1, prediction=torch.tensor([3, -2]))


def test_latents_are_finite_floating_point_rows_of_one_width() -> None:
    validate_latents(torch.ones(0, 3), 3)
    validate_latents(torch.ones(2, 3, dtype=torch.float16), 3)
    for z, message in (
        (torch.ones(2, 3, dtype=torch.int64), "`z` to be a floating-point tensor but got torch.int64"),
        ([[1.0]], "floating-point tensor but got list"),
        (torch.ones(3), r"shape \(N, 3\) but got \(3,\)"),
        (torch.ones(2, 4), r"shape \(N, 3\) but got \(2, 4\)"),
        (torch.tensor([[0.0] * 3, [NAN, 0, 0]]), "first in row 1"),
        (torch.tensor([[INF, 0, 0]]), "first in row 0"),
    ):
        with pytest.raises(ValueError, match=message):
            validate_latents(z, 3)  # type: ignore[arg-type]


def test_labels_are_integers_within_the_classes() -> None:
    validate_labels(torch.tensor([0, 2]), 3, 2)
    validate_labels(torch.empty(0, dtype=torch.int32), 3, 0)
    for labels, message in (
        (torch.ones(2), "integer tensor but got torch.float32"),
        (torch.ones(2, dtype=torch.bool), "integer tensor but got torch.bool"),
        ([0, 1], "integer tensor but got list"),
        (torch.tensor([0]), r"shape \(2,\) but got \(1,\)"),
        (torch.tensor([0, 3]), r"\[0, 3\) but got values from 0 to 3"),
        (torch.tensor([-1, 0]), "from -1 to 0"),
    ):
        with pytest.raises(ValueError, match=message):
            validate_labels(labels, 3, 2)  # type: ignore[arg-type]
