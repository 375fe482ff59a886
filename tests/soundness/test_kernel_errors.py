"""Every error bound inside the verified kernel by itself: against the numbers as stored, and against what theory asks.

A radius can be right though one of its error bounds is too small, because another has room to spare. So each is held
here, in rational numbers, against the error that was made and against the worst that any order of summation may make.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor

from ellips import Ellips
from ellips.certificates import bounds, verify
from ellips.certificates.bounds import FarRivals
from ellips.certificates.verify import Kernel, positive_definite, rounding
from tests.soundness.generators import Draw
from tests.soundness.rationals import (
    Rows,
    U,
    columns,
    dot,
    exact,
    gamma,
    length,
    matrix,
    number,
    root,
    semidefinite,
    two_classes,
)  # fmt: skip

ALL = torch.float64


@pytest.mark.parametrize("operations", [1, 2, 3, 10, 1000, 10**6, 10**9, 10**12])
def test_rounding_is_a_bound_with_room_for_its_own_use(operations: int) -> None:
    assert Fraction(rounding(operations)) >= gamma(operations) * Fraction(101, 100)


def test_errors_may_be_given_one_per_cent_too_small() -> None:
    """What callers compute in float64 is itself rounded, so that a little more than `error` has to be survived."""
    for size in range(2, 6):
        for given in (0.5, 0.1, 0.01):
            needed = given * 1.0099
            most = torch.ones(1, size, size, dtype=ALL) * (1 - needed)  # with D (1 − needed): singular
            most.diagonal(dim1=1, dim2=2)[:] = 1.0
            assert not positive_definite(most.clone(), torch.full((1, size), given, dtype=ALL))
            assert positive_definite(most, torch.full((1, size), given * 0.98, dtype=ALL))


@pytest.mark.parametrize("size", [2, 3, 10, 60])
def test_cholesky_is_trusted_no_further_than_its_errors_allow(size: int) -> None:
    """A least eigenvalue of just what item 4 takes off, in units of the diagonal, proves nothing; a little more does.

    The entries off the diagonal are −c, so that Cholesky itself rounds little, and the room has to be left on purpose.
    """
    asked = (size * (size + 1) / 2 + 7 * size) * 2.0**-53
    for least, proven in ((asked, False), (1.3 * asked, True)):
        c = math.nextafter((1 - least) / (size - 1), 0.0 if proven else 1.0)
        rows = torch.full((1, size, size), -c, dtype=ALL)
        rows.diagonal(dim1=1, dim2=2)[:] = 1.0
        assert bool(positive_definite(rows, torch.zeros(1, size, dtype=ALL))) == proven


@pytest.mark.parametrize("place", [0, 1])
def test_diagonals_are_between_what_underflow_and_overflow_leave(place: int) -> None:
    for power, proven in ((-500, True), (-501, False), (-1000, False), (1000, True), (1001, False), (1023, False)):
        rows = torch.eye(2, dtype=ALL).unsqueeze(0)
        rows[0, place, place] = 2.0**power
        assert bool(positive_definite(rows, torch.zeros(1, 2, dtype=ALL))) == proven


def test_no_error_of_a_whole_diagonal_entry_is_survived() -> None:
    for given in (1.0, 1.5, 2.5):
        error = torch.tensor([[0.0, given]], dtype=ALL)
        assert not positive_definite(torch.eye(2, dtype=ALL).unsqueeze(0), error)


@pytest.mark.parametrize("kind", ["full", "diagonal"])
def test_scores_have_the_errors_that_theory_asks_for(kind: str) -> None:
    """ŷ = A(z−μ) to γ h, squared and summed, off the logarithms: each to its own bound, and their sum is claimed."""
    for seed in range(60):
        draw = Draw(seed)
        dim = draw.integer(1, 5)
        ellips, z = two_classes(draw, dim, kind)
        if kind == "full" and seed % 3 == 0 and dim > 1:  # A v all but cancels, and what is left is rounding alone
            ellips.precision_factors[:] = torch.eye(dim) * 2.0**-60
            ellips.precision_factors[:, 1, :2] = 2.0 ** draw.integer(-60, 60) * (1 + draw.normal(2).abs())
            z = ellips.means[:1].clone()
            z[0, 0] += 1
            z[0, 1] -= ellips.factors[0, 1, 0] / ellips.factors[0, 1, 1]
        y, scores, errors = Kernel(ellips).whiten(z)
        for k in range(2):
            a, away = (
                matrix(ellips.factors[k]),
                [p - m for p, m in zip(exact(z[0]), exact(ellips.means[k]), strict=True)],
            )
            h = sum(length(column) * abs(x) for column, x in zip(columns(a), away, strict=True))
            slip = gamma((dim if kind == "full" else 1) + 1) * h
            found, square = length(exact(y[k, 0])), dot(exact(y[k, 0]), exact(y[k, 0]))
            diagonal = ellips.factors[k].diagonal() if kind == "full" else ellips.factors[k]
            logs = 2 * (sum(map(abs, exact(diagonal.abs().log())), abs(Fraction(float(ellips.log_priors[k])))))
            needed = gamma(dim + 1) * square + 2 * found * slip + slip * slip + 6 * U * logs
            assert Fraction(float(errors[0, k])) >= needed
            assert slip > 0
            true = [dot(row, away) for row in a]
            assert length([p - q for p, q in zip(exact(y[k, 0]), true, strict=True)]) <= slip
            offset = 2 * (sum(exact(diagonal.abs().log())) + Fraction(float(ellips.log_priors[k])))
            assert abs(offset - dot(true, true) - Fraction(float(scores[0, k]))) <= needed


def test_scores_have_their_errors_where_squares_are_too_small_to_be_numbers() -> None:
    """A of 2⁻⁵⁶⁰ and z of 2⁵⁶⁰: y is of size 1, but the squares that column norms are made of vanish."""
    for seed in range(20):
        draw = Draw(seed)
        ellips, z = two_classes(draw, 1, "full")
        ellips.precision_factors *= 2.0**-560
        ellips.means *= 2.0**560
        z *= 2.0**560
        y, _, errors = Kernel(ellips).whiten(z)
        for k in range(2):
            found = abs(Fraction(float(y[k, 0, 0])))
            assert Fraction(float(errors[0, k])) >= gamma(2) * found**2 + 2 * found * gamma(2) * found * (1 - 4 * U)


def test_scores_have_their_errors_where_these_are_hardly_numbers() -> None:
    """A v all but cancels, at sizes of 1 and around 2⁻⁴⁸⁰, and no logarithm pays: errors are bounded by their own."""
    for power in (0, *range(420, 560, 2)):
        ellips = Ellips(2, 2)
        ellips.precision_factors[:] = torch.tensor([[1.0, 0.0], [2.0**60, 1.0]], dtype=ALL)
        ellips.fitted.fill_(True)
        z = torch.tensor([[2.0**-power, -(2.0 ** (60 - power))]], dtype=ALL)
        ellips.means[:], ellips.log_priors[:] = 0.0, 0.0
        y, _, errors = Kernel(ellips).whiten(z)
        slip = gamma(3) * (2 ** Fraction(60) + 1 + 1) * Fraction(float(z[0, 0]))
        found = length(exact(y[0, 0]))
        assert Fraction(float(errors[0, 0])) >= gamma(3) * found * found + 2 * found * slip + slip * slip


@pytest.mark.parametrize("kind", ["full", "diagonal"])
def test_lengths_of_columns_are_not_below_the_true_ones(kind: str) -> None:
    for power in (0, 200, 400, 470, 500, 530, 536, 560, 700, 1000):
        ellips, _ = two_classes(Draw(power), 3, kind)
        ellips.precision_factors *= 2.0**-power
        kernel = Kernel(ellips)
        for k in range(2):
            for n, column in zip(kernel.columns[k], columns(matrix(ellips.factors[k])), strict=True):
                assert number(n) >= length(column) * (1 - 4 * U)
                assert number(n) <= length(column) * (1 + 8 * U) + Fraction(1, 2**479)


def test_completed_squares_are_rounded_upwards() -> None:
    """corner > Σ b²/stiff in rational numbers, also where b² is too small to be a number."""
    for seed in range(400):
        draw = Draw(seed)
        dim, low = draw.integer(1, 20), (0, 300, 500, 530)[seed % 4]
        b = draw.normal(1, dim).abs() * 2.0 ** -draw.integer(low, low + 8)
        stiff = draw.normal(1, dim).exp()
        if seed % 8 == 0:
            b, stiff = 8 * b, stiff * 2.0**1000
        b[0, 0] = 0.0 if seed % 5 == 0 and dim > 1 else b[0, 0]
        fall = sum(x * x / s for x, s in zip(exact(b[0]), exact(stiff[0]), strict=True))
        below = float(fall) if Fraction(float(fall)) <= fall else math.nextafter(float(fall), 0)
        above = float(fall) * (1 + 3e-14) + 2.0**-955 * dim
        assert not verify._arrow(stiff, b, torch.tensor([below], dtype=ALL))
        assert verify._arrow(stiff, b, torch.tensor([above], dtype=ALL))


def test_squares_can_be_completed_only_where_they_are_not_negative() -> None:
    corner = torch.ones(1, dtype=ALL)
    for stiff, b, proven in ((0.0, 0.0, True), (-1e-300, 0.0, False), (-1.0, 0.0, False), (0.0, 1e-300, False)):
        for other in (1.0, 0.0):
            row = torch.tensor([[1.0, stiff]], dtype=ALL), torch.tensor([[other / 2, b]], dtype=ALL)
            assert bool(verify._arrow(*row, corner)) == proven
    flat = torch.zeros(1, 2, dtype=ALL)
    assert not verify._arrow(flat, flat, 0 * corner)  # 0 is not above 0: there is a tie


@pytest.mark.parametrize("dim", [2, 64, 4096])
def test_sums_of_many_squares_are_raised_by_what_summing_them_may_round(dim: int) -> None:
    """Of ones, which are summed without an error here and now: in another order there might be one of (d−1)u."""
    ones = torch.ones(1, dim, dtype=ALL)
    corner = torch.tensor([dim], dtype=ALL)
    assert not verify._arrow(ones, ones, corner * (1 + (dim + 2) * 2.0**-53))
    assert verify._arrow(ones, ones, corner * (1 + (1.05 * dim + 20) * 2.0**-53))


@pytest.mark.parametrize("kind", ["full", "shared", "diagonal"])
def test_each_problem_is_given_as_if_it_were_the_only_one(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many problems as dimensions, of very different sizes: no row takes its bounds from another one."""
    found: list[tuple[Tensor, ...]] = []

    def spy(*given: Tensor) -> Tensor:
        found.append(tuple(x.clone() for x in given))
        return torch.zeros(len(given[0]), dtype=torch.bool)

    monkeypatch.setattr(verify, "positive_definite" if kind == "full" else "_arrow", spy)
    draw = Draw(3)
    ellips = Ellips(4, 4, covariance_type="diagonal" if kind == "diagonal" else "full")
    factors = draw.normal(*ellips.precision_factors.shape) + (3 if kind == "diagonal" else 3 * torch.eye(4).double())
    ellips.precision_factors[:] = factors[:1] if kind == "shared" else factors
    ellips.means[:] = draw.normal(4, 4) * 2.0 ** torch.tensor([0, 20, -20, 7]).double().unsqueeze(1)
    ellips.fitted.fill_(True)
    kernel, z = Kernel(ellips), ellips.means + draw.normal(4, 4)
    p, r = torch.arange(4), torch.tensor([1, 2, 3, 0])
    rest = [torch.tensor(x, dtype=ALL) for x in ([9.0, 1e6, 3.0, 70.0], [1e-3, 1e-9, 0.01, 1e-4], [0.1, 3, 1e-4, 0.0])]
    kernel.unreached(z, (p, r), *rest)
    for i in range(4):
        row = slice(i, i + 1)
        kernel.unreached(z[row], (p[row], r[row]), *(x[row] for x in rest))
    together, *single = found
    for part, parts in zip(together, zip(*single, strict=True), strict=True):
        assert torch.allclose(part, torch.cat(parts), rtol=1e-10, atol=0)


