"""The one-constraint quadratic program behind the exact radius, solved through its secular equation.

For a rival with m(z+δ) = δᵀWδ + 2bᵀδ + m, W = QΛQᵀ and β = Qᵀb, the distance R to {m = 0} is

    R² = max_t D(t),    D(t) = t m − t² Σ_j β_j² / (1 + tλ_j),    1 + tλ_j > 0,

a concave problem (S-lemma). With ℓ = (−λ_min)₊ and μ_j = λ_j + ℓ ≥ 0 the substitution t = u/(1 + uℓ) maps the open
interval of admissible t to u ≥ 0 and takes the poles away:

    D = t (m − u Σ β²/(1 + uμ)),    D'(t) = m − u Σ β²/(1 + uμ) − u(1 + ℓu) Σ β²/(1 + uμ)² .

Whatever u the search ends at, D there is a lower bound on R²: an unfinished search costs tightness, never soundness.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ellips.certificates.closed_form import closed_form_radius
from ellips.certificates.rounding import gamma

_MAX_STEPS = 200
_STEP_TOLERANCE = 1e-9  # relative; D itself is flat there, but the nearest boundary point follows from t
_BRACKET_SLACK = 1e-9  # relative: a step to the bracket's very end is a root there, met up to rounding
_BATCH_ELEMENTS = 2**17  # of the matrices that each step passes over several times


class Problems(NamedTuple):
    """M secular problems.

    Upper bounds on β² and margins, eigenvalues that are bounded from below keep D a lower bound.

    Attributes:
        margin: m, shape ``(M,)``; D is 0 where it is not positive.
        coefficients: β², shape ``(M, d)``.
        spread: μ = λ + ℓ ≥ 0, shape ``(M, d)``, in any order.
        concavity: ℓ = (−λ_min)₊, shape ``(M,)``.
    """

    margin: Tensor
    coefficients: Tensor
    spread: Tensor
    concavity: Tensor

    def take(self, rows: Tensor | slice) -> Problems:
        """Return some of the problems."""
        return Problems(*(tensor[rows] for tensor in self))

    def rounded(self) -> Problems:
        """Return the problems with what evaluating D may round taken off: m and Σ β² may all but cancel in it."""
        terms = gamma(self.coefficients.shape[-1] + 16)
        return self._replace(margin=self.margin * (1 - gamma(16)), coefficients=self.coefficients * (1 + terms))

    def evaluate(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return D'(t), minus its derivative by u, and D."""
        weight = (self.spread * u.unsqueeze(-1)).add_(1).reciprocal_()
        term = self.coefficients * weight
        first = term.sum(-1)
        second = term.mul_(weight).sum(-1)
        third = term.mul_(weight).sum(-1)
        scale = 1 + u * self.concavity
        remaining = self.margin - u * first
        return remaining - u * scale * second, 2 * scale * third, u / scale * remaining


class SecularSolution(NamedTuple):
    """Where the search ended.

    Attributes:
        multiplier: t, shape ``(M,)``; ``inf`` where the boundary is never reached.
        dual: D(t) ≥ 0, shape ``(M,)``; a lower bound on the squared distance.
    """

    multiplier: Tensor
    dual: Tensor


