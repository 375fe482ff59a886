"""Every error bound of the kernel for covariances of low rank by itself, against what theory asks: its items 1 to 3."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from ellips import Ellips
from ellips.certificates import verify_low_rank
from ellips.certificates.ties import StoredClass, _square, margin_sign
from ellips.certificates.verify import rounding
from ellips.certificates.verify_low_rank import LowRankFarRivals, LowRankKernel
from tests.soundness.generators import Draw
from tests.soundness.rationals import U, columns, dot, exact, gamma, length, matrix, number, root

ALL = torch.float64


def mixture(factor: Tensor, directions: Tensor, scales: Tensor, means: Tensor | None = None) -> Ellips:
    """Two classes of equal weight; directions ``(2, r, d)``, scales ``(2, r)``."""
    dim = len(factor)
    ellips = Ellips(2, dim, covariance_type="low_rank", rank=scales.shape[1])
    ellips.precision_factors.copy_(factor)
    ellips.directions.copy_(directions)
    ellips.scales.copy_(scales)
    ellips.means.copy_(torch.zeros(2, dim) if means is None else means)
    ellips.log_priors[:] = 0.0
    ellips.fitted.fill_(True)
    return ellips


def drawn(draw: Draw, dim: int, rank: int, power: int) -> Ellips:
    directions = draw.normal(2, rank, dim)
    directions *= (1.3 + 0.6 * draw.normal(2, rank, 1).sin()) / directions.norm(dim=2, keepdim=True)
    scales = (1 + draw.normal(2, rank).abs()) * 2.0**power
    factor = draw.normal(dim, dim).tril() * 2.0 ** draw.integer(-3, 3)
    return mixture(factor, directions, scales, draw.normal(2, dim))


def strengths(ellips: Ellips, k: int) -> tuple[list[Fraction], list[Fraction], Fraction]:
    """a_j, the lengths ‖q_j‖, and κ."""
    own = [1 - s * s for s in exact(ellips.scales[k])]
    a = [abs(e) + 2 * (2 - e) / ellips.dim for e in own]
    lengths = [length(exact(q)) for q in ellips.directions[k]]
    return a, lengths, sum((x * y * y for x, y in zip(a, lengths, strict=True)), Fraction(0))


def pull_strength(ellips: Ellips, k: int) -> Fraction:
    """κ': the less of κ and ρ √(Σ a_j² ‖q_j‖²), ρ² the largest sum of a row of |QQᵀ|."""
    a, lengths, kappa = strengths(ellips, k)
    rows = [exact(q) for q in ellips.directions[k]]
    widest = max((sum(abs(dot(p, q)) for q in rows) for p in rows), default=Fraction(0))
    return min(kappa, root(widest) * length([x * y for x, y in zip(a, lengths, strict=True)])) if rows else kappa


def needed(ellips: Ellips, z: Tensor, k: int, y: list[Fraction]) -> Fraction:
    """What item 3 takes for the error of a score, and the verified kernel for the rest of it."""
    d, r = ellips.dim, ellips.scales.shape[1]
    away = [abs(p - m) for p, m in zip(exact(z), exact(ellips.means[k]), strict=True)]
    h = dot([length(c) for c in columns(matrix(ellips.precision_factors))], away)
    a, _, kappa = strengths(ellips, k)
    found, slip = length(y), gamma(d + 1) * h
    plain = gamma(d + 1) * found * found + 2 * found * slip + slip * slip
    power = sum((x * dot(exact(q), y) ** 2 for x, q in zip(a, ellips.directions[k], strict=True)), Fraction(0))
    epsilon = slip + gamma(d) * found
    bend = 2 * epsilon * root(kappa * power) if power else Fraction(0)
    bend += kappa * epsilon * epsilon + gamma(d + r + 3) * power
    logs = 2 * sum(abs(Fraction(x)) for x in (*ellips.scales[k].abs().log().tolist(), float(ellips.log_priors[k])))
    return (plain + bend) * (1 - 64 * U) + 6 * U * logs


