"""Every error bound that the solvers take off for covariances of low rank: in rational numbers, and as theory asks.

As :mod:`tests.soundness.test_solver_errors` does for factors of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from ellips import Ellips
from ellips.certificates.geometries import geometry_of
from ellips.certificates.low_rank_pairs import _residual_error
from ellips.certificates.rounding import UNDERFLOW
from tests.soundness.generators import Draw
from tests.soundness.rationals import (
    Rows,
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
)
from tests.soundness.test_low_rank_errors import drawn, mixture, pull_strength, strengths

UNITS = {torch.float64: U, torch.float32: Fraction(1, 2**24)}
TINY = Fraction(1, 2**1000)
LESS = 1 - 64 * U


class Case(NamedTuple):
    ellips: Ellips
    z: Tensor
    geometry: Any
    powers: list[Rows]  # P_k, exactly
    sizes: list[Fraction]  # ‖A‖²(1 + κ'_k)
    norm: Fraction  # ‖z − c‖, as small as rounding may have made it
    means: list[Fraction]  # ‖μ_k − c‖


def cases(count: int, scales: tuple[int, ...] = (-20, -3, 0, 1, 10)) -> Iterator[Case]:
    """Two classes: apart, nearly one, of one shape, or one; points near, far away and in the middle."""
    for seed in range(count):
        draw = Draw(seed)
        dim = draw.integer(1, 5)
        ellips = drawn(draw, dim, draw.integer(0, min(dim, 3)), scales[seed % len(scales)])
        ellips.precision_factors[-1:] *= 2.0 ** draw.integer(0, 8)
        ellips.log_priors.copy_(-draw.normal(2).abs() * 2.0 ** draw.integer(-3, 4))
        close = (1.0, 2.0 ** -draw.integer(5, 45), 0.0, 0.0)[seed % 4]
        if seed % 4:
            ellips.directions[1] = ellips.directions[0] + close * draw.normal(*ellips.directions.shape[1:])
            ellips.scales[1] = ellips.scales[0] * (1 + close * draw.normal(*ellips.scales.shape[1:]))
        if seed % 12 == 2:  # of one size, but not of one shape
            ellips.directions[1] = draw.normal(*ellips.directions.shape[1:])
        if seed % 6 == 5:
            ellips.scales[seed % 4 // 2] *= 2.0 ** draw.integer(3, 6)
        if seed % 8 in (1, 3, 5):
            ellips.means[1] = ellips.means[0] + close * draw.normal(dim)
        z = 2.0 ** draw.integer(-10, 10) * draw.normal(1, dim) + ellips.means[:1]
        if seed % 5 == 0:
            z = ellips.means.mean(0, keepdim=True)
        geometry = geometry_of(ellips)
        away = exact((z - geometry.center)[0]), *map(exact, geometry.offsets_from_center)
        norm, *means = (length(v) * (1 - gamma(dim + 4)) for v in away)
        own = frobenius(matrix(ellips.precision_factors)) ** 2
        sizes = [own * (1 + pull_strength(ellips, k)) for k in range(2)]
        yield Case(ellips, z, geometry, [precision(ellips, k) for k in range(2)], sizes, norm, means)


def common(ellips: Ellips) -> Rows:
    return gram(matrix(ellips.precision_factors))


def vectors(ellips: Ellips, k: int) -> Rows:
    """v_j = Aᵀq_j."""
    return [
        [dot(column, exact(q)) for column in columns(matrix(ellips.precision_factors))] for q in ellips.directions[k]
    ]


def precision(ellips: Ellips, k: int) -> Rows:
    found = common(ellips)
    for s, v in zip(exact(ellips.scales[k]), vectors(ellips, k), strict=True):
        found = [
            [p - (1 - s * s) * x * y for p, y in zip(row, v, strict=True)] for row, x in zip(found, v, strict=True)
        ]
    return found


def combined(first: Rows, second: Rows, factor: Fraction | int = -1) -> Rows:
    return [[a + factor * b for a, b in zip(*rows, strict=True)] for rows in zip(first, second, strict=True)]


def identity(dim: int) -> Rows:
    return [[Fraction(i == j) for j in range(dim)] for i in range(dim)]


def least(ellips: Ellips, k: int) -> float:
    """What energies are to be at least, in float64."""
    a, lengths = (torch.tensor(list(map(float, x)), dtype=torch.float64) for x in strengths(ellips, k)[:2])
    shared, v = ellips.precision_factors.tril(), ellips.directions[k] @ ellips.precision_factors.tril()
    own = torch.maximum(v.norm(dim=1), lengths * shared.norm() / ellips.dim)
    plain = (a * lengths * own).sum() * shared.norm()
    size = torch.linalg.matrix_norm(v, ord=2)
    return float(torch.minimum(plain, size * (a * lengths).norm() * shared.norm() + a.amax() * size.square()))


def test_what_errors_go_with_is_not_below_its_definition() -> None:
    for ellips, _, geometry, _, sizes, _, _ in cases(60):
        for k in range(2):
            a, lengths, kappa = strengths(ellips, k)
            assert all(number(x) >= y * LESS for x, y in zip(geometry.strengths[k], a, strict=True))
            assert all(abs(number(x) - y) <= 64 * U * y for x, y in zip(geometry.lengths[k], lengths, strict=True))
            assert number(geometry.sizes[k]) >= kappa * LESS
            assert kappa * LESS >= number(geometry.pull_sizes[k]) * Fraction(99, 100) or kappa < 1
            assert number(geometry.pull_sizes[k]) >= pull_strength(ellips, k) * LESS
            assert number(geometry.factor_norms[k]) ** 2 >= sizes[k] * LESS
            norm, reach = torch.tensor(2.0).double(), Fraction(2) + number(geometry.mean_norms[k])
            assert number(geometry.reach(norm, torch.tensor(k))) >= sizes[k] * reach * LESS
            if len(a):
                assert float(geometry.energies[k]) >= 1.249 * least(ellips, k)
                assert float(geometry.energies[k]) <= 1.3 * least(ellips, k) + 1e-12 * float(sizes[k])
                entries = length([x for v in vectors(ellips, k) for x in v])
                assert number(geometry.vector_norms[k]) >= entries * (1 + Fraction(1, 2**23))
            else:
                assert geometry.energies[k] == geometry.pull_sizes[k] == 0


def scores_needed(given: Case, k: int) -> Fraction:
    """γ‖A‖(‖x‖ + ‖ν‖) of each whitened vector, an expanded square, and as much of each direction's share."""
    ellips, z, geometry, _, _, norm, means = given
    d, r = ellips.dim, ellips.scales.shape[1]
    w, eta = exact((z - geometry.center)[0] @ geometry.structure.shared.mT), exact(geometry.whitened[k])
    y = [p - q for p, q in zip(w, eta, strict=True)]
    a, lengths, kappa = strengths(ellips, k)
    size, distance = length(w) + length(eta), length(y)
    slip = gamma(d + 1) * frobenius(matrix(ellips.precision_factors)) * (norm + means[k])
    error = (2 * distance + slip) * slip + gamma(d + 2) * size * size
    each = slip + gamma(d + 1) * size
    inner = [max(Fraction(0), abs(dot(exact(q), y)) - gamma(d + 2) * n * size)
             for q, n in zip(ellips.directions[k], lengths, strict=True)]  # fmt: skip
    error += 2 * each * sum((x * n * c for x, n, c in zip(a, lengths, inner, strict=True)), Fraction(0))
    error += kappa * each * each
    error += gamma(r + 3) * sum((x * c * c for x, c in zip(a, inner, strict=True)), Fraction(0))
    return error * LESS + gamma(3) * (distance * distance * LESS + number(geometry.offset_sizes[k]))


