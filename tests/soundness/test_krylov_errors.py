"""Distances bounded without factorisations: below D(t) in rational numbers, with the errors that theory asks for."""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from ellips.certificates.geometries import geometry_of
from ellips.certificates.geometry import Geometry
from ellips.certificates.krylov import KrylovProblems, _Difference, _evaluate, solve_krylov
from tests.soundness.generators import Draw
from tests.soundness.rationals import Rows, U, dot, exact, frobenius, gamma, gram, length, matrix, number, two_classes


class Case(NamedTuple):
    geometry: Geometry
    problems: KrylovProblems
    t: Tensor
    x: Tensor
    power: Rows  # W = P_rival - P_prediction, exactly
    energy: Fraction  # ‖A_rival‖² + ‖A_prediction‖²


def case(seed: int, kind: str) -> Case:
    """x is (I + tW)⁻¹b up to a share that differs from seed to seed; of b, as much may be an error."""
    draw = Draw(seed)
    ellips, _ = two_classes(draw, draw.integer(1, 4), kind)
    geometry, dim = geometry_of(ellips), ellips.dim
    factors = [matrix(factor) for factor in ellips.factors]
    power = [[b - a for a, b in zip(*rows, strict=True)] for rows in zip(*map(gram, factors), strict=True)]
    own, rival = torch.tensor([0]), torch.tensor([1])
    concavity = geometry.concavity[own, rival]
    t = 0.95 * draw.uniform(0.01, 1.0) / concavity if concavity > 0 else torch.tensor([2.0 ** draw.integer(-12, 4)])
    t = (t.double() * 2.0 ** -draw.integer(0, 20)) if seed % 4 == 0 else t.double()
    b = draw.normal(1, dim) * 2.0 ** draw.integer(-4, 4)
    system = torch.eye(dim).double() + t * torch.tensor([[float(w) for w in row] for row in power]).double()
    x = torch.linalg.solve(system, b[0])[None]
    x = x + 2.0 ** -draw.integer(4, 52) * x.norm() * draw.normal(1, dim) * float(seed % 5 > 0)
    error = b.norm(dim=1) * 2.0 ** -draw.integer(8, 60) * float(seed % 3 > 0)
    problems = KrylovProblems(torch.ones(1).double(), b, error, own, rival, concavity)
    return Case(geometry, problems, t, x, power, sum((frobenius(f) ** 2 for f in factors), Fraction(0)))


def needed(given: Case) -> tuple[Fraction, Fraction]:
    """What (tm − D)/t² has to be taken for at least, after the worst roundings; and how much of that is for these."""
    geometry, problems, t, x, _, energy = given
    d, at, error = geometry.dim, number(t[0]), number(problems.half_gradient_error[0])
    image = _Difference(geometry, problems.prediction, problems.rival)(x)
    residual = problems.half_gradient - x - t.unsqueeze(1) * image
    size, b, rest, moved = (length(exact(v[0])) for v in (x, problems.half_gradient, residual, image))
    slip = error + at * gamma(2 * d + 1) * energy * size + gamma(3) * (b + size + at * moved)
    value = number(((problems.half_gradient + residual) * x).sum(1))
    room = 1 - at * number(problems.concavity[0])
    found = value + (error + slip) * size + gamma(d) * (b + rest) * size + (rest + slip) ** 2 / room
    return found, found - value - rest**2 / room


def with_margin(given: Case, value: Fraction, share: float) -> tuple[KrylovProblems, Fraction]:
    """A margin that leaves about that share of it, and what then is left."""
    at = number(given.t[0])
    margin = torch.tensor([float(at * value) * (1 + share)], dtype=torch.float64)
    return given.problems._replace(margin=margin), at * number(margin[0]) - at * at * value


