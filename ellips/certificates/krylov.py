"""Exact radii without factorisations, for mixtures whose pairs of classes are too many to decompose.

For one problem, min ‖δ‖² s.t. δᵀWδ + 2bᵀδ + m ≤ 0, the Lanczos process started at b builds an orthonormal basis V of
the Krylov space of W with VᵀWV = T tridiagonal. The problem restricted to that space has the same form with a few
unknowns, and its multiplier t converges fast to the full one's. Then x = V (I + tT)⁻¹ ‖b‖e₁ with residual
ρ = b − (I + tW)x bounds the full dual value from below (Golub and Meurant, Matrices, Moments and Quadrature, 2010,
give the quadrature behind it):

    D(t) = t m − t² bᵀ(I + tW)⁻¹b ≥ t m − t² (bᵀx + ρᵀx + ‖ρ‖² / (1 − tℓ)),    ℓ ≥ −λ_min(W) by Weyl's inequality.

Searching runs in float32; the bound that is returned is evaluated in float64 from the definition, with its rounding
error subtracted, and holds whatever the search did. Products with W are grouped by class, so that each precision
matrix is read once for all problems that need it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ellips.certificates.geometry import Geometry
from ellips.certificates.rounding import gamma

_MAX_DIMENSION = 24  # of the Krylov space; problems that need more are left to an eigen-decomposition
_LOOK_AT = frozenset({2, 3, 4, 6, 8, 10, 13, 16, 20, _MAX_DIMENSION})
_GAP = 1e-11  # relative, between the dual value and its bound, at which a search is over
_CAP = 0.95  # of 1/ℓ, the largest multiplier that Weyl's inequality proves admissible
_NEWTON_STEPS = 12


class KrylovProblems(NamedTuple):
    """M problems.

    Attributes:
        margin: Lower bounds on m, shape ``(M,)``.
        gradient: b, shape ``(M, d)``, float64.
        gradient_error: Bounds on its error, shape ``(M,)``.
        first: Predicted classes, shape ``(M,)``.
        second: Rivals, shape ``(M,)``.
        curvature: ℓ, shape ``(M,)``.
    """

    margin: Tensor
    gradient: Tensor
    gradient_error: Tensor
    first: Tensor
    second: Tensor
    curvature: Tensor


class KrylovSolution(NamedTuple):
    """Where the search ended.

    Attributes:
        multiplier: t, shape ``(M,)``.
        dual: A lower bound on D(t), shape ``(M,)``, at least 0.
        settled: Whether that bound is as good as the optimum, or has reached the threshold, shape ``(M,)``.
    """

    multiplier: Tensor
    dual: Tensor
    settled: Tensor


def solve_krylov(geometry: Geometry, problems: KrylovProblems, threshold: Tensor) -> KrylovSolution:
    """Bound M squared distances from below, tightly where they are below a threshold.

    Args:
        geometry: The mixture.
        problems: What to solve.
        threshold: Shape ``(M,)``; a search may end once its bound reaches it. ``inf``: never.

    Returns:
        Multipliers, bounds, and which problems are settled.
    """
    multiplier, x = _search(geometry, problems, threshold)
    return _evaluate(geometry, problems, multiplier, x, threshold)


def _search(geometry: Geometry, problems: KrylovProblems, threshold: Tensor) -> tuple[Tensor, Tensor]:
    """Return multipliers and approximate (I + tW)⁻¹b."""
    norm = problems.gradient.norm(dim=1)
    multiplier, solution = torch.zeros_like(norm), torch.zeros_like(problems.gradient)
    rows = (norm > 0).nonzero().squeeze(1)
    margin, goal, curvature, norm = (v[rows] for v in (problems.margin, threshold, problems.curvature, norm))
    product = _Difference(geometry, problems.first[rows], problems.second[rows])
    basis = [(problems.gradient[rows] / norm.unsqueeze(1)).float()]
    diagonal: list[Tensor] = []
    off: list[Tensor] = []
    for size in range(1, min(_MAX_DIMENSION, geometry.dim) + 1):
        if not len(rows):
            break
        vector = product(basis[-1])
        diagonal.append((vector.double() * basis[-1]).sum(1))
        vector -= diagonal[-1].float().unsqueeze(1) * basis[-1]
        if size > 1:
            vector -= off[-1].float().unsqueeze(1) * basis[-2]
        off.append(vector.norm(dim=1).double())
        last = size == min(_MAX_DIMENSION, geometry.dim)
        if size in _LOOK_AT or last:
            t, weights, dual, bound = _reduced(margin, norm, curvature, diagonal, off)
            done = (bound >= goal) | (bound >= dual * (1 - _GAP)) | last
            if bool(done.any()):
                ended = done.nonzero().squeeze(1)
                multiplier[rows[ended]] = t[ended]
                total = sum(w[ended].float().unsqueeze(1) * v[ended] for w, v in zip(weights, basis, strict=True))
                solution[rows[ended]] = torch.as_tensor(total).double()
                keep = (~done).nonzero().squeeze(1)
                rows, margin, goal, curvature, norm, vector = (
                    v[keep] for v in (rows, margin, goal, curvature, norm, vector)
                )
                basis, diagonal, off = ([v[keep] for v in list_] for list_ in (basis, diagonal, off))
                product = product.take(keep)
        basis.append(vector / off[-1].clamp(min=1e-30).float().unsqueeze(1))
    return multiplier, solution


def _reduced(
    margin: Tensor, norm: Tensor, curvature: Tensor, diagonal: list[Tensor], off: list[Tensor]
) -> tuple[Tensor, list[Tensor], Tensor, Tensor]:
    """Solve the problem in the Krylov space: t, the weights of x in its basis, the dual value and the bound."""
    high = torch.where(curvature > 0, _CAP / curvature, 1e6 * margin / norm.square())
    low = torch.zeros_like(high)
    # The closed form's multiplier: never right of the root.
    closed = margin / ((norm.square() + curvature * margin).sqrt() + norm)
    t = torch.minimum(closed / (curvature * closed + norm), high)
    for _ in range(_NEWTON_STEPS):
        y, definite, curve = _tridiagonal(t, norm, diagonal, off)
        energy = norm * y[0]
        value = margin - t * (energy + sum(v.square() for v in y))
        right = ~definite | (value < 0)
        low, high = torch.where(right, low, t), torch.where(right, t, high)
        new = t + value / (2 * curve)
        new = torch.where(definite & (new >= low) & (new <= high), new, (low + high) / 2)
        if bool(((new - t).abs() <= 1e-7 * t).all()):
            break
        t = new
    y, _, _ = _tridiagonal(t, norm, diagonal, off)
    dual = t * margin - t.square() * norm * y[0]
    residual = t * off[-1] * y[-1]
    bound = dual - t.square() * residual.square() / (1 - t * curvature).clamp(min=1e-30)
    return t, y, dual, bound


def _tridiagonal(
    t: Tensor, norm: Tensor, diagonal: list[Tensor], off: list[Tensor]
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Solve (I + tT) y = ‖b‖e₁ by Thomas's algorithm; also whether I + tT ≻ 0, and yᵀ(I + tT)⁻¹y."""
    pivots = [1 + t * diagonal[0]]
    ratios: list[Tensor] = []
    for alpha, beta in zip(diagonal[1:], off[:-1], strict=True):
        ratios.append(t * beta / pivots[-1])
        pivots.append(1 + t * alpha - ratios[-1] * t * beta)
    definite = torch.stack(pivots).amin(0) > 0
    forward = [norm]
    for ratio in ratios:
        forward.append(-ratio * forward[-1])
    y = [forward[-1] / pivots[-1]]
    for part, pivot, ratio in zip(forward[-2::-1], pivots[-2::-1], ratios[::-1], strict=True):
        y.append(part / pivot - ratio * y[-1])
    y = y[::-1]
    part = y[0]
    curve = part.square() / pivots[0]
    for value, pivot, ratio in zip(y[1:], pivots[1:], ratios, strict=True):
        part = value - ratio * part
        curve = curve + part.square() / pivot
    return y, definite, curve