def test_the_kernel_is_of_the_stored_numbers_and_of_its_own_copy_of_them() -> None:
    """What stands above the diagonal of a factor counts for nothing; what is changed later changes no proof."""
    ellips, z = two_classes(Draw(1), 3, "full")
    plain = Kernel(ellips)
    before = [x.clone() for x in (*plain.whiten(z), plain.bordered, plain.means, plain.log_priors)]
    ellips.precision_factors[:, 0, 1:] = 7.0
    stored = ellips.precision_factors.clone()
    again = Kernel(ellips)
    assert torch.equal(ellips.precision_factors, stored)
    for values in (ellips.precision_factors, ellips.means, ellips.log_priors):
        values *= 3
    for kernel in (plain, again):
        after = (*kernel.whiten(z), kernel.bordered, kernel.means, kernel.log_priors)
        assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))


def test_margins_leave_out_the_errors_of_both_scores_and_of_themselves() -> None:
    kernel = Kernel(two_classes(Draw(0), 2, "full")[0])
    for seed in range(300):
        draw = Draw(seed)
        scores, errors = draw.normal(1, 2) * 2.0 ** draw.integer(0, 20), draw.normal(1, 2).abs()
        errors *= 2.0 ** -draw.integer(0, 60)
        own = draw.integer(0, 1)
        low, high = kernel.margins(scores, errors, torch.tensor([own]))
        lead = Fraction(float(scores[0, own])) - Fraction(float(scores[0, 1 - own]))
        slack = sum(exact(errors[0]))
        assert Fraction(float(low[0, 1 - own])) < lead - slack
        assert Fraction(float(high[0, 1 - own])) > lead + slack
        assert float(high[0, 1 - own]) - float(low[0, 1 - own]) < 2.1 * float(slack) + 1e-14 * float(scores.abs().sum())


