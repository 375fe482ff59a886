"""The degradation bound: what it is made of, and that it holds where everything is known."""

from __future__ import annotations

import json
import math

import pytest
import torch

from ellips.classifier import Ellips
from ellips.theory.degradation import (
    bretagnolle_huber,
    degradation,
    mixture_certified_accuracy,
    pinsker,
    total_variation_bound,
)

F64 = torch.float64
RADII = [0.0, 0.25, 0.5, 1.0]


def line(offset: float, gap: float = 4.0) -> Ellips:
    means = torch.tensor([[offset, 0.0], [offset + gap, 0.0]], dtype=F64)
    return Ellips.from_parameters(means, torch.ones(2, 2, dtype=F64), torch.tensor([0.5, 0.5], dtype=F64))


def test_the_smaller_inequality_is_taken_and_named() -> None:
    assert total_variation_bound(0.02) == (pytest.approx(0.1), "pinsker")
    bound, name = total_variation_bound(3.0)
    assert name == "bretagnolle_huber"
    assert bound == pytest.approx(math.sqrt(1 - math.exp(-3)))
    assert pinsker(3.0) == 1.0
    assert total_variation_bound(-0.1)[0] == 0.0
    assert total_variation_bound(math.inf)[0] == 1.0
    with pytest.raises(ValueError, match="NaN"):
        total_variation_bound(math.nan)


@pytest.mark.parametrize("shift", [0.1, 0.5, 1.0, 2.0, 4.0])
def test_both_bound_the_total_variation_of_two_gaussians(shift: float) -> None:
    distance = math.erf(shift / (2 * math.sqrt(2)))
    kl = shift**2 / 2
    assert distance <= pinsker(kl)
    assert distance <= bretagnolle_huber(kl)
    assert bretagnolle_huber(kl) < 1


def test_certified_accuracy_of_a_mixture_agrees_with_its_closed_form() -> None:
    curve = mixture_certified_accuracy(line(0.0), RADII, num_samples=20_000)
    expected = torch.tensor([0.5 * (1 + math.erf((2 - r) / math.sqrt(2))) for r in RADII], dtype=F64)
    assert bool((curve.lower <= expected).all())
    assert bool((curve.upper >= expected).all())
    assert float((curve.accuracy - expected).abs().max()) < 4 * 0.5 / math.sqrt(20_000)


@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_the_bound_holds_for_what_is_measured(shift: float) -> None:
    z, labels = line(shift).sample(2000, torch.Generator().manual_seed(1))
    found = degradation(line(0.0), z, labels, RADII)
    assert bool((found.bound_lower <= found.bound).all())
    assert bool((found.bound <= found.measured.upper).all())
    assert found.kl.lower <= shift**2 / 2 <= found.kl.upper
    assert found.total_variation <= found.total_variation_upper
    assert found.inequality == "pinsker"
    assert json.loads(json.dumps(found.to_dict()))["kl"]["estimator"] == "knn"


def test_pinskers_bound_alone_would_be_vacuous_where_ours_is_not() -> None:
    z, labels = line(2.2, gap=9.0).sample(2000, torch.Generator().manual_seed(1))
    found = degradation(line(0.0, gap=9.0), z, labels, RADII, estimator="likelihood")
    assert found.kl.value > 2
    assert pinsker(found.kl.value) == 1
    assert found.inequality == "bretagnolle_huber"
    assert 0 < float(found.bound[0]) <= float(found.measured.accuracy[0])


def test_unknown_estimators_are_refused() -> None:
    z, labels = line(0.0).sample(100, torch.Generator().manual_seed(1))
    with pytest.raises(ValueError, match="estimator"):
        degradation(line(0.0), z, labels, RADII, estimator="kde")  # type: ignore[arg-type]