def test_scores_have_the_errors_that_theory_asks_for() -> None:
    for given in cases(100):
        ellips, z, geometry, powers, _, _, _ = given
        found = geometry.score(z, torch.float64)
        for k in range(2):
            away = [p - m for p, m in zip(exact(z[0]), exact(ellips.means[k]), strict=True)]
            square = dot(away, [dot(row, away) for row in powers[k]])
            error = number(found.score_errors[0, k])
            assert abs(number(geometry.offsets[k]) - square - number(found.scores[0, k])) <= error
            needed = scores_needed(given, k)
            assert needed <= error
            assert error <= 60 * needed + 100 * gamma(ellips.dim + 40) * (
                abs(square) + number(geometry.offset_sizes[k])
            )


def true_pull(given: Case, k: int) -> list[Fraction]:
    away = [p - m for p, m in zip(exact(given.z[0]), exact(given.ellips.means[k]), strict=True)]
    return [dot(row, away) for row in given.powers[k]]


@pytest.mark.parametrize("dtype", UNITS)
def test_half_gradients_are_screened_from_above(dtype: torch.dtype) -> None:
    """Above the true ones, by what both classes' pulls are off, and by what squares that cancel have lost."""
    for given in cases(100, (-3, 0, 1)):
        ellips, z, geometry, _, sizes, norm, means = given
        d, r, unit = ellips.dim, ellips.scales.shape[1], UNITS[dtype]
        found = geometry.score(z, dtype)
        own = int(found.prediction)
        b = length([p - q for p, q in zip(true_pull(given, 1 - own), true_pull(given, own), strict=True)])
        bound = number(found.half_gradient_norms[0, 1 - own])
        slip = sum(gamma(4 * d + r + 4) * sizes[k] * (norm + means[k]) for k in range(2))
        w = (z - geometry.center) @ geometry.structure.shared.mT
        bends = [
            geometry.structure.weights[k] * (ellips.directions[k] @ w[0] - geometry.projected[k]) for k in range(2)
        ]
        a = geometry.pulled[own] + bends[own] @ geometry.vectors(torch.float64)[own]
        reach = number(a.norm() + geometry.pulled[1 - own].norm())
        bent = number(geometry.vectors(torch.float64)[1 - own].norm() * bends[1 - own].norm())
        lost = gamma(d + 2 * r + 3, unit) * bent * (bent + 2 * reach) + gamma(d + 3) * reach * reach
        assert bound >= b
        slip += gamma(1, unit) * number(geometry.vectors(torch.float64)[own].norm() * bends[own].norm())
        assert (bound - slip) ** 2 >= lost * LESS * LESS
        assert bound >= slip
        assert bound**2 <= 8 * (b + 20 * slip) ** 2 + 200 * lost + Fraction(1, 10**30)