def _unreached(kernel: Kernel, z: Tensor, margin: float, t: float, radius: float) -> None:
    pair = torch.tensor([0]), torch.tensor([1])
    kernel.unreached(z, pair, *(torch.tensor([x], dtype=ALL) for x in (margin, t, radius)))


def test_the_corner_is_not_above_what_is_left_of_the_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    """m − gR² with g = 1/t as rounded: also where it rounds to m, and where R² or gR² is too small to be a number."""
    kernel, found = Kernel(two_classes(Draw(0), 1, "diagonal")[0]), []
    monkeypatch.setattr(kernel, "_diagonal", lambda z, p, r, g, corner: found.append(corner) or corner > 0)

    def least(margin: float, t: float, radius: float) -> None:
        _unreached(kernel, torch.zeros(1, 1, dtype=ALL), margin, t, radius)
        corner, left = Fraction(float(found[-1])), Fraction(margin) - Fraction(1 / t) * Fraction(radius) ** 2
        assert corner < left
        assert corner > left - Fraction(1, 10**14) * Fraction(margin) - Fraction(1, 10**200)

    for seed in range(300):
        draw = Draw(seed)
        margin, t = (float(draw.normal(1).exp()) for _ in range(2))
        least(margin, t, math.sqrt(margin * t) * 2.0 ** -draw.integer(0, 40))
        least(margin, 1.0, math.sqrt(margin) * 2.0 ** -draw.integer(0, 40))
        least(3 * 5e-324, 2.0**200, 2.0**-437 * (1 + float(draw.normal(1).abs()) / 4))
    least(2.0**-880, 2.0**-200, 2.0**-540)  # R² is 0 as rounded, gR² is not
    for size in range(150, 320, 5):
        least(10.0**-size, 1e-20, 10.0 ** -(size / 2 + 10) * 0.9)
        least(10.0**-size, 1e20, 10.0 ** -(size / 2 - 10) * 0.9)


