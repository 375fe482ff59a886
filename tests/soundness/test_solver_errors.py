"""Every error bound that the solvers take off by itself: against the numbers as stored, and what theory asks for.

A radius may be written down unconfirmed, and there is mostly room to spare in it: a bound that is too small by a few
roundings shows in no radius. So each is held here, in rational numbers, against the worst that any order of summation
may make, as :mod:`tests.soundness.test_kernel_errors` does for the verified kernel.
"""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import Tensor

from ellips import Ellips
from ellips.certificates import rounding
from ellips.certificates.geometries import geometry_of
from ellips.certificates.geometry import grouped
from ellips.certificates.pairs import _diagonal_spectrum
from ellips.certificates.rounding import UNDERFLOW, score_error, whitened_error
from ellips.certificates.screen import screen
from ellips.certificates.secular import Problems, solve_secular
from tests.soundness.generators import Draw
from tests.soundness.rationals import (
    U,
    columns,
    dot,
    exact,
    frobenius,
    gamma,
    gram,
    length,
    matrix,
    number,
    semidefinite,
    two_classes,
)  # fmt: skip

ALL = torch.float64
UNITS = {torch.float64: U, torch.float32: Fraction(1, 2**24)}


def scaled_classes(seed: int, kind: str, most: int = 8) -> tuple[Ellips, Tensor]:
    """Two classes of which one's errors are the larger ones by far, or the point's, or the means'."""
    draw = Draw(seed)
    ellips, z = two_classes(draw, draw.integer(1, 4) if seed % 10 else most, kind)
    if seed % 3:
        ellips.precision_factors[seed % 2] *= 2.0 ** -draw.integer(4, 12)
    if seed % 5 == 0:
        z = ellips.means.mean(0, keepdim=True)
    return ellips, z


def norms(ellips: Ellips, z: Tensor) -> tuple[list[Fraction], Fraction, list[Fraction]]:
    """‖A_k‖_F, ‖z − c‖ and ‖μ_k − c‖ for c as it is stored, each as small as rounding may have made it."""
    geometry = geometry_of(ellips)
    center = exact(geometry.center)
    away = [[x - c for x, c in zip(exact(row), center, strict=True)] for row in (z[0], *ellips.means)]
    less = 1 - gamma(ellips.dim + 4)
    sizes = [less * frobenius(matrix(factor)) for factor in ellips.factors]
    return sizes, less * length(away[0]), [less * length(row) for row in away[1:]]