def test_half_gradients_of_single_problems_are_within_their_error() -> None:
    for given in cases(100):
        ellips, z, geometry, _, sizes, norm, means = given
        d, r, both = ellips.dim, ellips.scales.shape[1], torch.tensor([0, 1])
        x = (z - geometry.center).expand(2, -1)
        pulls = geometry.pull(x, both)
        b = [p - q for p, q in zip(true_pull(given, 1), true_pull(given, 0), strict=True)]
        off = length([p - q for p, q in zip(exact(pulls[1] - pulls[0]), b, strict=True)])
        error = number(geometry.half_gradient_error(x[0].norm(), both[0], both[1]))
        needed = sum(gamma(4 * d + r + 4) * sizes[k] * (norm + means[k]) for k in range(2))
        assert off <= error
        assert needed <= error <= 40 * needed + TINY


def test_decompositions_have_the_errors_that_theory_asks_for() -> None:
    """W − QΛQᵀ and QᵀQ − I as they are; then ΛQᵀx, h = Qᵀ(P_h ν_h − P_l ν_l), and all of it that Q does not reach."""
    for ellips, _, geometry, powers, sizes, _, means in cases(100):
        pairs, d, r = geometry.pairs, ellips.dim, ellips.scales.shape[1]
        low, high = torch.tensor([0]), torch.tensor([1])
        found = pairs._decompose(low, high)
        error, gain, shift = (number(x[0]) for x in (found.error, found.gain_error, found.shift_error))
        alike = torch.equal(ellips.directions[0], ellips.directions[1]) and torch.equal(*ellips.scales)
        if alike:
            assert not found.values.any()
            assert error == gain == 0
            assert (shift == 0) == torch.equal(*geometry.offsets_from_center)
            continue
        u = (torch.cat([*ellips.directions]) @ geometry.structure.shared).mT[None]
        s = torch.cat([geometry.structure.weights[0], -geometry.structure.weights[1]])[None]
        vectors_, values_ = pairs._eigen(u, s)
        q, values = matrix(vectors_[0]), exact(values_[0])
        largest, width = max(map(abs, values)), len(values)
        skew = frobenius(combined(gram(q), identity(width)))
        spread = [[dot([a * v for a, v in zip(x, values, strict=True)], y) for y in q] for x in q]
        residual = frobenius(combined(combined(powers[1], powers[0]), spread))
        power = sum(Fraction(float(geometry.energies[k])) for k in range(2))
        assert error >= residual + skew * largest
        assert error >= _as_seen(u, s, vectors_, values_) + gamma(3 * d + 2) * power * LESS
        assert error <= 40 * d * d * (residual + skew * largest + gamma(3 * d + 2) * power)
        seen = number((vectors_[0].mT @ vectors_[0] - torch.eye(width).double()).norm()) + gamma(d) * width
        assert gain >= (error + (seen + gamma(d + 1)) * largest) * (1 - 8 * U)
        apart = [[dot(row, exact(ellips.means[k] - geometry.center)) for row in powers[k]] for k in range(2)]
        force = [a - b for a, b in zip(apart[1], apart[0], strict=True)]
        inside = [dot(column, force) for column in columns(q)]
        rest = [f - dot(row, inside) for f, row in zip(force, q, strict=True)]
        expected = [*inside, length(rest)] if width < d else inside
        order = torch.cat([values_, values_.new_zeros(1, int(width < d))], 1).sort(dim=1, stable=True)[1][0].tolist()
        off = [expected[j] - x for j, x in zip(order, exact(found.shift[0]), strict=True)]
        assert length(off) <= shift
        reach = sum(sizes[k] * means[k] for k in range(2))
        asked = gamma(4 * d + r + 4) * reach + (gamma(2 * d) + 2 * skew) * length(force) * LESS
        assert asked + Fraction(UNDERFLOW[torch.float64]) / 2 <= shift
        assert shift <= 60 * d * (asked + Fraction(UNDERFLOW[torch.float64]))
        assert [values[j] if j < width else 0 for j in order] == exact(found.values[0])
        for end, column in ((0, found.ends[0, 0]), (-1, found.ends[0, 1])):
            wanted = vectors_[0, :, order[end]] if order[end] < width else torch.zeros(d).double()
            assert torch.equal(column, wanted)
        rotated = torch.cat([vectors_ * values_[:, None], vectors_.new_zeros(1, d, int(width < d))], 2)[0][:, order]
        assert torch.equal(found.rotation[0], rotated)