def hold(ellips: Ellips, z: Tensor) -> None:
    """The error of each score is what theory asks for, or more, and the score is not farther off."""
    kernel = LowRankKernel(ellips)
    y, scores, errors = kernel.whiten(z)
    a = matrix(ellips.precision_factors)
    for k in range(2):
        assert number(errors[0, k]) >= needed(ellips, z[0], k, exact(y[k, 0]))
        away = [p - m for p, m in zip(exact(z[0]), exact(ellips.means[k]), strict=True)]
        true = [dot(row, away) for row in a]
        pairs = zip(exact(ellips.scales[k]), ellips.directions[k], strict=True)
        square = dot(true, true) - sum((1 - s * s) * dot(exact(q), true) ** 2 for s, q in pairs)
        assert abs(number(kernel.offsets[k]) - square - number(scores[0, k])) <= number(errors[0, k])


@pytest.mark.parametrize("power", [-20, 0, 1, 20, 49])
def test_scores_have_the_errors_that_theory_asks_for(power: int) -> None:
    for seed in range(12):
        draw = Draw(seed)
        dim = draw.integer(1, 6)
        ellips = drawn(draw, dim, draw.integer(0, min(dim, 3)), power)
        hold(ellips, 2.0 ** draw.integer(-8, 8) * draw.normal(1, dim))
        hold(ellips, ellips.means[:1].clone())
    hold(drawn(Draw(0), 12, 10, power), Draw(1).normal(1, 12))


@pytest.mark.parametrize("along", [0.0, 2.0**-45, 2.0**-20, 2.0**-5, 1.0])
@pytest.mark.parametrize("scale", [2.0**10, 2.0**30, 2.0**50])
def test_scores_have_their_errors_where_what_is_taken_off_is_nearly_nothing(along: float, scale: float) -> None:
    """y all but at right angles to a direction that weighs much: its own error, once or squared, is all there is."""
    for dim in (2, 3, 7):
        directions = torch.eye(dim, dtype=ALL)[1].expand(2, 1, dim)
        ellips = mixture(torch.eye(dim, dtype=ALL), directions, torch.full((2, 1), scale, dtype=ALL))
        for size in (1.0, 2.0**-30):
            hold(ellips, size * (torch.eye(dim, dtype=ALL)[:1] + along * torch.eye(dim, dtype=ALL)[1:2]))


def test_scores_have_their_errors_where_little_is_taken_off_in_many_dimensions() -> None:
    """κ Σ a c² is a quarter, less than its root, and hardly anything else has operations to spare."""
    eye = torch.eye(40, dtype=ALL)
    ellips = mixture(eye, eye[1].expand(2, 1, 40), torch.full((2, 1), 2.0, dtype=ALL))
    hold(ellips, eye[:1] + 0.15 * eye[1:2])


def test_scores_have_their_errors_where_many_directions_are_one() -> None:
    """Everything is taken off along one axis: sums of many terms, all of one sign."""
    axis = torch.eye(32, dtype=ALL)[:1]
    hold(mixture(torch.eye(32), axis.expand(2, 30, 32), torch.full((2, 30), 2.0**10)), axis)


@pytest.mark.parametrize("steep", [20, 60])
def test_scores_have_their_errors_where_whitening_cancels(steep: int) -> None:
    """A v is small and ‖A‖‖v‖ is not; also where the errors are hardly numbers."""
    for power in (0, *range(420, 560, 4)):
        factor = torch.tensor([[1.0, 0.0], [2.0**steep, 1.0]], dtype=ALL)
        z = torch.tensor([[2.0**-power, -(2.0 ** (steep - power))]], dtype=ALL)
        hold(mixture(factor, torch.zeros(2, 0, 2), torch.zeros(2, 0)), z)


def test_logarithms_of_scales_have_their_errors() -> None:
    """At a mean nothing else is left."""
    for seed in range(10):
        ellips = drawn(Draw(seed), 3, 2, 40)
        ellips.log_priors.copy_(torch.tensor([-3.0, -0.1]))
        hold(ellips, ellips.means[:1].clone())
        hold(ellips, ellips.means[1:].clone())