def solved(rows: Rows, b: list[Fraction]) -> list[Fraction]:
    """The solution of a linear system, in rational numbers."""
    m = [[*row, v] for row, v in zip(rows, b, strict=True)]
    for j in range(len(m)):
        pivot = next(i for i in range(j, len(m)) if m[i][j])
        m[j], m[pivot] = m[pivot], m[j]
        m[j] = [v / m[j][j] for v in m[j]]
        for i in range(len(m)):
            if i != j:
                m[i] = [v - m[i][j] * w for v, w in zip(m[i], m[j], strict=True)]
    return [row[-1] for row in m]


def dual(given: Case, margin: Tensor, b: list[Fraction]) -> Fraction:
    """D(t) = tm − t² bᵀ(I + tW)⁻¹b."""
    at = number(given.t[0])
    system = [[at * w + (i == j) for j, w in enumerate(row)] for i, row in enumerate(given.power)]
    return at * number(margin) - at * at * dot(b, solved(system, b))


@pytest.mark.parametrize("kind", ["full", "diagonal"])
def test_evaluated_bounds_have_the_errors_that_theory_asks_for(kind: str) -> None:
    """m and t bᵀx all but cancel, so that every rounding shows."""
    infinite, positive, tight = torch.full((1,), torch.inf).double(), 0, 0
    for seed in range(300):
        given = case(seed, kind)
        value, slack = needed(given)
        if value <= 0:
            continue
        problems, left = with_margin(given, value, 2.0 ** -Draw(seed).integer(1, 50))
        found = number(_evaluate(given.geometry, problems, given.t, given.x, infinite).dual[0])
        room = 4 * U * number(given.t[0]) * number(problems.margin[0])  # both products, and their difference
        assert 0 <= found <= max(Fraction(0), left - room / 2)
        positive += found > 0
        if left > 2**12 * room + 20 * number(given.t[0]) ** 2 * slack:
            assert found >= left / 2
            tight += 1
    assert positive > 100
    assert tight > 50


@pytest.mark.parametrize("kind", ["full", "diagonal"])
def test_evaluated_bounds_are_below_what_they_bound(kind: str) -> None:
    """Whatever x is, and for every b that is as near as its error says."""
    infinite, tight = torch.full((1,), torch.inf).double(), 0
    for seed in range(300):
        given, draw = case(seed, kind), Draw(seed + 1000)
        b, error = exact(given.problems.half_gradient[0]), number(given.problems.half_gradient_error[0])
        size = length(exact(given.x[0]))
        worst = [v + error * w / size * (1 - U) for v, w in zip(b, exact(given.x[0]), strict=True)] if size else b
        ends = [
            b,
            worst,
            *([v + s * error * (i == j) for i, v in enumerate(b)] for j in range(len(b)) for s in (-1, 1)),
        ]
        values = [-dual(given, torch.zeros(1).double()[0], end) for end in ends]
        highest = max(values) / number(given.t[0]) ** 2
        problems, _ = with_margin(given, highest, 2.0 ** -draw.integer(1, 50))
        found = number(_evaluate(given.geometry, problems, given.t, given.x, infinite).dual[0])
        truth = min(dual(given, problems.margin[0], end) for end in ends)
        assert found <= max(Fraction(0), truth)
        tight += found > truth / 2 > 0
    assert tight > 30


@pytest.mark.parametrize("settled", [True, False])
def test_only_what_cannot_be_raised_is_settled(settled: bool) -> None:
    """A bound as good as the optimum, or one that has reached its threshold: others go to a decomposition."""
    for seed in range(60):
        given = case(seed, "full")
        start = given.problems._replace(margin=given.problems.half_gradient.norm(dim=1))
        found = solve_krylov(given.geometry, start, torch.full((1,), torch.inf).double())
        if not found.settled.all() or not found.dual.all():
            continue
        below = 0.5 * found.multiplier
        threshold = found.dual * (0.1 if settled else 2.0)
        x = torch.linalg.solve(
            torch.eye(given.geometry.dim).double()
            + below * torch.tensor([[float(w) for w in row] for row in given.power]).double(),
            start.half_gradient[0],
        )
        again = _evaluate(given.geometry, start, below, x[None], threshold)
        assert again.dual < found.dual
        assert bool(again.settled) == bool(settled and again.dual >= threshold)