def test_claims_that_are_none_prove_nothing() -> None:
    """Classes out of range, a class against itself, multipliers that are not positive."""
    for kind in ("full", "diagonal"):
        ellips, _ = two_classes(Draw(0), 2, kind)
        for values, other in ((ellips.precision_factors, 2.0), (ellips.means, 0.0)):
            values[0] = 0.0 if values is ellips.means else torch.eye(2).double() if kind == "full" else 1.0
            values[1] = values[0] * other
        kernel, z = Kernel(ellips), torch.zeros(1, 2, dtype=ALL)

        def proven(p: int, r: int, t: float, radius: float = 0.5, kernel: Kernel = kernel, z: Tensor = z) -> bool:
            pair = torch.tensor([p]), torch.tensor([r])
            return bool(kernel.unreached(z, pair, *(torch.tensor([x], dtype=ALL) for x in (1.0, t, radius))))

        assert proven(0, 1, 1.0)
        assert proven(0, 1, math.inf, math.inf)  # P_1 − P_0 is 3 I: never reached
        for pair in ((-1, 1), (2, 1), (0, -1), (0, 2), (0, 0), (1, 1), (2, 2)):
            assert not proven(*pair, 1.0)
        for t in (-1.0, -0.5, 0.0, -math.inf, math.nan, 5e-324):
            assert not proven(0, 1, t)
        assert not proven(0, 1, 1.0, -0.5)
        assert not proven(0, 1, 1.0, math.nan)


