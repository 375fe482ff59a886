"""Distances to the boundary in many dimensions and among many classes, enclosed by ball arithmetic.

Any t with I + tW ≻ 0 bounds the squared distance to a rival from below by D(t); any point that the rival wins bounds it
from above (METHOD's dual and primal). Newton's method finds a t where the two meet to forty digits. Nothing that it
starts from has to be right.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ellips import Ellips
from ellips.certificates.multipliers import find_multipliers
from tests.soundness.oracle import Balls, definite, flint, working_precision

BITS = 400
_STEPS = 12  # of Newton's method, from float64's digits or fewer to 400 bits
_MARGIN = 40  # digits by which t is moved to either side


class Enclosure(NamedTuple):
    """Proven bounds on the distance to the nearest rival, in balls."""

    low: flint.arb
    high: flint.arb


class _Problem(NamedTuple):
    w: flint.arb_mat
    b: flint.arb_mat
    m: flint.arb


def enclosed_distance(ellips: Ellips, z: Tensor, prediction: int) -> Enclosure | None:
    """Enclose the distance from z, shape ``(d,)``, to the nearest point where another class wins.

    None where no finite one was enclosed, as where no class is ever reached, or in the hard case.
    """
    with working_precision(BITS):
        return _nearest(ellips, z, prediction)


def _nearest(ellips: Ellips, z: Tensor, prediction: int) -> Enclosure | None:
    balls, rivals = Balls(ellips, BITS), [k for k in range(ellips.num_classes) if k != prediction]
    power, pull, score = balls.matrix(z, prediction)
    problems = {}
    for k in rivals:
        other = balls.matrix(z, k)
        problems[k] = _Problem(other[0] - power, other[1] - pull, score - other[2])
    points, radius = torch.zeros(len(rivals), dtype=torch.int64), torch.zeros(len(rivals), dtype=torch.float64)
    own = torch.tensor([prediction])
    start = find_multipliers(ellips, z[None], own, points, torch.tensor(rivals), radius).tolist()
    guesses = dict(zip(rivals, start, strict=True))
    order = sorted((k for k in rivals if 0 < guesses[k] < torch.inf), key=lambda k: _roughly(problems[k], guesses[k]))
    if not order:
        return None
    found = _enclose(problems[order[0]], guesses[order[0]])
    if found is None:
        return None
    top = _largest_eigenvalue(power)
    for k in rivals:
        if k == order[0] or _far(problems[k], found.high, top) or _beyond(problems[k], found.high, guesses[k]):
            continue
        other = _enclose(problems[k], guesses[k]) if guesses[k] > 0 else None
        if other is None:
            return None
        found = Enclosure(min(found.low, other.low), min(found.high, other.high))
    return found


def _largest_eigenvalue(power: flint.arb_mat) -> flint.arb:
    """An upper bound on λ_max, by the trace of the 16th power."""
    for _ in range(4):
        power = power * power
    return power.trace().root(16)


def _far(problem: _Problem, radius: flint.arb, top: flint.arb) -> bool:
    """Whether m − 2R‖b‖ − R²λ > 0 proves that a rival is farther than the radius."""
    length = sum((x * x for x in problem.b.entries()), flint.arb(0)).sqrt()
    return bool(problem.m - 2 * radius * length - radius**2 * top > 0)


def _beyond(problem: _Problem, radius: flint.arb, t: float) -> bool:
    """Whether a Cholesky factorisation in balls at the multiplier proves that a rival is farther than the radius."""
    if not t > 0:
        return False
    slope, d = flint.arb(t) ** -1 if t < torch.inf else flint.arb(0), problem.w.nrows()
    rows = [[problem.w[i, j] for j in range(d)] + [problem.b[i, 0]] for i in range(d)]
    rows.append([problem.b[j, 0] for j in range(d)] + [problem.m - slope * radius**2])
    for i in range(d):
        rows[i][i] += slope
    return definite(rows)


def _enclose(problem: _Problem, t: float) -> Enclosure | None:
    d, at = problem.w.nrows(), flint.arb(t)
    one = flint.arb_mat([[int(i == j) for j in range(d)] for i in range(d)])

    def system(s: flint.arb) -> flint.arb_mat:
        return one + problem.w * s

    def fall(s: flint.arb) -> tuple[flint.arb_mat, flint.arb]:
        """The point δ(s), and the margin there."""
        delta = system(s).solve(problem.b * -s)
        return delta, problem.m + _dot(delta, problem.w * delta) + 2 * _dot(problem.b, delta)

    try:
        for _ in range(_STEPS):
            delta, margin = fall(at)
            step = margin * at**2 / (2 * _dot(delta, system(at).solve(delta)))
            at = (at + step).mid()
            if abs(step) < abs(at) * flint.arb(10) ** -(_MARGIN + 5):
                break
        low, high = (at * (1 + sign * flint.arb(10) ** -_MARGIN) for sign in (-1, 1))
        matrix = system(low)
        if not definite([[matrix[i, j] for j in range(d)] for i in range(d)]):
            return None
        dual = low * problem.m + low * _dot(problem.b, fall(low)[0])
        delta, margin = fall(high)
    except ZeroDivisionError:  # a singular system
        return None
    if not (margin <= 0 and dual > 0):
        return None
    return Enclosure(flint.arb(dual.sqrt().lower()), flint.arb(_dot(delta, delta).sqrt().upper()))


def _dot(x: flint.arb_mat, y: flint.arb_mat) -> flint.arb:
    return (x.transpose() * y)[0, 0]


def _roughly(problem: _Problem, t: float) -> float:
    """D(t), in no order that matters."""
    try:
        d = problem.w.nrows()
        w = torch.tensor([[float(problem.w[i, j]) for j in range(d)] for i in range(d)]).double()
        b = torch.tensor([float(x) for x in problem.b.entries()]).double()
        solved = torch.linalg.solve(torch.eye(d).double() + t * w, b)
        return float(t * float(problem.m) - t * t * torch.dot(b, solved))
    except RuntimeError:
        return torch.inf