def _as_seen(u: Tensor, s: Tensor, vectors_: Tensor, values: Tensor) -> Fraction:
    """At least what `_residual_error` makes of its own products, each with the roundings of its sums."""
    found, skew = _residual_error(u, s, vectors_, values)
    (d, width), terms = vectors_.shape[1:], u.shape[2]
    q, c = matrix(vectors_[0]), (vectors_[0].mT @ u[0])
    outside = number((u[0] - vectors_[0] @ c).norm()) + gamma(width + 1) * number(u.norm())
    inside = (c * s) @ u[0].mT - values[0][:, None] * vectors_[0].mT
    strength, largest = number((u * s.unsqueeze(1)).norm()), number(values.abs().amax())
    inner = number(inside.norm()) + gamma(terms + 2) * (strength * number(u.norm()) + largest)
    lacking = number((vectors_[0].mT @ vectors_[0] - torch.eye(width).double()).norm())
    assert number(skew[0]) >= max(frobenius(combined(gram(q), identity(width))), lacking + gamma(d) * width) * LESS
    least_ = outside * strength + (1 + lacking) * inner + 3 * lacking * largest
    assert number(found[0]) >= least_ * LESS
    return least_ * LESS


def test_bends_are_above_what_classes_differ_by() -> None:
    """Of each class, up and down, from the common precision; and of two classes from each other."""
    for ellips, _, geometry, powers, _, _, _ in cases(80):
        shared, dim = common(ellips), ellips.dim
        rises, falls = geometry.bends
        for k in range(2):
            for bound, sign in ((rises[k], 1), (falls[k], -1)):
                room = combined(identity(dim), identity(dim), -1)
                room = combined(room, identity(dim), number(bound) + TINY)
                assert semidefinite(combined(room, combined(powers[k], shared), -sign))
                roots = (-sign * geometry.structure.weights[k]).clamp(min=0).sqrt().unsqueeze(1)
                v = roots * geometry.vectors(torch.float64)[k]
                seen = torch.linalg.eigvalsh(v @ v.mT)[-1].clamp(min=0) if len(v) else torch.zeros(()).double()
                added = gamma(4 * dim + 8) * number(geometry.energies[k])
                assert (
                    number(seen) * (1 - 1000 * U) + added <= number(bound) <= number(seen) * (1 + 1000 * U) + 12 * added
                )
        bounds = geometry.concavity_bounds()
        assert bounds.diagonal().eq(0).all()
        for own, rival in ((0, 1), (1, 0)):
            room = combined(powers[rival], powers[own])
            assert semidefinite(combined(room, identity(dim), number(bounds[own, rival]) + TINY))
            assert bounds[own, rival] == rises[own] + falls[rival]


