"""What is true of a classifier as it is stored: distances to 120 digits, and proofs by ball arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mpmath
import pytest
import torch
from mpmath import mp, mpf
from torch import Tensor

from ellips import Ellips

flint = pytest.importorskip("flint", reason="ball arithmetic comes from python-flint, of the `dev` extra")

DIGITS = 120


def _factor(ellips: Ellips, k: int) -> list[list[float]]:
    """A_k, or the factor that all classes share."""
    rows = ellips.precision_factors.detach()
    if ellips.covariance_type == "low_rank":
        return rows.tril().tolist()
    return (torch.diag(rows[k]) if rows.ndim == 2 else rows[k].tril()).tolist()


def _directions(ellips: Ellips, k: int) -> list[tuple[list[float], float]]:
    """Directions and scales of a class, of covariances of low rank."""
    if ellips.covariance_type != "low_rank":
        return []
    return list(zip(ellips.directions[k].tolist(), ellips.scales.detach()[k].tolist(), strict=True))


def true_distance(ellips: Ellips, z: Tensor, prediction: int, rival: int) -> mpf:
    """Distance from z, shape ``(d,)``, to where the rival's score reaches the prediction's; to 80 digits and more."""
    with mp.workdps(DIGITS):
        return _distance(ellips, z, prediction, rival)


def _distance(ellips: Ellips, z: Tensor, prediction: int, rival: int) -> mpf:
    dim, point = ellips.dim, mpmath.matrix(z.tolist())
    powers, pulls, scores = [], [], []
    for k in (prediction, rival):
        a = mpmath.matrix(_factor(ellips, k))
        y = a * (point - mpmath.matrix(ellips.means[k].tolist()))
        power, pull, square = a.T * a, a.T * y, mpmath.fsum(v * v for v in y)
        log = mpmath.fsum(mpmath.log(abs(a[j, j])) for j in range(dim))
        for direction, scale in _directions(ellips, k):
            q, weight = mpmath.matrix(direction), 1 - mpf(scale) ** 2
            v, along = a.T * q, mpmath.fsum(left * right for left, right in zip(q, y, strict=True))
            power, pull = power - weight * v * v.T, pull - weight * along * v
            square, log = square - weight * along**2, log + mpmath.log(abs(mpf(scale)))
        powers.append(power)
        pulls.append(pull)
        scores.append(2 * log + 2 * mpf(float(ellips.log_priors[k])) - square)
    margin, w, b = scores[0] - scores[1], powers[1] - powers[0], pulls[1] - pulls[0]
    if margin <= 0:
        return mpf(0)
    values, vectors = mpmath.eigsy(w)
    squares = [v * v for v in vectors.T * b]
    scale = max(max(abs(v) for v in values), max(abs(x) for p in powers for x in p) * mpf(10) ** -30)
    size = max(1, max(squares))
    values = [v if abs(v) > scale * mpf(10) ** -(DIGITS - 45) else mpf(0) for v in values]
    squares = [s if s > size * mpf(10) ** -(2 * DIGITS - 80) else mpf(0) for s in squares]
    pairs = list(zip(values, squares, strict=True))
    lowest = min(values)
    if lowest >= 0 and all(v > 0 or s == 0 for v, s in pairs):
        if margin - mpmath.fsum(s / v for v, s in pairs if v > 0) > 0:
            return mpf("inf")

    def slope(t: mpf) -> mpf:
        return margin - mpmath.fsum(s * t * (2 + t * v) / (1 + t * v) ** 2 for v, s in pairs if s)

    def dual(t: mpf) -> mpf:
        return t * margin - t * t * mpmath.fsum(s / (1 + t * v) for v, s in pairs if s)

    low, high = mpf(0), mpf(1)
    if lowest < 0:
        end = -1 / lowest
        if all(s == 0 for v, s in pairs if v == lowest) and slope(end) >= 0:  # the hard case
            return mpmath.sqrt(dual(end))
        high = end
    else:
        while slope(high) > 0:
            high *= 4
    for _ in range(int(DIGITS * 3.4)):
        middle = (low + high) / 2
        if lowest < 0 and middle == high:
            break
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    return mpmath.sqrt(dual(low))


def nearest_distance(ellips: Ellips, z: Tensor, prediction: int) -> mpf:
    """The largest radius that may be claimed: the distance to the nearest of all rivals."""
    return min(true_distance(ellips, z, prediction, k) for k in range(ellips.num_classes) if k != prediction)


@contextmanager
def working_precision(bits: int) -> Iterator[None]:
    """Compute with so many bits, and with as many as before afterwards."""
    before = flint.ctx.prec
    flint.ctx.prec = bits
    try:
        yield
    finally:
        flint.ctx.prec = before


def exact_winner(ellips: Ellips, z: Tensor, bits: int = 4000) -> int:
    """The class of the highest score at z, shape ``(d,)``; of those that so many bits cannot tell apart the lowest."""
    with working_precision(bits):
        balls = Balls(ellips, bits)
        scores = [balls.matrix(z, k)[2] for k in range(ellips.num_classes)]
        return next(k for k, score in enumerate(scores) if not any(other > score for other in scores))


class Balls:
    """A classifier in ball arithmetic.

    Args:
        ellips: The classifier.
        bits: Precision.
    """

    def __init__(self, ellips: Ellips, bits: int = 200) -> None:
        flint.ctx.prec = bits
        self._ellips = ellips

    def matrix(self, z: Tensor, k: int) -> tuple[object, object, object]:
        """Return P_k, P_k(z − μ_k) and the score of class k, without a determinant that all classes share."""
        a = flint.arb_mat(_factor(self._ellips, k))
        y = a * (_column(z) - _column(self._ellips.means[k]))
        score = -(y.transpose() * y)[0, 0] + 2 * flint.arb(float(self._ellips.log_priors[k]))
        for j in range(self._ellips.dim if self._ellips.covariance_type != "low_rank" else 0):
            score += 2 * abs(a[j, j]).log()
        power, pull = a.transpose() * a, a.transpose() * y
        for direction, scale in _directions(self._ellips, k):
            q, weight = _column(torch.tensor(direction, dtype=torch.float64)), 1 - flint.arb(scale) ** 2
            v, along = a.transpose() * q, (q.transpose() * y)[0, 0]
            power, pull = power - v * v.transpose() * weight, pull - v * (weight * along)
            score += weight * along**2 + 2 * abs(flint.arb(scale)).log()
        return power, pull, score

    def proves(
        self, z: Tensor, prediction: int, rival: int, slope: float, radius: float, margin: float | None = None
    ) -> bool:
        """Prove that M is positive definite at g = ``slope``, by a Cholesky factorisation in balls.

        A margin may be given in the place of the true one.
        """
        (p0, b0, s0), (p1, b1, s1) = self.matrix(z, prediction), self.matrix(z, rival)
        d, w, b = self._ellips.dim, p1 - p0, b1 - b0
        m = [[w[i, j] for j in range(d)] + [b[i, 0]] for i in range(d)]
        m.append([b[j, 0] for j in range(d)] + [s0 - s1 if margin is None else flint.arb(margin)])
        for i in range(d):
            m[i][i] += flint.arb(slope)
        if slope:
            m[d][d] -= flint.arb(slope) * flint.arb(radius) ** 2
        return definite(m)


def definite(m: list[list[Any]]) -> bool:
    """Prove a symmetric matrix of balls, of which the lower triangle is read and overwritten, positive definite."""
    for j in range(len(m)):
        if not m[j][j] > 0:
            return False
        for i in range(j + 1, len(m)):
            ratio = m[i][j] / m[j][j]
            for k in range(j + 1, i + 1):
                m[i][k] -= ratio * m[k][j]
    return True


def _column(x: Tensor) -> object:
    return flint.arb_mat([[value] for value in x.tolist()])