@pytest.mark.parametrize("kind", ["full", "diagonal"])
def test_classes_are_in_one_place_only_if_no_coordinate_differs(kind: str) -> None:
    """Of one shape, a coordinate apart: the boundary is met, however the priors stand; in one place only at a tie."""
    for shift, rare, never in ((1.0, -3.0, False), (0.0, -3.0, True), (0.0, -0.1, False), (0.0, -0.05, False)):
        ellips, _ = two_classes(Draw(0), 2, kind)
        ellips.precision_factors[:] = torch.eye(2).double() if kind == "full" else 1.0
        ellips.means[:] = 0.0
        ellips.means[1, 1] = shift
        ellips.log_priors[:] = torch.tensor([-0.1, rare], dtype=ALL)
        pair = torch.tensor([0]), torch.tensor([1])
        values = (torch.tensor([x], dtype=ALL) for x in (5.8 + shift, 1.0, 1e9))
        assert bool(Kernel(ellips).unreached(torch.zeros(1, 2, dtype=ALL), pair, *values)) == never


def test_errors_go_by_component_where_covariances_are_diagonal(monkeypatch: pytest.MonkeyPatch) -> None:
    """g + W_jj from below and |b_j| from above, whatever cancels in them."""
    found: list[tuple[Tensor, Tensor]] = []

    def arrow(stiff: Tensor, b: Tensor, corner: Tensor) -> Tensor:
        found.append((stiff[0], b[0]))
        return corner > 0

    monkeypatch.setattr(verify, "_arrow", arrow)
    for seed in range(300):
        draw = Draw(seed)
        dim = draw.integer(1, 4)
        ellips, z = two_classes(draw, dim, "diagonal")
        if seed % 3 == 0:
            ellips.factors[1, 0] = ellips.factors[0, 0]
            z[0, 0] = float(ellips.means[0, 0]) if seed % 2 else 1e3
        t = float(draw.normal(1).exp())
        _unreached(Kernel(ellips), z, 1.0, t, 0.5)
        stiff, b = (exact(x) for x in found[-1])
        squares = ellips.factors.square()
        own, other = ([x * x for x in exact(ellips.factors[k])] for k in range(2))
        v, w = ([x - m for x, m in zip(exact(z[0]), exact(ellips.means[k]), strict=True)] for k in range(2))
        bends, sums = exact(squares[1] - squares[0]), exact(1 / t + (squares[1] - squares[0]))
        pulls = exact((squares[1] * (z[0] - ellips.means[1]) - squares[0] * (z[0] - ellips.means[0])).abs())
        for j in range(dim):
            bend, pull = other[j] - own[j], other[j] * w[j] - own[j] * v[j]
            assert stiff[j] <= Fraction(1 / t) + bend
            assert b[j] >= abs(pull)
            if ellips.factors[0, j] == ellips.factors[1, j]:
                apart = abs(other[j] * (w[j] - v[j]))
                assert stiff[j] == Fraction(1 / t)
                assert apart * (1 + gamma(3)) <= b[j] * (1 + 3 * U) <= apart * (1 + 20 * U) + Fraction(1, 2**900)
            else:  # what each operation may round, whether it did here or not
                assert stiff[j] <= sums[j] - (1 - 2 * U) * U * (own[j] + other[j] + abs(bends[j]) + abs(sums[j]))
                assert b[j] >= pulls[j] + (1 - 4 * U) * gamma(4) * (other[j] * abs(w[j]) + own[j] * abs(v[j]))


def test_components_are_bounded_where_squares_are_hardly_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[tuple[Tensor, Tensor]] = []

    def arrow(stiff: Tensor, b: Tensor, corner: Tensor) -> Tensor:
        found.append((stiff[0], b[0]))
        return corner > 0

    monkeypatch.setattr(verify, "_arrow", arrow)
    for seed in range(300):
        draw = Draw(seed)
        ellips, z = two_classes(draw, 3, "diagonal")
        ellips.precision_factors *= 2.0 ** -draw.integer(460, 545)
        if seed % 2:
            z, ellips.means[:] = (2.0 ** draw.integer(0, 500) * x for x in (z, ellips.means.clone()))
        t = 2.0 ** draw.integer(900, 1020)
        _unreached(Kernel(ellips), z, 1.0, t, 0.0)
        stiff, b = (exact(x) for x in found[-1])
        own, other = ([x * x for x in exact(ellips.factors[k])] for k in range(2))
        v, w = ([x - m for x, m in zip(exact(z[0]), exact(ellips.means[k]), strict=True)] for k in range(2))
        for j in range(3):
            assert stiff[j] <= Fraction(1 / t) + other[j] - own[j]
            assert b[j] >= abs(other[j] * w[j] - own[j] * v[j])


