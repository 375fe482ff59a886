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

_MAX_STEPS = 200
_STEP_TOLERANCE = 1e-9  # relative; D itself is flat there, but the nearest boundary point follows from t


class SecularSolution(NamedTuple):
    """Where the search ended.

    Attributes:
        multiplier: t, shape ``(M,)``; ``inf`` where the boundary is never reached.
        dual: D(t) ≥ 0, shape ``(M,)``; a lower bound on the squared distance.
    """

    multiplier: Tensor
    dual: Tensor


def solve_secular(
    margin: Tensor, coefficients: Tensor, eigenvalues: Tensor, threshold: Tensor | None = None
) -> SecularSolution:
    """Maximise D(t) for M problems at once.

    Args:
        margin: m, shape ``(M,)``; D is 0 where it is not positive.
        coefficients: β² (component-wise upper bounds keep D a lower bound), shape ``(M, d)``.
        eigenvalues: λ (lower bounds keep D a lower bound), shape ``(M, d)``, in any order.
        threshold: Shape ``(M,)``: a search may end as soon as D reaches it. None: never.

    Returns:
        Multipliers and dual values.
    """
    curvature = (-eigenvalues.amin(-1)).clamp(min=0)
    gradient = coefficients.sum(-1).sqrt()
    spread = eigenvalues + curvature.unsqueeze(-1)
    start = _start(margin, coefficients, eigenvalues, gradient, curvature)
    closed = closed_form_radius(margin, gradient, curvature)
    lower = closed / gradient  # the closed form's multiplier, in u: a root would lie right of it
    open_ = (margin > 0) & (gradient > 0) & lower.isfinite() & (lower > 0)
    unreachable = (margin > 0) & ~_reachable(margin, coefficients, eigenvalues)
    u = torch.where(open_, lower, 0.0)
    dual = torch.where(open_, closed.square(), 0.0)
    rows = (open_ & ~unreachable).nonzero().squeeze(1)
    problem = _Problem(margin, coefficients, spread, curvature).take(rows)
    limit = torch.full_like(margin, torch.inf) if threshold is None else threshold
    low, high, now, goal = lower[rows], torch.full_like(lower, torch.inf)[rows], start[rows], limit[rows]
    for _ in range(_MAX_STEPS):
        if not len(rows):
            break
        value, slope, bound = problem.evaluate(now)
        improved = bound > dual[rows]
        dual[rows] = torch.where(improved, bound, dual[rows])
        u[rows] = torch.where(improved, now, u[rows])
        low, high = torch.where(value >= 0, now, low), torch.where(value < 0, now, high)
        new = _safeguard(now + value / slope, low, high)
        going = ((new - now).abs() > _STEP_TOLERANCE * now) & (bound < goal)
        if not bool(going.all()):
            keep = going.nonzero().squeeze(1)
            rows, problem, new, low, high, goal = (
                rows[keep], problem.take(keep), new[keep], low[keep], high[keep], goal[keep]
            )  # fmt: skip
        now = new
    multiplier = u / (1 + u * curvature)
    flat = (margin > 0) & (gradient == 0) & (curvature > 0)
    multiplier = torch.where(flat, 1 / curvature, multiplier)
    dual = torch.where(flat, margin / curvature, dual)
    return SecularSolution(torch.where(unreachable, torch.inf, multiplier), torch.where(unreachable, torch.inf, dual))


class _Problem(NamedTuple):
    margin: Tensor
    coefficients: Tensor
    spread: Tensor
    curvature: Tensor

    def take(self, rows: Tensor) -> _Problem:
        return _Problem(*(tensor[rows] for tensor in self))

    def evaluate(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """D'(t), minus its derivative by u, and D."""
        weight = (self.spread * u.unsqueeze(-1)).add_(1).reciprocal_()
        term = self.coefficients * weight
        first = term.sum(-1)
        second = term.mul_(weight).sum(-1)
        third = term.mul_(weight).sum(-1)
        scale = 1 + u * self.curvature
        remaining = self.margin - u * first
        return remaining - u * scale * second, 2 * scale * third, u / scale * remaining


def _start(margin: Tensor, coefficients: Tensor, eigenvalues: Tensor, gradient: Tensor, curvature: Tensor) -> Tensor:
    """The root if all eigenvalues were their mean under the weights β²: right of the true one, and close to it."""
    mean = (coefficients * eigenvalues).sum(-1) / gradient.square()
    root = (gradient.square() - mean * margin).sqrt()  # NaN: the gradient direction misses the boundary
    radius = margin / (gradient + root)
    multiplier = radius / (gradient - mean * radius)
    start = multiplier / (1 - multiplier * curvature)
    fallback = closed_form_radius(margin, gradient, curvature) / gradient
    return torch.where((start > fallback) & start.isfinite(), start, fallback)


def _reachable(margin: Tensor, coefficients: Tensor, eigenvalues: Tensor) -> Tensor:
    """Whether m(z+δ) has a zero: not so if W ⪰ 0 and its minimum m − Σ β²/λ is positive."""
    # Along a direction with β = λ = 0 nothing changes; with λ = 0 alone m falls without end.
    drop = torch.where(eigenvalues > 0, coefficients / eigenvalues, torch.inf)
    drop = torch.where((coefficients == 0) & (eigenvalues == 0), 0.0, drop).sum(-1)
    return (eigenvalues.amin(-1) < 0) | ~(margin - drop > 0)


def _safeguard(new: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Keep a Newton step inside the bracket; where it leaves, halve the bracket (geometrically) or double."""
    middle = torch.where(high.isinf(), 2 * low, (low * high).sqrt())
    slack = 1e-9  # a step to the bracket's very end is a root there, met up to rounding
    return torch.where((new >= low * (1 - slack)) & (new <= high * (1 + slack)), new, middle)