def _wide(dim: int, rank: int, kind: str) -> Ellips:
    draw = Draw(dim + rank)
    ellips = drawn(draw, dim, rank, 1)
    if kind == "one direction":  # W is all but of rank one
        ellips.scales[0, 0] *= 2.0**12
    elif kind == "aligned":  # all norms are of one direction, along which the means lie, and hardly anything is bent
        ellips.precision_factors[:-1] *= 1e-6
        ellips.scales.copy_(1 + 1e-6 * draw.normal(2, rank))
        ellips.means[:] = ellips.precision_factors[-1] * torch.tensor([1.0, -1.0])[:, None]
    elif kind == "nearly alike":  # W is small, and what it is the difference of is not
        ellips.directions[1], ellips.scales[1] = ellips.directions[0], ellips.scales[0] * (1 + 2.0**-20)
    else:
        ellips.scales[int(kind == "the second is stronger")] *= 16
    return ellips


@pytest.mark.parametrize(
    "kind", ["one direction", "aligned", "nearly alike", "the first is stronger", "the second is stronger"]
)
@pytest.mark.parametrize(
    ("dim", "rank"), [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2), (16, 8), (24, 3), (300, 1), (300, 40), (400, 200)]
)
def test_in_many_dimensions_errors_are_what_theory_asks_for(dim: int, rank: int, kind: str) -> None:
    """The most that sums of so many terms may be off, in float64: nothing here is next to 0."""
    ellips = _wide(dim, rank, kind)
    geometry = geometry_of(ellips)
    pairs, width, less = geometry.pairs, min(2 * rank, dim), 1 - 1e-9
    found = pairs._decompose(torch.tensor([0]), torch.tensor([1]))
    energy, far = float(geometry.energies.sum()), geometry.mean_norms
    u = (torch.cat([*ellips.directions]) @ geometry.structure.shared).mT[None]
    s = torch.cat([geometry.structure.weights[0], -geometry.structure.weights[1]])[None]
    vectors_, values = pairs._eigen(u, s)
    assert vectors_.shape[2] == width
    largest, root = float(values.abs().amax()), width**0.5
    size, strength = float(u.norm()), float((u * s.unsqueeze(1)).norm())
    lacking = float((vectors_[0].mT @ vectors_[0] - torch.eye(width).double()).norm()) + float(gamma(dim)) * width
    # ‖Q‖ = √width, ‖C‖ = ‖U‖: the docstring of `_residual_error`; a matrix is off by what its columns lack, twice.
    asked = float(gamma(width + 1)) * root * size * strength + float(gamma(2 * rank + 2)) * strength * size
    asked += float(gamma(2)) * root * largest + 2 * lacking * largest
    within = vectors_[0].mT @ u[0]
    asked += float((u[0] - vectors_[0] @ within).norm()) * strength
    asked += float(((within * s) @ u[0].mT - values[0][:, None] * vectors_[0].mT).norm())
    seen, skew = (float(v[0]) for v in _residual_error(u, s, vectors_, values))
    assert seen >= less * asked
    assert skew >= less * lacking
    assert float(found.error[0]) >= less * (seen + float(gamma(3 * dim + 2)) * energy)
    rotated = float(gamma(dim + 1)) * root * largest
    assert float(found.gain_error[0]) >= less * (float(found.error[0]) + lacking * largest + rotated)
    reach = float((geometry.factor_norms.square() * far).sum())
    force = float(pairs._force(torch.tensor([0]), torch.tensor([1])).norm())
    turned = (float(gamma(dim + 1)) * (width + 1) ** 0.5 + lacking) * force
    assert float(found.shift_error[0]) >= less * (float(gamma(4 * dim + rank + 4)) * reach + turned)
    rises, falls = geometry.bends
    for bound, sign in ((rises, -1), (falls, 1)):
        v = (sign * geometry.structure.weights).clamp(min=0).sqrt().unsqueeze(2) * geometry.vectors(torch.float64)
        tops = torch.linalg.matrix_norm(v, ord=2).square()
        assert (bound >= less * (tops * (1 - 1e-12) + float(gamma(4 * dim)) * geometry.energies)).all()
    x = torch.ones(1, dim).double()
    for dtype, unit in UNITS.items():
        _hold_half_gradients(ellips, x, dtype, unit)
    screened = geometry.score(x + geometry.center, torch.float64)
    w, shared = x @ geometry.structure.shared.mT, float(ellips.precision_factors.tril().norm())
    for k in range(2):
        y = w[0] - geometry.whitened[k]
        size = float(w.norm() + geometry.whitened[k].norm())
        off = float(gamma(dim + 1)) * shared * float(x.norm() + far[k])
        along = (ellips.directions[k] @ y).abs()
        strength, lengths = geometry.strengths[k], geometry.lengths[k]
        each = off + float(gamma(dim)) * size
        error = (
            2 * float(y.norm()) * off + float(gamma(dim)) * size**2 + float(gamma(rank)) * float(strength @ along**2)
        )
        error += 2 * each * float((strength * lengths) @ along) + float((strength * lengths**2).sum()) * each**2
        assert float(screened.score_errors[0, k]) >= less * error


