"""Where this project departs from the text of [E26]: each test fails with the formula as printed."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import ncx2

from ellips.certificates import worst_case_perturbation
from ellips.classifier import Ellips
from ellips.theory.degradation import pinsker, total_variation_bound
from ellips.theory.localization import Localizer, delta_of_radius
from ellips.theory.sample_complexity import radius_error_rate, samples_needed
from ellips.types import LipschitzBound, weakest

F64 = torch.float64


def mixture() -> Ellips:
    means = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]], dtype=F64)
    covariances = torch.tensor(
        [[[0.3, 0.1], [0.1, 0.5]], [[2.0, -0.5], [-0.5, 1.0]], [[1.0, 0.4], [0.4, 0.6]]], dtype=F64
    )
    return Ellips.from_parameters(means, covariances, torch.tensor([0.3, 0.3, 0.4], dtype=F64))


def distances(ellips: Ellips, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    z, labels = ellips.sample(n, torch.Generator().manual_seed(0))
    u = z.unsqueeze(1) - ellips.means
    return torch.einsum("nki,kij,nkj->nk", u, ellips.precisions, u).sqrt(), labels


def test_theorems_3_1_and_3_2_ask_for_delta_of_at_least_the_mass_outside() -> None:
    """Printed: δ ≤ 1 − F(r²). With such a δ the ellipsoid need not have mass 1 − δ."""
    distance, labels = distances(mixture(), 40_000)
    own = distance[torch.arange(len(labels)), labels]
    delta = float(delta_of_radius(np.array(1.5), 2))
    printed = delta / 2
    mass = float((own <= 1.5).double().mean())
    tolerance = 4 * 0.5 / math.sqrt(40_000)
    assert mass >= 1 - delta - tolerance
    assert mass < 1 - printed - tolerance


def test_theorem_3_2_needs_the_weighted_sum_where_covariances_differ() -> None:
    """Printed: the non-central χ² with ‖Σ_j^(−1/2)(μ_i − μ_j)‖². It is off by far more than sampling error."""
    ellips, radii = mixture(), np.array([2.0, 2.0, 2.0])
    distance, labels = distances(ellips, 60_000)
    found = Localizer(ellips).gamma(radii, 0.0)
    printed = np.zeros(3)
    for i in range(3):
        for j in set(range(3)) - {i}:
            gap = ellips.means[i] - ellips.means[j]
            printed[i] += ncx2.cdf(4.0, 2, float(gap @ ellips.precisions[j] @ gap))
    inside = distance <= 2.0
    measured = np.array(
        [float((inside[labels == i].double().mean(0)).sum() - inside[labels == i, i].double().mean()) for i in range(3)]
    )
    assert np.abs(found - measured).max() < 0.01
    assert np.abs(printed - measured).max() > 0.05


def test_appendix_g_divides_by_the_smallest_eigenvalue_which_is_unsound() -> None:
    """Printed: R / λ_min. Here λ_min < 1, and the prediction changes well inside that radius."""
    ellips = mixture()
    z, _ = ellips.sample(50, torch.Generator().manual_seed(1))
    found = ellips.certify(z)
    smallest = float(torch.linalg.eigvalsh(ellips.covariances).min())
    delta = worst_case_perturbation(ellips, z, found)
    moved = ellips.predict(z + 1.001 * delta) != found.prediction
    assert smallest < 0.5
    assert bool(moved.all())
    assert bool((1.001 * delta.norm(dim=1) < found.radius / smallest).all())


def test_theorem_4_2_solved_for_n() -> None:
    """Printed: n = O(d^(1/4)/ε^(1/4)), which does not bring the bound (d/n)^(1/4) down to ε."""
    dim, error = 16, 0.1
    assert radius_error_rate(samples_needed(error, dim), dim) == pytest.approx(error)
    printed = dim**0.25 / error**0.25
    assert radius_error_rate(printed, dim) > 10 * error


def test_a_sampled_lipschitz_constant_makes_an_estimate_not_a_certificate() -> None:
    """Printed: CLEVER's maximum is used as if it were a bound."""
    found = mixture().certify(torch.zeros(2, 2, dtype=F64))
    bound = LipschitzBound(torch.ones(2), torch.full((2,), 10.0), "estimated", "CLEVER", {})
    assert found.to_input(bound).soundness == "estimated"
    assert weakest("exact", "estimated") == "estimated"


def test_the_radius_ends_where_the_lipschitz_constant_does() -> None:
    """Printed: no cap. A constant of 1e-3 on a ball of 0.2 says nothing beyond 0.2."""
    found = mixture().certify(torch.zeros(2, 2, dtype=F64))
    bound = LipschitzBound(
        torch.full((2,), 1e-3, dtype=F64), torch.full((2,), 0.2, dtype=F64), "deterministic", "known", {}
    )
    assert found.to_input(bound).radius.tolist() == [0.2, 0.2]


def test_bretagnolle_huber_says_something_where_pinsker_does_not() -> None:
    """Printed: Pinsker alone, which is vacuous from KL = 2 on."""
    assert pinsker(2.0) == 1.0
    bound, name = total_variation_bound(2.0)
    assert bound < 0.94
    assert name == "bretagnolle_huber"


def test_theorem_4_1_alone_leaves_much_of_the_radius_on_the_table() -> None:
    """Printed: Theorem 4.1 only."""
    ellips = mixture()
    z, _ = ellips.sample(200, torch.Generator().manual_seed(2))
    theorem, pairwise, exact = (ellips.certify(z, m).radius for m in ("theorem", "pairwise", "exact"))
    assert bool((theorem <= pairwise * (1 + 1e-9)).all())
    assert bool((pairwise <= exact * (1 + 1e-9)).all())
    assert float(exact.mean()) > 1.1 * float(theorem.mean())