@pytest.mark.parametrize("power", [-3, 3])
@pytest.mark.parametrize(("dim", "rank"), [(1, 0), (1, 1), (2, 1), (5, 3), (12, 10), (40, 3)])
def test_entries_and_pulls_have_the_operations_that_theory_counts(dim: int, rank: int, power: int) -> None:
    """Items 1 and 2: γ_{3d+2r+2} (κ'_r + κ'_p) n nᵀ, and γ_{4d+r+4} (1 + κ') n h."""
    ellips = drawn(Draw(dim), dim, rank, power)
    kernel = LowRankKernel(ellips)
    assert kernel.entries >= 3 * dim + 2 * rank + 2
    assert kernel.ops >= 4 * dim + rank + 4
    n = [length(c) for c in columns(matrix(ellips.precision_factors))]
    for k in range(2):
        kappa = pull_strength(ellips, k)
        for found, plain, own in zip(kernel.columns[k], kernel.plain, n, strict=True):
            assert number(found) ** 2 >= (1 + kappa) * own * own * (1 - 64 * U)
            assert number(plain) >= own * (1 - 64 * U)


def test_lengths_of_columns_are_above_what_underflow_leaves() -> None:
    for power in (400, 530, 560, 1000):
        ellips = mixture(2.0**-power * torch.eye(2, dtype=ALL), torch.zeros(2, 0, 2), torch.zeros(2, 0))
        kernel = LowRankKernel(ellips)
        assert (kernel.plain >= 2.0**-power).all()
        assert (kernel.columns >= 2.0**-power).all()


@pytest.mark.parametrize(
    ("size", "scale", "usable"),
    [(0.5, 3.0, True), (0.499, 3.0, False), (2.0, 3.0, True), (2.001, 3.0, False), (1.0, -(2.0**99), True),
     (1.0, 2.0**101, False), (1.0, -(2.0**101), False), (1.0, math.nan, False), (math.nan, 3.0, False)],
)  # fmt: skip
def test_numbers_beyond_what_the_proof_takes_are_not_used(size: float, scale: float, usable: bool) -> None:
    directions, scales = torch.ones(2, 2, 2, dtype=ALL) / 2**0.5, torch.full((2, 2), 3.0, dtype=ALL)
    directions[1, 1], scales[1, 1] = size * torch.eye(2, dtype=ALL)[0], scale
    kernel = LowRankKernel(mixture(torch.eye(2), directions, scales))
    assert bool(kernel.factors.isfinite().all()) == usable
    assert bool(kernel.factors.isfinite().any()) == usable


def test_classes_are_of_one_shape_only_if_directions_and_scales_are() -> None:
    directions = torch.eye(2, dtype=ALL).unsqueeze(1)
    scales = torch.full((2, 1), 3.0, dtype=ALL)
    assert LowRankKernel(mixture(torch.eye(2), directions, scales)).shapes.tolist() == [0, 1]
    assert LowRankKernel(mixture(torch.eye(2), directions[:1].expand(2, 1, 2), scales)).shapes.tolist() == [0, 0]
    scales[1] = 2.0
    assert LowRankKernel(mixture(torch.eye(2), directions[:1].expand(2, 1, 2), scales)).shapes.tolist() == [0, 1]


def test_classes_of_one_shape_are_in_one_place_only_if_no_coordinate_differs() -> None:
    for shift, rare, never in ((1.0, -3.0, False), (0.0, -3.0, True), (0.0, -0.1, False), (0.0, -0.05, False)):
        ellips = mixture(torch.eye(2), torch.eye(2)[:1].expand(2, 1, 2), torch.full((2, 1), 2.0))
        ellips.means[1, 1] = shift
        ellips.log_priors[:] = torch.tensor([-0.1, rare], dtype=ALL)
        values = (torch.tensor([x], dtype=ALL) for x in (5.8 + shift, 1.0, 1e9))
        pair = torch.tensor([0]), torch.tensor([1])
        assert bool(LowRankKernel(ellips).unreached(torch.zeros(1, 2, dtype=ALL), pair, *values)) == never