def _hold_half_gradients(ellips: Ellips, x: Tensor, dtype: torch.dtype, unit: Fraction) -> None:
    """Squares that cancel have what their sums may round added; then what both classes' pulls are off."""
    geometry: Any = geometry_of(ellips)
    dim, rank, both = ellips.dim, ellips.scales.shape[1], torch.tensor([0, 1])
    found = geometry.score(x + geometry.center, dtype)
    own = int(found.prediction)
    slip = geometry.half_gradient_error(x.norm(), *both)
    assert float(slip) >= float(gamma(4 * dim + rank)) * float(geometry.reach(x.norm(), both).sum()) * (1 - 1e-9)
    w = x[0] @ geometry.structure.shared.mT
    bends = [geometry.structure.weights[k] * (ellips.directions[k] @ w - geometry.projected[k]) for k in (own, 1 - own)]
    pulls = [bend @ geometry.vectors(torch.float64)[k] for bend, k in zip(bends, (own, 1 - own), strict=True)]
    a, rival = geometry.pulled[own] + pulls[0], geometry.pulled[1 - own]
    reach, bent = float(a.norm() + rival.norm()), float(geometry.vector_norms[1 - own] * bends[1].norm())
    lost = float(gamma(dim + 2 * rank, unit)) * bent * (bent + 2 * reach) + float(gamma(dim)) * reach**2
    rest = found.half_gradient_norms[0, 1 - own] - slip
    rest = rest - float(gamma(1, unit)) * geometry.vector_norms[own] * bends[0].norm()
    if dim > 50:  # where sums round to all sides, and next to nothing of what they may
        assert float(rest) ** 2 >= 0.7 * lost + float((a - rival - pulls[1]).norm()) ** 2


@pytest.mark.parametrize("dtype", UNITS)
@pytest.mark.parametrize("dim", [1, 2, 5, 9])
def test_squares_that_cancel_entirely_have_what_their_sums_may_round(dim: int, dtype: torch.dtype) -> None:
    """Two of three classes are one: what float64 has left of their half gradients' difference is nothing at all."""
    ellips = Ellips(3, dim, covariance_type="low_rank", rank=0)
    ellips.precision_factors.copy_(Draw(dim).normal(dim, dim).tril())
    ellips.means.copy_(Draw(dim + 1).normal(1, dim) * torch.tensor([[1.0], [1.0], [-5.0]]).double())
    ellips.log_priors[:2] = torch.tensor([-0.5, -1.0]).double()
    ellips.fitted.fill_(True)
    geometry, z = geometry_of(ellips), ellips.means[:1] * 1.5
    found = geometry.score(z, dtype)
    assert found.prediction == 0
    slip = geometry.half_gradient_error((z - geometry.center).norm(), torch.tensor(0), torch.tensor(1))
    rest, reach = float(found.half_gradient_norms[0, 1] - slip), 2 * float(geometry.pulled[0].norm())
    assert float(gamma(dim + 1)) * reach**2 * (1 - 1e-9) <= rest**2 <= 40 * float(gamma(dim + 1)) * reach**2 + 1e-30