def _evaluate(geometry: Geometry, problems: KrylovProblems, t: Tensor, x: Tensor, threshold: Tensor) -> KrylovSolution:
    """Bound D(t) from below in float64, from the definition and with rounding errors subtracted."""
    margin, b, error, first, second, curvature = problems
    d = geometry.dim
    image = _Difference(geometry, first, second)(x)
    residual = b - x - t.unsqueeze(1) * image
    size, length, energy = x.norm(dim=1), b.norm(dim=1), geometry.factor_norms.square()
    slip = error + t * gamma(4 * d + 8) * (energy[first] + energy[second]) * size
    slip = slip + gamma(4) * (length + size + t * image.norm(dim=1))
    rest = residual.norm(dim=1) * (1 + gamma(d + 2)) + slip
    value = ((b + residual) * x).sum(1)
    room = (1 - t * curvature) * (1 - gamma(4))
    value = value + (error + slip) * size + gamma(d + 2) * (length + rest) * size + rest.square() / room
    dual = t * margin - t.square() * value
    dual = torch.where((room > 0) & (dual > 0), dual * (1 - gamma(8)), 0.0)
    # Where rho is negligible t is optimal: only a multiplier at its cap may be improved upon, or a poor search.
    slope = margin - t * (value + x.square().sum(1))
    open_end = (slope > 1e-6 * margin) | (dual == 0)
    accurate = t.square() * rest.square() <= 1e-9 * dual * room
    return KrylovSolution(t, dual, (accurate & ~open_end) | (dual >= threshold))


class _Difference:
    """v ↦ P_second v − P_first v for problems with different classes, one product per class that occurs."""

    def __init__(self, geometry: Geometry, first: Tensor, second: Tensor) -> None:
        self._geometry, self._first, self._second = geometry, first, second
        self._groups = [grouped(second), grouped(first)]

    def take(self, rows: Tensor) -> _Difference:
        return _Difference(self._geometry, self._first[rows], self._second[rows])

    def __call__(self, v: Tensor) -> Tensor:
        products = [apply_grouped(self._geometry.precisions_in(v.dtype), v, *groups) for groups in self._groups]
        return products[0].sub_(products[1])


def grouped(classes: Tensor) -> tuple[Tensor, list[int], list[int]]:
    """Return the order that sorts by class, the classes that occur, and how often."""
    order = classes.argsort()
    found, counts = torch.unique_consecutive(classes[order], return_counts=True)
    return order, found.tolist(), counts.tolist()


def apply_grouped(matrices: Tensor, v: Tensor, order: Tensor, found: list[int], counts: list[int]) -> Tensor:
    """Return rows v_i M_{k(i)} for symmetric matrices, grouped by k.

    Args:
        matrices: Shape ``(K, d, d)``.
        v: Shape ``(M, d)``.
        order: Permutation that sorts the rows by class.
        found: The classes that occur, ascending.
        counts: How often each occurs.
    """
    ordered, result = v[order], torch.empty_like(v)
    start = 0
    for k, count in zip(found, counts, strict=True):
        rows = slice(start, start + count)
        torch.mm(ordered[rows], matrices[k], out=result[rows])
        start += count
    return torch.empty_like(v).index_copy_(0, order, result)