def solve_secular(problems: Problems, threshold: Tensor | None = None) -> SecularSolution:
    """Maximise D(t) for M problems at once.

    Args:
        problems: What to solve.
        threshold: Shape ``(M,)``: a search may end as soon as D reaches it. None: never.

    Returns:
        Multipliers and dual values.
    """
    rows = max(1, _BATCH_ELEMENTS // problems.coefficients.shape[-1])
    problems = problems.rounded()
    parts = []
    for start in range(0, max(1, len(problems.margin)), rows):
        part = slice(start, start + rows)
        parts.append(_solve_batch(problems.take(part), None if threshold is None else threshold[part]))
    return SecularSolution(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def _solve_batch(problems: Problems, threshold: Tensor | None) -> SecularSolution:
    margin, coefficients, _, concavity = problems
    power = coefficients.sum(-1)
    half_gradient_norm = power.sqrt()
    closed = closed_form_radius(margin, half_gradient_norm, concavity)
    lower = closed / half_gradient_norm  # the closed form's multiplier, in u: the root lies right of it
    usual = (margin > 0) & (half_gradient_norm > 0) & lower.isfinite() & (lower > 0)
    unreachable = _unreachable(problems)
    u = torch.where(usual, lower, 0.0)
    dual = torch.where(usual, closed.square(), 0.0)
    rows = usual & ~unreachable
    _search(problems, rows, _start(problems, power, half_gradient_norm, lower), lower, threshold, u, dual)
    multiplier = u / (1 + u * concavity)
    flat = (margin > 0) & (half_gradient_norm == 0) & (concavity > 0)
    multiplier = torch.where(flat, 1 / concavity, multiplier)
    dual = torch.where(flat, margin / concavity, dual)
    return SecularSolution(torch.where(unreachable, torch.inf, multiplier), torch.where(unreachable, torch.inf, dual))


def _search(
    problems: Problems, usual: Tensor, now: Tensor, low: Tensor, threshold: Tensor | None, u: Tensor, dual: Tensor
) -> None:
    """Newton's method on D'(t) in u, safeguarded by a bracket; ``u`` and ``dual`` receive the best points met."""
    rows: Tensor | slice = slice(None)
    high = torch.full_like(now, torch.inf)
    goal = high if threshold is None else threshold
    if not bool(usual.all()):
        rows = usual.nonzero().squeeze(1)
        problems, now, low, high, goal = problems.take(rows), now[rows], low[rows], high[rows], goal[rows]
    for _ in range(_MAX_STEPS):
        if not len(now):
            return
        value, slope, bound = problems.evaluate(now)
        improved = bound > dual[rows]
        dual[rows] = torch.where(improved, bound, dual[rows])
        u[rows] = torch.where(improved, now, u[rows])
        positive = value >= 0
        low, high = torch.where(positive, now, low), torch.where(positive, high, now)
        new = _safeguard(now + value / slope, low, high)
        going = ((new - now).abs() > _STEP_TOLERANCE * now) & (bound < goal)
        left = int(going.sum())
        if left == 0:
            return
        now = new  # a finished search that is carried along only gets better
        if 2 * left < len(now):  # copying costs as much as a step
            keep = going.nonzero().squeeze(1)
            rows = keep if isinstance(rows, slice) else rows[keep]
            problems, now, low, high, goal = problems.take(keep), now[keep], low[keep], high[keep], goal[keep]


def _start(problems: Problems, power: Tensor, half_gradient_norm: Tensor, fallback: Tensor) -> Tensor:
    """The root if all eigenvalues were their mean under the weights β²: right of the true one, and close to it."""
    margin, coefficients, spread, concavity = problems
    mean = torch.linalg.vecdot(coefficients, spread) / power - concavity
    radius = margin / (half_gradient_norm + (power - mean * margin).sqrt())  # NaN: no boundary along the gradient
    multiplier = radius / (half_gradient_norm - mean * radius)
    start = multiplier / (1 - multiplier * concavity)
    return torch.where((start > fallback) & start.isfinite(), start, fallback)


def _unreachable(problems: Problems) -> Tensor:
    """Whether m(z+δ) has no zero: W ⪰ 0 and its minimum m − Σ β²/λ is positive."""
    unreachable = problems.concavity == 0
    rows = unreachable.nonzero().squeeze(1)
    if len(rows):
        margin, coefficients, eigenvalues, _ = problems.take(rows)
        # Along a direction with β = λ = 0 nothing changes; with λ = 0 alone m falls without end.
        drop = torch.where(eigenvalues > 0, coefficients / eigenvalues, torch.inf)
        drop = torch.where((coefficients == 0) & (eigenvalues == 0), 0.0, drop).sum(-1)
        unreachable[rows] = margin - drop > 0
    return unreachable


def _safeguard(new: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Keep a Newton step inside the bracket; where it leaves, halve the bracket (geometrically) or double."""
    inside = (new >= low * (1 - _BRACKET_SLACK)) & (new <= high * (1 + _BRACKET_SLACK))
    return torch.where(inside, new, torch.where(high.isinf(), 2 * low, (low * high).sqrt()))
