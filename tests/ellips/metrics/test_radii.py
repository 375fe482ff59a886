"""Radii of tables and axes that come from the data."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ellips.metrics import certified_accuracy
from ellips.metrics.radii import QUANTILES, radii_of_data

ROUND = (1, 1.25, 1.5, 1.75, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9)


def right(values: list[float] | Tensor) -> tuple[Tensor, Tensor, Tensor]:
    radius = torch.as_tensor(values, dtype=torch.float64)
    ones = torch.ones(len(radius), dtype=torch.int64)
    return radius, ones, ones


@pytest.mark.parametrize("power", range(-12, 12, 3))
def test_they_lie_where_accuracy_falls_whatever_the_scale(power: int) -> None:
    radius = 10.0**power * torch.rand(2000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    grid = radii_of_data([right(radius)], [0.5])
    assert 4 <= len(grid) <= len(QUANTILES)
    accuracy = certified_accuracy(*right(radius), grid)
    assert accuracy[0] > 0.8
    assert 0 < accuracy[-1] < 0.2
    assert grid == pytest.approx([10.0**power * r for r in radii_of_data([right(radius / 10.0**power)], [0.5])])
    assert {f"{r:.3e}".partition("e")[0] for r in grid} <= {f"{digit:.3f}" for digit in ROUND}


@given(st.lists(st.floats(1e-300, 1e300), min_size=1, max_size=40))
def test_each_is_a_quantile_rounded_down_by_less_than_its_leading_digit(values: list[float]) -> None:
    grid = radii_of_data([right(values)], [0.5])
    ordered = sorted(values)
    assert list(grid) == sorted(set(grid))
    assert all(r > 0 for r in grid)
    assert grid[-1] <= ordered[-1]
    for radius in grid:  # some value is at most twice as large, and at least as large
        assert any(radius <= value <= 2 * radius * (1 + 1e-12) for value in ordered)
    # Images at the largest radius are still there, where an atom of equal radii is rounded.
    assert float(certified_accuracy(*right(values), grid)[-1]) > 0


def test_close_radii_get_more_digits_and_equal_ones_are_one() -> None:
    assert radii_of_data([right([1.01, 1.02, 1.03, 1.04, 1.05, 1.06, 1.07])], [0.5]) == (1.01, 1.02, 1.04, 1.05, 1.06)
    assert radii_of_data([right([0.4] * 5)], [0.5]) == (0.4,)
    assert radii_of_data([right([0.39999999999999997] * 5)], [0.5])[0] < 0.4


def test_wrong_unbounded_and_missing_radii_do_not_count() -> None:
    radius, ones, label = right([0.3, 5.0, torch.inf, 0.0])
    label = torch.tensor([1, 0, 1, 1])
    assert radii_of_data([(radius, ones, label)], [0.5]) == (0.3,)
    assert radii_of_data([(radius[1:], ones[1:], label[1:])], [0.25, 0.5]) == (0.25, 0.5)
    assert radii_of_data([], [0.5]) == (0.5,)


def test_all_series_count_and_no_order_does() -> None:
    one, other = torch.rand(50, dtype=torch.float64), 100 * torch.rand(50, dtype=torch.float64)
    grid = radii_of_data([right(one), right(other)], [0.5])
    assert grid == radii_of_data([right(other.flip(0)), right(one)], [0.5])
    assert grid[0] < 1 < grid[-1]
