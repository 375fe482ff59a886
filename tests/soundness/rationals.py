"""Rational numbers, for tests that hold bounds on rounding errors against what theory asks for; mixtures to try."""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from torch import Tensor

from ellips import Ellips
from tests.soundness.generators import Draw

U = Fraction(1, 2**53)
Rows = list[list[Fraction]]


def gamma(operations: int, unit: Fraction = U) -> Fraction:
    return operations * unit / (1 - operations * unit)


def root(x: Fraction) -> Fraction:
    """The square root, rounded down at 2⁻⁸⁰ of itself or better."""
    shift = max(0, 200 - x.numerator.bit_length() + x.denominator.bit_length()) // 2 * 2
    return Fraction(math.isqrt((x.numerator << shift) // x.denominator), 1 << shift // 2)


def exact(values: Tensor) -> list[Fraction]:
    return [Fraction(x) for x in values.tolist()]


def number(value: Tensor) -> Fraction:
    return Fraction(float(value))


def length(values: list[Fraction]) -> Fraction:
    return root(sum((x * x for x in values), Fraction(0)))


def dot(a: list[Fraction], b: list[Fraction]) -> Fraction:
    return sum((x * y for x, y in zip(a, b, strict=True)), Fraction(0))


def matrix(factor: Tensor) -> Rows:
    return [exact(row) for row in (factor if factor.ndim == 2 else torch.diag(factor))]


def columns(a: Rows) -> Rows:
    return [list(column) for column in zip(*a, strict=True)]


def gram(a: Rows) -> Rows:
    """AᵀA."""
    return [[dot(x, y) for y in columns(a)] for x in columns(a)]


def frobenius(a: Rows) -> Fraction:
    return length([x for row in a for x in row])


def semidefinite(rows: Rows) -> bool:
    """Whether a symmetric matrix is positive definite: all pivots positive, in rational numbers."""
    m = [list(row) for row in rows]
    for j in range(len(m)):
        if m[j][j] <= 0:
            return False
        for i in range(j + 1, len(m)):
            ratio = m[i][j] / m[j][j]
            for k in range(j + 1, i + 1):
                m[i][k] -= ratio * m[k][j]
    return True


def two_classes(draw: Draw, dim: int, kind: str) -> tuple[Ellips, Tensor]:
    """Far apart, or nearly alike so that differences cancel; on very different scales."""
    ellips = Ellips(2, dim, covariance_type=kind)  # type: ignore[arg-type]
    factors, means = ellips.precision_factors, ellips.means
    factors[:] = draw.normal(*factors.shape) * 2.0 ** draw.integer(-3, 3)
    if kind == "full":
        factors.tril_()
        factors[:, -1] *= 2.0 ** draw.integer(0, 12)
    means[:] = draw.normal(2, dim)
    if draw.integer(0, 2):
        close = 2.0 ** -draw.integer(1, 45)
        factors[1] = factors[0] * (1 + close * draw.normal(*factors.shape[1:]))
        means[1] = means[0] + close * draw.normal(dim)
    if draw.integer(0, 3) == 0:
        factors[1] = factors[0]
    ellips.log_priors.copy_(-draw.normal(2).abs() * 2.0 ** draw.integer(-3, 6))
    ellips.fitted.fill_(True)
    return ellips, means[:1] + 2.0 ** draw.integer(-12, 12) * draw.normal(1, dim)