def test_the_pull_between_classes_of_one_shape_is_bounded_from_above(monkeypatch: pytest.MonkeyPatch) -> None:
    """There b = P (μ_p − μ_r): with what a product with A and one with Aᵀ may lose, in any order of summation."""
    found: list[tuple[Tensor, Tensor]] = []

    def arrow(stiff: Tensor, b: Tensor, corner: Tensor) -> Tensor:
        found.append((stiff[0], b[0]))
        return corner > 0

    monkeypatch.setattr(verify, "_arrow", arrow)
    for seed in range(60):
        draw = Draw(seed)
        dim = draw.integer(1, 5)
        ellips, z = two_classes(draw, dim, "full")
        ellips.precision_factors[1] = ellips.precision_factors[0]
        ellips.means *= (1.0, 2.0**-480, 2.0**-490, 2.0**20)[seed % 4]
        _unreached(Kernel(ellips), z, 1.0, 2.0, 0.5)
        stiff, b = (exact(x) for x in found[-1])
        a = matrix(ellips.factors[0])
        shift = [p - q for p, q in zip(exact(ellips.means[0]), exact(ellips.means[1]), strict=True)]
        pulled = [dot(row, shift) for row in a]
        n = [length(column) for column in columns(a)]
        h = dot(n, [abs(x) for x in shift])
        # As a batch, like the kernel's: other products add up in another order, which not every processor does alike.
        factors, w = ellips.factors[:1], ellips.means[:1] - ellips.means[1:]
        computed = exact((factors.mT @ (factors @ w.unsqueeze(-1)))[0, :, 0].abs())
        for j, column in enumerate(columns(a)):
            assert stiff[j] == Fraction(1, 2)
            assert b[j] >= abs(dot(column, pulled))
            assert b[j] >= computed[j] * (1 - 2 * U) + gamma(2 * dim + 3) * n[j] * h


def test_the_errors_of_the_matrix_are_those_that_theory_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Entry by entry |M − M̂| ≤ E of the kernel's item 1; item 3 has to make Σ e_j D_j x_j² ≥ |x|ᵀE|x| of it."""
    found: list[tuple[Tensor, Tensor]] = []

    def spy(given: Tensor, error: Tensor) -> Tensor:
        found.append((given[0].clone(), error[0].clone()))
        return torch.zeros(len(given), dtype=torch.bool)

    monkeypatch.setattr(verify, "positive_definite", spy)
    for seed in range(80):
        draw = Draw(seed)
        dim = draw.integer(1, 4)
        ellips, z = two_classes(draw, dim, "full")
        if torch.equal(ellips.factors[0], ellips.factors[1]):
            continue
        lowest = float(torch.linalg.eigvalsh(ellips.precisions[1] - ellips.precisions[0])[0])
        g = max(0.0, -lowest) + 2.0 ** -draw.integer(0, 12) * float(ellips.precisions.abs().max())
        margin, kernel = 2.0 ** draw.integer(-20, 20), Kernel(ellips)
        kernel.balance = 2.0 ** -(5 * (seed % 4))
        found.clear()
        _unreached(kernel, z, margin, 1 / g, 0.0)
        ((given, error),) = found
        _hold(ellips, z, Fraction(1 / (1 / g)), [exact(row) for row in given], exact(error))


def _hold(ellips: Ellips, z: Tensor, g: Fraction, given: Rows, error: list[Fraction]) -> None:
    dim = ellips.dim
    needed: Any = [[Fraction(0)] * (dim + 1) for _ in range(dim + 1)]
    true: Any = [[Fraction(0)] * (dim + 1) for _ in range(dim + 1)]
    for k, sign in ((1, 1), (0, -1)):
        a = columns(matrix(ellips.factors[k]))
        away = [x - m for x, m in zip(exact(z[0]), exact(ellips.means[k]), strict=True)]
        n = [length(column) for column in a]
        h = dot(n, [abs(x) for x in away])
        pulled = [dot(row, away) for row in columns(a)]
        for i in range(dim):
            needed[dim][i] += gamma(2 * dim + 4) * n[i] * h
            true[dim][i] += sign * dot(a[i], pulled)
            for j in range(i + 1):
                needed[i][j] += gamma(dim + 1) * n[i] * n[j]
                true[i][j] += sign * dot(a[i], a[j])
    for i in range(dim):
        true[i][i] += g
        assert given[i][i] > 0
        assert abs(true[dim][i] - given[dim][i]) <= needed[dim][i]
        for j in range(i + 1):
            own = U * abs(given[i][i]) if i == j else 0  # of the diagonal's last sum: `positive_definite` pays for it
            assert abs(true[i][j] - given[i][j]) <= needed[i][j] + own
    room = [[-x for x in row] for row in needed]
    for j in range(dim + 1):
        room[j][j] += Fraction(101, 100) * error[j] * given[j][j]
    assert semidefinite(room)


