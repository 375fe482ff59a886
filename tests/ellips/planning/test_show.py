"""A plan on the screen."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from ellips.planning import Cost, Work, show_plan, stage_entry
from ellips.planning.show import in_units


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (8_388_608_000, "8.4 GB"), (3e18, "3,000.0 PB")]
)
def test_bytes_are_given_in_units_of_a_thousand(size: float, text: str) -> None:
    assert in_units(size) == text


def test_hours_add_what_needs_no_encoder_and_are_shared_by_processes() -> None:
    cost = Cost(Work(7200, 3600), Work(3600))
    entry = stage_entry(cost, 3600e9, speed=2.0, rate=1.0, processes=2)
    assert entry["hours"] == pytest.approx((14_400 / 2 / 3600 + 1) / 2)
    assert entry["expected_hours"] == pytest.approx((3600 / 2 / 3600 + 1) / 2)
    assert "hours" not in stage_entry(cost, 1.0, None, 1.0, 1)


def test_what_is_not_known_is_said() -> None:
    stages = {
        "test": stage_entry(Cost.fixed(Work(359)), 0, 1.0, None, 1),
        "certify: own": stage_entry(None, 0, 1, 1, 1),
    }
    out = io.StringIO()
    show_plan({"bytes": {"T": 20_480}, "stages": stages}, Console(file=out, width=100))
    lines = out.getvalue().splitlines()
    assert any(line.split() == ["T", "20.5", "kB"] for line in lines)
    assert any(line.split() == ["test", "359", "359", "0.10", "0.10"] for line in lines)
    assert any("certify: own" in line and "not known" in line for line in lines)