@pytest.mark.parametrize("dtype", UNITS)
def test_gamma_is_what_operations_may_accumulate(dtype: torch.dtype) -> None:
    unit = UNITS[dtype]
    most = int(1 / unit)
    for operations in (1, 2, 7, 100, 10**6, most // 4, most // 2, most - 1):
        wanted = gamma(operations, unit)
        assert abs(Fraction(rounding.gamma(operations, dtype)) / wanted - 1) < Fraction(1, 2**20)
    for operations in (most, most + 1, 2 * most):
        with pytest.raises(ValueError, match="fewer operations"):
            rounding.gamma(operations, dtype)


def test_whitened_and_scored_numbers_have_the_errors_that_theory_asks_for() -> None:
    """z − c, μ − c, two products with A, a difference; a sum of squares and a constant made of logarithms."""
    draw = Draw(0)
    for _ in range(300):
        factor, point, mean, distance, offset = (draw.normal(5).abs() * 2.0 ** draw.integer(-20, 20)).unbind()
        dim = draw.integer(1, 40)
        found = number(whitened_error(dim, factor, point, mean))
        assert found >= gamma(dim + 2) * number(factor) * (number(point) + number(mean))
        whitened = distance * 2.0 ** draw.integer(-30, 4)
        y, e = number(distance), number(whitened)
        needed = 2 * y * e + e * e + gamma(dim + 4) * (y * y + number(offset))
        assert needed * (1 - 4 * U) <= number(score_error(dim, distance, whitened, offset)) <= 12 * needed


@pytest.mark.parametrize("kind", ["full", "diagonal"])
def test_margins_are_screened_with_the_errors_of_both_scores_taken_off(kind: str) -> None:
    positive = 0
    for seed in range(80):
        ellips, z = scaled_classes(seed, kind)
        geometry = geometry_of(ellips)
        if seed % 4 == 0:  # a margin of the size of its errors
            ellips.log_priors[:] = -1.0
            ellips.precision_factors[1] = ellips.precision_factors[0]
            z = ellips.means.mean(0, keepdim=True) + 2.0 ** -(20 + seed % 32) * Draw(seed).normal(1, ellips.dim)
            geometry = geometry_of(ellips)
        seen, (sizes, point, means) = screen(geometry, z), norms(ellips, z)
        own, rival = int(seen.prediction), 1 - int(seen.prediction)
        slack = Fraction(0)
        for k in range(2):
            y = length([dot(row, [p - q for p, q in zip(exact(z[0]), exact(ellips.means[k]), strict=True)])
                        for row in matrix(ellips.factors[k])])  # fmt: skip
            e = gamma(ellips.dim + 2) * sizes[k] * (point + means[k])
            y = max(Fraction(0), y - e)
            slack += 2 * y * e + e * e + gamma(ellips.dim + 4) * (y * y + number(geometry.offset_sizes[k]))
        safe, margin = number(seen.safe_margins[0, rival]), number(seen.margins[0, rival])
        assert seen.safe_margins[0, own] == seen.margins[0, own] == torch.inf
        assert 0 <= safe <= max(Fraction(0), margin - slack)
        assert safe >= margin - 20 * slack
        positive += safe > 0
    assert positive > 20


@pytest.mark.parametrize("dtype", UNITS)
@pytest.mark.parametrize("kind", ["full", "diagonal"])
def test_half_gradients_are_screened_with_the_errors_of_both_classes_added(kind: str, dtype: torch.dtype) -> None:
    for seed in range(80):
        ellips, z = scaled_classes(seed, kind)
        if seed % 4 == 1:  # b vanishes, and what is left is rounding alone
            ellips.precision_factors[1], ellips.means[1] = ellips.precision_factors[0], ellips.means[0]
        geometry = geometry_of(ellips)
        seen, (sizes, point, means) = screen(geometry, z, dtype), norms(ellips, z)
        own, unit = int(seen.prediction), UNITS[dtype]
        operations = 2 * ellips.dim + 3 if kind == "full" else 5
        slip = sum(gamma(operations, unit) * sizes[k] ** 2 * (point + means[k]) for k in range(2))
        away = [[p - q for p, q in zip(exact(z[0]), exact(mean), strict=True)] for mean in ellips.means]
        pulls = [[dot(row, away[k]) for row in gram(matrix(ellips.factors[k]))] for k in range(2)]
        b = length([p - q for p, q in zip(*pulls, strict=True)])
        found = number(seen.half_gradient_norms[0, 1 - own])
        assert found >= b
        x, shifted = (z - geometry.center).to(dtype), geometry._pulled.to(dtype)  # type: ignore[attr-defined]
        pull = geometry._pulling(slice(0, 2), shifted)(x)[0, 1 - own]  # type: ignore[attr-defined]
        held = geometry.apply(x, grouped(seen.prediction))[0] - shifted[own]
        computed = exact((pull - held).double())
        underflow = Fraction(UNDERFLOW[dtype]) * (ellips.dim + max(sizes) ** 2)
        bound = length(computed) * (1 + gamma(ellips.dim // 2 + 1, unit)) + slip + underflow * Fraction(99, 100)
        most = length(computed) * (1 + gamma(2 * ellips.dim + 9, unit)) + 12 * slip + underflow * Fraction(101, 100)
        assert bound <= found <= most
        error = number(geometry.half_gradient_error((z - geometry.center).norm(), *torch.tensor([own, 1 - own])))
        needed = sum(gamma(operations) * sizes[k] ** 2 * (point + means[k]) for k in range(2))
        assert needed <= error <= 12 * needed


@pytest.mark.parametrize("kind", ["full", "diagonal"])
def test_ranges_of_precisions_enclose_them(kind: str) -> None:
    for seed in range(60):
        ellips, _ = scaled_classes(seed, kind)
        low, high = geometry_of(ellips).precision_range  # type: ignore[attr-defined]
        for k in range(2):
            power, size = gram(matrix(ellips.factors[k])), frobenius(matrix(ellips.factors[k])) ** 2
            room = (gamma(8 * ellips.dim) * size) if kind == "full" else Fraction(0)
            computed = torch.linalg.svdvals(ellips.factors[k] if kind == "full" else torch.diag(ellips.factors[k]))
            assert number(high[k]) >= number(computed[0]) ** 2 * (1 - 2 * U) + room
            assert number(low[k]) <= max(Fraction(0), number(computed[-1]) ** 2 * (1 + 2 * U) - room)
            for sign, bound in ((1, number(high[k])), (-1, number(low[k]))):
                grown = bound * (1 + sign * U) + sign * Fraction(1, 2**1000)  # singular where the bound is exact
                assert semidefinite(_shifted(power, -sign, sign * grown))


def _shifted(rows: list[list[Fraction]], factor: int, shift: Fraction) -> list[list[Fraction]]:
    return [[factor * x + (shift if i == j else 0) for j, x in enumerate(row)] for i, row in enumerate(rows)]


@pytest.mark.parametrize("kind", ["full", "diagonal"])
def test_lowest_eigenvalues_of_differences_are_bounded_from_below(kind: str) -> None:
    """Both ways round: λ_min(P_i − P_j) and λ_min(P_j − P_i); concavities, spreads and Weyl's bound follow."""
    for seed in range(60):
        ellips, z = scaled_classes(seed, kind)
        geometry = geometry_of(ellips)
        powers = [gram(matrix(factor)) for factor in ellips.factors]
        low, high = geometry.precision_range  # type: ignore[attr-defined]
        for own, rival in ((0, 1), (1, 0)):
            p, r = torch.tensor([own]), torch.tensor([rival])
            w = [[a - b for a, b in zip(*rows, strict=True)] for rows in zip(powers[rival], powers[own], strict=True)]
            tiny = Fraction(1, 2**1000)
            bound = number(geometry.pairs.lowest(p, r)[0])
            assert semidefinite(_shifted(w, 1, -bound + tiny))
            problems, _ = geometry.pairs.problems(z - geometry.center, torch.tensor([0]), torch.ones(1).double(), p, r)
            concavity = number(problems.concavity[0])
            assert concavity == max(Fraction(0), -bound) == number(geometry.concavity[own, rival])
            assert number(problems.spread.amin()) <= concavity + bound + abs(bound) * 2 * U
            weyl = number(low[rival]) - number(high[own])
            assert weyl <= bound + 40 * gamma(8 * ellips.dim) * sum(map(frobenius, powers))


def test_diagonal_differences_have_the_errors_of_two_squares() -> None:
    for seed in range(60):
        ellips, z = scaled_classes(seed, "diagonal")
        geometry = geometry_of(ellips)
        (values, error), squares = _diagonal_spectrum(*ellips.factors), ellips.factors.square()
        x = z - geometry.center
        problems, _ = geometry.pairs.problems(x, *(torch.tensor([v]) for v in (0, 1.0, 0, 1)))
        sizes = squares * (x.abs() + geometry.offsets_from_center.abs())
        pull = squares * (x - geometry.offsets_from_center)
        for j in range(ellips.dim):
            own, other = (Fraction(float(a)) ** 2 for a in ellips.factors[:, j])
            if own == other:
                assert values[j] == error[j] == 0
            else:
                assert abs(other - own - number(values[j])) <= gamma(2) * (own + other)
                assert number(error[j]) >= gamma(4) * (own + other)
                lowered = number(problems.spread[0, j]) - number(problems.concavity[0])
                room = U * number(problems.spread[0, j])  # paid for where D is evaluated
                assert lowered <= number(values[j]) - gamma(4) * (own + other) + room
            beta = number((pull[1, j] - pull[0, j]).abs()) + gamma(5) * sum(map(number, sizes[:, j]))
            if own == other and ellips.means[0, j] == ellips.means[1, j]:
                assert problems.coefficients[0, j] == 0
            else:
                assert number(problems.coefficients[0, j]) >= beta**2 * (1 - 2 * U)


def test_decompositions_have_the_errors_that_theory_asks_for() -> None:
    """W − QΛQᵀ and QᵀQ − I as they are, with what computing them may round; then ΛQᵀx and h = Qᵀ(P_h ν_h − P_l ν_l)."""
    for seed in range(60):
        ellips, z = scaled_classes(seed, "full", 16)
        geometry, d = geometry_of(ellips), ellips.dim
        pair = torch.tensor([0]), torch.tensor([1])
        found = geometry.pairs._decompose(*pair)
        sizes, _, means = norms(ellips, z)
        power, reach = sum(s * s for s in sizes), sum(s * s * m for s, m in zip(sizes, means, strict=True))
        if torch.equal(ellips.factors[0], ellips.factors[1]):
            assert not found.values.any()
            assert not found.error.any()
            assert not found.gain_error.any()
            assert bool(found.shift_error.any()) == (not torch.equal(ellips.means[0], ellips.means[1]))
            continue
        _, vectors = torch.linalg.eigh(ellips.precisions[1] - ellips.precisions[0])
        q, values = matrix(vectors), exact(found.values[0])
        largest = max(map(abs, values))
        skew = frobenius(_shifted(gram(q), 1, Fraction(-1)))
        w = [[a - b for a, b in zip(*rows, strict=True)]
             for rows in zip(*(gram(matrix(f)) for f in ellips.factors.flip(0)), strict=True)]  # fmt: skip
        spread = [[dot([a * v for a, v in zip(x, values, strict=True)], y) for y in q] for x in q]
        residual = frobenius([[a - b for a, b in zip(*rows, strict=True)] for rows in zip(w, spread, strict=True)])
        rounded = gamma(d + 1) * power + gamma(d + 1) * largest
        error, gain, shift = (number(x[0]) for x in (found.error, found.gain_error, found.shift_error))
        assert error >= residual + skew * largest
        # Σ|λ| ≤ tr P_h + tr P_l bounds |Q||Λ||Q|ᵀ, and so what computing the residual rounds.
        assert error >= skew * largest + gamma(2 * d + 3) * power
        seen = number((vectors.mT @ vectors - torch.eye(d).double()).norm()) + gamma(d) * d
        assert gain >= (error + (seen + gamma(d + 1)) * largest) * (1 - 8 * U)
        assert shift >= gamma(3 * d + 2) * reach
        assert error <= 40 * d * (rounded + residual + skew * largest)
        pulls = [[dot(row, [p - c for p, c in zip(exact(ellips.means[k]), exact(geometry.center), strict=True)])
                  for row in gram(matrix(ellips.factors[k]))] for k in range(2)]  # fmt: skip
        apart = [a - b for a, b in zip(pulls[1], pulls[0], strict=True)]
        true = [dot(column, apart) for column in columns(q)]
        assert length([a - b for a, b in zip(true, exact(found.shift[0]), strict=True)]) <= shift


def test_pulls_in_the_eigenbasis_are_bounded_from_above() -> None:
    """|β_j| has the errors of ΛQᵀx and of h added, each: where both vanish, nothing is 0 by chance."""
    for seed in range(60):
        ellips, z = scaled_classes(seed, "full")
        geometry = geometry_of(ellips)
        found = geometry.pairs._decompose(torch.tensor([0]), torch.tensor([1]))
        x = z - geometry.center
        given = torch.tensor([0]), torch.ones(1).double(), torch.tensor([0]), torch.tensor([1])
        problems, _ = geometry.pairs.problems(x, *given)
        beta = x @ found.rotation[0] - found.shift
        added = number(found.gain_error[0]) * length(exact(x[0])) + number(found.shift_error[0])
        for j in range(ellips.dim):
            wanted = (number(beta[0, j].abs()) * (1 - 4 * gamma(ellips.dim)) + added) ** 2
            assert number(problems.coefficients[0, j]) >= wanted * (1 - 20 * U) - 8 * U * number(beta[0, j]) ** 2


def test_what_evaluating_the_dual_rounds_is_taken_off_before() -> None:
    """m and Σ β² may all but cancel in D: each by itself is lowered or raised by more than evaluating D rounds."""
    for seed in range(60):
        draw = Draw(seed)
        d = draw.integer(1, 30)
        given = Problems(
            draw.normal(1).exp(), draw.normal(1, d).square(), draw.normal(1, d).abs(), draw.normal(1).abs()
        )
        less = given.rounded()
        assert number(less.margin[0]) <= number(given.margin[0]) * (1 - gamma(8))
        for before, after in zip(exact(given.coefficients[0]), exact(less.coefficients[0]), strict=True):
            assert after >= before * (1 + gamma(d + 8))
        assert torch.equal(less.spread, given.spread)
        assert torch.equal(less.concavity, given.concavity)


def test_dual_values_are_below_those_of_rational_numbers() -> None:
    """D at the multiplier that is returned, of the problem as given; within 128 units in the last place below."""
    for seed in range(300):
        draw = Draw(seed)
        d = draw.integer(1, 12)
        margin, squares = draw.normal(1).exp(), draw.normal(1, d).square() * 2.0 ** draw.integer(-20, 20)
        spread, concavity = draw.normal(1, d).abs() * 2.0 ** draw.integer(-10, 10), draw.normal(1).abs()
        spread[0, 0] = 0.0
        if seed % 3 == 0:
            concavity[:] = 0
        t, dual = solve_secular(Problems(margin, squares, spread, concavity))
        if not bool(t.isfinite()):
            continue
        at, ell = number(t[0]), number(concavity[0])
        terms = zip(exact(squares[0]), exact(spread[0]), strict=True)
        assert at * ell < 1
        value = at * number(margin[0]) - at * at * sum(b / (1 + at * (mu - ell)) for b, mu in terms)
        assert 0 < number(dual[0]) * (1 - 128 * U) < value