@pytest.mark.parametrize("along", [0.0, 2.0**-45, 2.0**-20, 1.0])
@pytest.mark.parametrize("scale", [2.0**10, 2.0**30, 2.0**50])
def test_scores_have_their_errors_where_what_is_taken_off_is_nearly_nothing(along: float, scale: float) -> None:
    """All but at right angles to a direction that weighs much: its own error, once or squared, is all there is."""
    for dim in (2, 3, 7):
        directions = torch.eye(dim).double()[1].expand(2, 1, dim)
        ellips = mixture(torch.eye(dim).double(), directions, torch.full((2, 1), scale).double())
        for size in (1.0, 2.0**-30):
            _hold_score(ellips, size * (torch.eye(dim)[:1] + along * torch.eye(dim)[1:2]).double())


@pytest.mark.parametrize("steep", [20, 60])
def test_scores_have_their_errors_where_whitening_cancels(steep: int) -> None:
    """A v is small and ‖A‖‖v‖ is not."""
    factor = torch.tensor([[1.0, 0.0], [2.0**steep, 1.0]]).double()
    for power in (0, 10, 40):
        z = torch.tensor([[2.0**-power, -(2.0 ** (steep - power))]]).double()
        _hold_score(mixture(factor, torch.zeros(2, 0, 2), torch.zeros(2, 0)), z)


def _hold_score(ellips: Ellips, z: Tensor) -> None:
    geometry, dim = geometry_of(ellips), ellips.dim
    own = frobenius(matrix(ellips.precision_factors)) ** 2
    sizes = [own * (1 + pull_strength(ellips, k)) for k in range(2)]
    norm = length(exact((z - geometry.center)[0])) * (1 - gamma(dim + 4))
    given = Case(ellips, z, geometry, [precision(ellips, k) for k in range(2)], sizes, norm, [Fraction(0)] * 2)
    found = geometry.score(z, torch.float64)
    for k in range(2):
        away = [p - m for p, m in zip(exact(z[0]), exact(ellips.means[k]), strict=True)]
        square = dot(away, [dot(row, away) for row in given.powers[k]])
        error = number(found.score_errors[0, k])
        assert abs(number(geometry.offsets[k]) - square - number(found.scores[0, k])) <= error
        assert scores_needed(given, k) <= error


@pytest.mark.parametrize("wrong", ["values", "vectors", "lengths"])
def test_whatever_is_said_to_be_a_decomposition_its_error_is_seen(wrong: str) -> None:
    """By far less than the whole, and by far more than rounding."""
    for seed in range(20):
        draw = Draw(seed)
        u, s = draw.normal(1, 6, 4), draw.normal(1, 4)
        values, vectors_ = torch.linalg.eigh((u * s.unsqueeze(1)) @ u.mT)
        keep = values.abs().argsort(1, descending=True)[0, :4].sort()[0]
        values, vectors_ = values[:, keep], vectors_[..., keep]
        if wrong == "values":
            values = values + 1e-4 * draw.normal(1, 4)
        elif wrong == "vectors":
            vectors_ = torch.linalg.qr(vectors_ + 1e-4 * draw.normal(1, 6, 4))[0]
        else:
            vectors_ = vectors_ * (1 + 1e-4 * draw.normal(4))
        error, skew = _residual_error(u, s, vectors_, values)
        left = (u * s.unsqueeze(1)) @ u.mT - (vectors_ * values.unsqueeze(1)) @ vectors_.mT
        assert float(torch.linalg.matrix_norm(left, ord=2)) <= float(error) <= 1
        lacking = float((vectors_.mT @ vectors_ - torch.eye(4)).norm())
        assert lacking <= float(skew) <= lacking + 1e-10
