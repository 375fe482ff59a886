"""The sign of a margin in exact arithmetic, for the ties that rounding cannot tell from a lead. Standard library only.

A margin of the stored numbers is D + log ρ with D and ρ rational: D = ‖A_r(z−μ_r)‖² − ‖A_p(z−μ_p)‖² + 2 (log-prior of p
minus that of r, both as stored; the term that normalises them cancels) and ρ = det(A_p)² / det(A_r)². Where ρ = 1 the
sign is D's. Elsewhere log ρ is transcendental (Lindemann), so the margin is not 0 unless D = 0 and ρ = 1, and enough
digits decide.
"""

from __future__ import annotations

import decimal
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

_UNIT = 1074  # every float64 is a multiple of 2^-1074
_MOST_DIGITS = 20_000


class StoredClass(NamedTuple):
    """A class as its float64 numbers.

    Attributes:
        mean: μ.
        factor: A: its rows, or its diagonal alone.
        log_prior: As stored; need not be normalised.
        directions: Rows q_j, and
        scales: s_j, of covariances of low rank: (1 − s_j²)(q_jᵀy)² is taken off ‖y‖², y = A(z−μ), and det A is times
            the s_j.
    """

    mean: Sequence[float]
    factor: Sequence[Sequence[float] | float]
    log_prior: float
    directions: Sequence[Sequence[float]] = ()
    scales: Sequence[float] = ()


def margin_sign(z: Sequence[float], first: StoredClass, second: StoredClass) -> int | None:
    """Return the sign of score_first(z) − score_second(z): −1, 0 or 1; exact.

    None where a number is not finite, a factor is singular, or the digits run out.
    """
    try:
        lead = _square(z, second) - _square(z, first)
        lead += 2 * (Fraction(first.log_prior) - Fraction(second.log_prior))
        (top, up), (bottom, down) = _determinant(first), _determinant(second)
    except (ValueError, OverflowError):  # Fraction(nan), Fraction(inf)
        return None
    if top == 0 or bottom == 0:
        return None
    # log ρ = 2 (log top − log bottom + power log 2)
    power = up - down
    if (top, power) == (bottom, 0):
        return (lead > 0) - (lead < 0)
    digits = 50
    while digits <= _MOST_DIGITS:
        with decimal.localcontext(decimal.Context(prec=digits, Emax=decimal.MAX_EMAX, Emin=decimal.MIN_EMIN)):
            parts = [
                decimal.Decimal(lead.numerator) / decimal.Decimal(lead.denominator),
                2 * decimal.Decimal(top).ln(),  # correctly rounded, as all of this module's operations
                -2 * decimal.Decimal(bottom).ln(),
                2 * power * decimal.Decimal(2).ln(),
            ]
            total = sum(parts, decimal.Decimal(0))
            error = _error(parts, digits)
            if abs(total) > error:
                return 1 if total > 0 else -1
        digits *= 2
    return None


def _error(parts: Sequence[decimal.Decimal], digits: int) -> decimal.Decimal:
    """Bound what the sum of the parts is off by, in 100 units of their last digit; at most 25 are needed.

    A correctly rounded number is off by 5 units of ``10 ** -digits`` of itself. Each part is a logarithm or a quotient,
    at most two products, and up to four sums.
    """
    return sum(map(abs, parts), decimal.Decimal(0)).scaleb(2 - digits)


def _integer(x: float) -> int:
    """Return x · 2^1074."""
    numerator, denominator = x.as_integer_ratio()
    return numerator << (_UNIT + 1 - denominator.bit_length())


def _square(z: Sequence[float], of: StoredClass) -> Fraction:
    """Return the squared distance that a score is made of: ‖A(z−μ)‖², less what is taken off it."""
    away = [_integer(a) - _integer(b) for a, b in zip(z, of.mean, strict=True)]
    y = []
    for j, row in enumerate(of.factor):
        if isinstance(row, float):
            y.append(_integer(row) * away[j])
        else:
            y.append(sum(_integer(a) * away[i] for i, a in enumerate(row[: j + 1])))
    total = Fraction(sum(v * v for v in y), 1 << 4 * _UNIT)
    for direction, scale in zip(of.directions, of.scales, strict=True):
        along = sum(_integer(q) * v for q, v in zip(direction, y, strict=True))
        total -= (1 - Fraction(scale) ** 2) * Fraction(along * along, 1 << 6 * _UNIT)
    return total


def _determinant(of: StoredClass) -> tuple[int, int]:
    """Return |det A| as an odd number (or 0) and a power of two."""
    odd, power = 1, 0
    pivots = [row if isinstance(row, float) else row[j] for j, row in enumerate(of.factor)]
    for pivot in (*pivots, *of.scales):
        value = abs(_integer(pivot))
        shift = max(0, (value & -value).bit_length() - 1)
        odd, power = odd * (value >> shift), power + shift - _UNIT
    return odd, power