@pytest.mark.parametrize("kind", ["full", "diagonal"])
def test_largest_curvatures_are_bounded_whatever_is_guessed(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """λ I − P with λ as returned has no negative eigenvalue; its error is what theory asks for; ‖A‖_F² else."""
    found: list[tuple[Tensor, Tensor]] = []

    def spy(given: Tensor, error: Tensor) -> Tensor:
        found.append((given.clone(), error.clone()))
        return positive_definite(given, error)

    monkeypatch.setattr(bounds, "positive_definite", spy)
    for seed in range(40):
        draw = Draw(seed)
        dim = draw.integer(1, 4)
        ellips, _ = two_classes(draw, dim, kind)
        kernel = Kernel(ellips)
        largest = torch.linalg.eigvalsh(ellips.precisions)[:, -1]
        for factor in (1.0, 1 - 2e-6, 0.5, 0.0, 3.0, math.nan):
            found.clear()
            top = FarRivals(kernel, factor * largest)._top(torch.tensor([0, 1]))
            for k in range(2):
                a = columns(matrix(ellips.factors[k]))
                gap = [[(number(top[k]) if i == j else 0) - dot(a[i], a[j]) for j in range(dim)] for i in range(dim)]
                assert semidefinite(gap)
                assert float(top[k]) <= float(largest[k]) * 3.01 or factor != 1.0
                if kind == "full" and not factor >= 1:
                    assert number(top[k]) >= sum((dot(x, x) for x in a), Fraction(0))
                elif kind == "full":
                    given, error, n = found[0][0][k], exact(found[0][1][k]), [length(column) for column in a]
                    room = [[-gamma(dim) * n[i] * n[j] for j in range(dim)] for i in range(dim)]
                    for j in range(dim):
                        room[j][j] += Fraction(101, 100) * error[j] * number(given[j, j])
                    assert semidefinite(room)


@pytest.mark.parametrize("kind", ["full", "diagonal"])
def test_far_rivals_are_as_far_as_theory_asks(kind: str) -> None:
    """The least margin that counts as far: above 2R‖b‖ + R²λ with the worst of b's rounding, and little more."""
    for seed in range(60):
        draw = Draw(seed)
        dim = draw.integer(1, 4)
        ellips, z = two_classes(draw, dim, kind)
        if seed % 3 == 1:  # b is as small as its rounding, which goes by |z − μ| alone
            ellips.precision_factors[1] = ellips.precision_factors[0]
            ellips.means[1] = ellips.means[0] + 2.0**-49 * draw.normal(dim)
            z = -ellips.means[:1] * draw.uniform(0.5, 1.5)
            if seed % 2:  # only the prediction's own pull is rounded
                z = ellips.means[1:].clone()
                ellips.means[0] += draw.normal(dim)
        elif seed % 3 == 2 and kind == "diagonal":  # many terms of which one alone counts
            dim = 60 if seed % 2 else 8
            ellips, z = two_classes(draw, dim, kind)
            ellips.precision_factors[:, 1:] *= 2.0**-30
            ellips.precision_factors[0] *= 2.0**-20
        kernel = Kernel(ellips)
        top = torch.linalg.eigvalsh(ellips.precisions)[:, -1]
        far, (y, _, _) = FarRivals(kernel, top), kernel.whiten(z)
        radius = torch.tensor([2.0 ** draw.integer(-20, 20)], dtype=ALL)
        slips = Fraction(0)
        for k in range(2):
            a = matrix(ellips.factors[k])
            away = [abs(x - m) for x, m in zip(exact(z[0]), exact(ellips.means[k]), strict=True)]
            n = [length(column) for column in columns(a)]
            slips += gamma(2 * (dim if kind == "full" else 1) + 2) * length(n) * dot(n, away)
        pulls = y @ ellips.factors if kind == "full" else y * ellips.factors.unsqueeze(1)
        b = Fraction(float((pulls[1] - pulls[0]).norm())) * (1 + gamma(dim // 2 + 2))
        alike, reach = torch.equal(ellips.factors[0], ellips.factors[1]), Fraction(float(radius[0]))
        bend = Fraction(0) if alike else Fraction(float(top[0])) * (1 - 10**6 * U)
        needed = 2 * reach * (b + slips) + reach * reach * bend
        assert not _proves_far(far, z, y, math.nextafter(float(needed), 0), radius)
        assert not _proves_far(far, z, y, math.nextafter(float(needed), 0) / 1.5, radius)
        assert _proves_far(far, z, y, 2.2 * float(needed) + 2.0**-470 * float(radius[0]), radius)


def _proves_far(far: FarRivals, z: Tensor, y: Tensor, margin: float, radius: Tensor) -> bool:
    return bool(far.prove(z, y, torch.tensor([0]), torch.tensor([[math.inf, margin]], dtype=ALL), radius)[0, 1])


@pytest.mark.parametrize("kind", ["full", "diagonal"])
def test_the_curvature_over_the_radius_is_rounded_upwards(kind: str) -> None:
    """Where b = 0 a rival is far if m > R²λ, in rational numbers, for λ as it was proven."""
    for seed in range(100):
        draw = Draw(seed)
        ellips, _ = two_classes(draw, 2, kind)
        ellips.precision_factors[1] = ellips.precision_factors[0] * 1.5
        ellips.means[1] = ellips.means[0]
        kernel, radius, z = Kernel(ellips), draw.normal(1).abs(), ellips.means[:1]
        far, (y, _, _) = FarRivals(kernel, torch.linalg.eigvalsh(ellips.precisions)[:, -1]), kernel.whiten(z)
        needed = number(radius[0]) ** 2 * number(far._top(torch.tensor([0]))[0])
        below = float(needed)
        below = below if Fraction(below) <= needed else math.nextafter(below, 0)
        assert not _proves_far(far, z, y, below, radius)
        assert _proves_far(far, z, y, below * (1 + 1e-14), radius)


def test_far_rivals_are_far_by_what_underflow_may_hide() -> None:
    """Where b is 0 as computed it may have been lost: by 2⁻⁴⁸⁰, or by γ 2⁻⁴⁸⁰ of ‖A‖ if that is more."""
    for size, reach, above in ((1.0, 2.0**480, 0.5), (2.0**200, 2.0**330, 0.5)):
        ellips = Ellips(2, 1)
        ellips.precision_factors[:], ellips.fitted[...] = size, True
        far, z = FarRivals(kernel := Kernel(ellips), torch.ones(2, dtype=ALL)), torch.zeros(1, 1, dtype=ALL)
        y, radius = kernel.whiten(z)[0], torch.tensor([reach], dtype=ALL)
        assert not _proves_far(far, z, y, above, radius)
        assert _proves_far(far, z, y, 1e3, radius)


@pytest.mark.parametrize("dim", [1, 2, 6, 12, 40])
def test_lengths_of_pulls_are_raised_by_what_each_step_rounds(dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A product with A and one with its transpose; then the root of a sum of squares, by itself."""
    for kind in ("full", "diagonal"):
        ellips, _ = two_classes(Draw(dim), dim, kind)
        kernel, z = Kernel(ellips), torch.zeros(1, dim, dtype=ALL)
        far, (y, _, _) = FarRivals(kernel, torch.ones(2, dtype=ALL)), kernel.whiten(z)
        assert far.unwhiten(y)[1] >= 2 * (dim if kind == "full" else 1) + 2
        u = torch.stack([0 * z, torch.ones_like(z)], dim=1)
        monkeypatch.setattr(far, "unwhiten", lambda y, u=u: (u, 0))
        monkeypatch.setattr(far, "bend", lambda p: torch.zeros(1, 1, dtype=ALL))
        length = (Fraction(dim) if dim == 1 else root(Fraction(dim))) * (1 + gamma(dim // 2 + 2))
        for reach in (0.5, 2.0**-30):
            below = math.nextafter(float(2 * Fraction(reach) * length), 0)
            assert not _proves_far(far, z, y, below, torch.tensor([reach], dtype=ALL))