def test_pulls_of_one_shape_have_their_errors_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many problems as dimensions, of different sizes; where the pull vanishes its error is all there is."""
    pulls: list[Tensor] = []

    def spy(stiff: Tensor, b: Tensor, corner: Tensor) -> Tensor:
        pulls.append(b)
        return torch.zeros(len(b), dtype=torch.bool)

    monkeypatch.setattr(verify_low_rank, "_arrow", spy)
    ellips = Ellips(5, 4, covariance_type="low_rank", rank=1)
    ellips.precision_factors[:] = torch.diag(torch.tensor([1.0, 2.0, 4.0, 8.0]))
    ellips.directions[:], ellips.scales[:] = torch.eye(4)[:1], 3.0
    sizes = torch.tensor([-1.0, 2.0**40, -(2.0**-20), 2.0**7], dtype=ALL)
    ellips.means[:] = torch.tensor([3.0, -5.0, 1.0, 2.0])
    ellips.means[:4] += torch.diag(sizes)
    ellips.fitted.fill_(True)
    kernel, z, one = LowRankKernel(ellips), ellips.means[:4], torch.ones(4, dtype=ALL)
    p, r = torch.arange(4), torch.full((4,), 4)
    kernel.unreached(z, (p, r), 9 * one, one, one)
    n, precision = kernel.columns[4], ellips.precisions[4].diagonal()
    for i in range(4):
        row = slice(i, i + 1)
        kernel.unreached(z[row], (p[row], r[row]), 9 * one[row], one[row], one[row])
        assert float(pulls[-1][0, i]) >= float((precision * sizes)[i].abs()) * (1 - 1e-15)
        for j in range(4):
            if i != j:
                error = float(n[j] * n[i] * sizes[i].abs())
                assert float(gamma(4 * 4 + 1 + 4)) * error <= float(pulls[-1][0, j]) <= rounding(4 * 4 + 1 + 10) * error
    assert torch.allclose(pulls[0], torch.cat(pulls[1:]), rtol=1e-10, atol=0)


def test_pulls_of_far_rivals_are_those_of_their_precisions() -> None:
    for seed in range(10):
        draw = Draw(seed)
        ellips = drawn(draw, 4, draw.integer(0, 3), 1)
        kernel, z = LowRankKernel(ellips), draw.normal(3, 4)
        far = LowRankFarRivals(kernel, torch.ones(2, 2, dtype=ALL))
        pulls, steps = far.unwhiten(kernel.whiten(z)[0])
        assert steps >= 4 * 4 + kernel.rank + 4
        a, q = ellips.precision_factors, ellips.directions
        inner = torch.eye(4, dtype=ALL) - q.mT @ ((1 - ellips.scales.square()).unsqueeze(-1) * q)
        away = z.unsqueeze(1) - ellips.means
        torch.testing.assert_close(pulls, (a.mT @ inner @ a @ away.unsqueeze(-1)).squeeze(-1), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("power", [0, 30, 48, 49, 50, 51, 52])
@pytest.mark.parametrize("sign", [1, -1])
def test_bends_of_scales_next_to_one_are_not_lost(power: int, sign: int) -> None:
    """E = 1 − s² as small as its rounding: what is proven of VᵀEV in one dimension is not below it."""
    scale = 1 + sign * 2.0**-power / (2 if power == 0 else 1)
    ellips = mixture(torch.eye(1), torch.ones(2, 1, 1), torch.full((2, 1), scale, dtype=ALL))
    curvature = float(abs(1 - Fraction(scale) ** 2))
    for guess in (0.0, curvature, 1.0, math.nan):
        far = LowRankFarRivals(LowRankKernel(ellips), torch.full((2, 2), guess, dtype=ALL))
        bend = far.bend(torch.arange(2))
        assert (bend >= curvature).all()
        assert (bend <= 1.1 * curvature + 2.05 * (guess if guess > 0 else 0.0) + 1e-11).all()


def test_matrices_behind_bends_have_the_errors_that_theory_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """At least γ_{3d+6} ρρᵀ, ρ_j = √E_j ‖q_j‖ ‖n‖, relative to the diagonal that is factorised."""
    seen: list[tuple[Tensor, Tensor]] = []

    def spy(rows: Tensor, error: Tensor) -> Tensor:
        seen.append((rows.diagonal(dim1=1, dim2=2).clone(), error.clone()))
        return torch.zeros(len(rows), dtype=torch.bool)

    monkeypatch.setattr(verify_low_rank, "positive_definite", spy)
    for dim, rank, power in ((2, 1, 3), (3, 2, -3), (6, 3, 0), (30, 4, 1), (4, 2, 2)):
        ellips = drawn(Draw(dim), dim, rank, power)
        ellips.precision_factors *= 2.0**-20 if dim == 4 else 1.0
        seen.clear()
        kernel = LowRankKernel(ellips)
        LowRankFarRivals(kernel, torch.full((2, 2), 1e4 * float(ellips.precisions.abs().sum()), dtype=ALL))
        for (diagonal, error), sign in zip(seen, (-1, 1), strict=True):
            roots = (sign * (1 - ellips.scales.square())).clamp(min=0).sqrt()
            rho = roots * ellips.directions.norm(dim=2) * ellips.precision_factors.norm()
            size = rho / diagonal.sqrt()
            asked = float(gamma(3 * dim + 6)) * size * size.sum(1, keepdim=True)
            assert (error >= asked).all()
            assert (error <= 3 * asked + 1e-30).all()


def test_squares_that_ties_are_decided_by_are_exact() -> None:
    """‖y‖² − Σ (1 − s²)(q·y)² in rational numbers, and its sign against a class without directions."""
    for seed in range(20):
        draw = Draw(seed)
        ellips = drawn(draw, 3, 2, draw.integer(-3, 3))
        z, a = draw.normal(3), matrix(ellips.precision_factors)
        found: list[tuple[Fraction, StoredClass]] = []
        for k in range(2):
            y = [dot(row, [p - m for p, m in zip(exact(z), exact(ellips.means[k]), strict=True)]) for row in a]
            pairs = zip(exact(ellips.scales[k]), ellips.directions[k], strict=True)
            square = dot(y, y) - sum((1 - s * s) * dot(exact(q), y) ** 2 for s, q in pairs)
            of = (ellips.precision_factors.tolist(), 0.0, ellips.directions[k].tolist(), ellips.scales[k].tolist())
            found.append((square, StoredClass(ellips.means[k].tolist(), *of)))
            assert _square(z.tolist(), found[-1][1]) == square
        (first, one), (second, other) = found
        other = other._replace(scales=one.scales)  # of one determinant: the squares alone decide
        square = _square(z.tolist(), other)
        assert margin_sign(z.tolist(), one, other) == (square > first) - (square < first)
        assert first != second


def test_the_kernel_is_of_its_own_copy_of_the_stored_numbers() -> None:
    ellips = drawn(Draw(0), 3, 2, 1)
    ellips.precision_factors[0, 1:] = 7.0  # nobody is to read these
    stored = ellips.precision_factors.clone()
    kernel, z = LowRankKernel(ellips), Draw(1).normal(2, 3)
    before = kernel.whiten(z)
    assert torch.equal(ellips.precision_factors, stored)
    for values in (ellips.precision_factors, ellips.directions, ellips.scales, ellips.means, ellips.log_priors):
        values *= 3
    assert all(torch.equal(a, b) for a, b in zip(kernel.whiten(z), before, strict=True))
    with torch.no_grad():
        ellips.precision_factors.copy_(stored.tril() * 3)
    assert torch.equal(kernel.factors[0], stored.tril())
