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

from ellips.certificates.closed_form import closed_form_multiplier, closed_form_radius
from ellips.certificates.geometry import Geometry, grouped
from ellips.certificates.rounding import gamma

MAX_DIMENSION = 24  # of the Krylov space; problems that need more are left to an eigen-decomposition
# Dimensions at which the reduced problem is solved: not at each one, for that costs about as much as a product with W.
_LOOK_AT = frozenset({2, 3, 4, 6, 8, 10, 13, 16, 20, MAX_DIMENSION})
_GAP = 1e-11  # relative, between the dual value and its bound, at which a search is over
_CAP = 0.95  # of 1/ℓ, the largest multiplier that Weyl's inequality proves admissible; at 1/ℓ the bound is −∞
_FAR = 1e6  # times m/‖b‖², where W ⪰ 0: every multiplier is admissible there, but the bracket needs an end
_NEWTON_STEPS = 12  # on t; a search cut short costs tightness, and what is not settled goes to a decomposition
_STEP_TOLERANCE = 1e-7  # relative, of t: D is flat at its maximum, where it errs by the square of that
_FLAT = 1e-6  # of m, the slope D'(t) up to which t counts as the maximum
_ACCURATE = 1e-9  # of D, what the residual may take off a bound that counts as the optimum
_TINY = 1e-30  # least divisor, far above float32's underflow: an exhausted space or a pole gives a number, not NaN


class KrylovProblems(NamedTuple):
    """M problems.

    Attributes:
        margin: Lower bounds on m, shape ``(M,)``.
        half_gradient: b, shape ``(M, d)``, float64.
        half_gradient_error: Bounds on its error, shape ``(M,)``.
        prediction: Predicted classes, shape ``(M,)``.
        rival: Rivals, shape ``(M,)``.
        concavity: ℓ, shape ``(M,)``.
    """

    margin: Tensor
    half_gradient: Tensor
    half_gradient_error: Tensor
    prediction: Tensor
    rival: Tensor
    concavity: Tensor


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
    half_gradient_norm = problems.half_gradient.norm(dim=1)
    multiplier, solution = torch.zeros_like(half_gradient_norm), torch.zeros_like(problems.half_gradient)
    rows = (half_gradient_norm > 0).nonzero().squeeze(1)
    margin, goal, concavity, half_gradient_norm = (
        v[rows] for v in (problems.margin, threshold, problems.concavity, half_gradient_norm)
    )
    product = _Difference(geometry, problems.prediction[rows], problems.rival[rows])
    basis = [(problems.half_gradient[rows] / half_gradient_norm.unsqueeze(1)).float()]
    diagonal: list[Tensor] = []
    off: list[Tensor] = []
    for size in range(1, min(MAX_DIMENSION, geometry.dim) + 1):
        if not len(rows):
            break
        vector = product(basis[-1])
        diagonal.append((vector.double() * basis[-1]).sum(1))
        vector -= diagonal[-1].float().unsqueeze(1) * basis[-1]
        if size > 1:
            vector -= off[-1].float().unsqueeze(1) * basis[-2]
        off.append(vector.norm(dim=1).double())
        last = size == min(MAX_DIMENSION, geometry.dim)
        if size in _LOOK_AT or last:
            t, weights, dual, bound = _reduced(margin, half_gradient_norm, concavity, diagonal, off)
            done = (bound >= goal) | (bound >= dual * (1 - _GAP)) | last
            if bool(done.any()):
                ended = done.nonzero().squeeze(1)
                multiplier[rows[ended]] = t[ended]
                total = sum(w[ended].float().unsqueeze(1) * v[ended] for w, v in zip(weights, basis, strict=True))
                solution[rows[ended]] = torch.as_tensor(total).double()
                keep = (~done).nonzero().squeeze(1)
                rows, margin, goal, concavity, half_gradient_norm, vector = (
                    v[keep] for v in (rows, margin, goal, concavity, half_gradient_norm, vector)
                )
                basis, diagonal, off = ([v[keep] for v in list_] for list_ in (basis, diagonal, off))
                product = product.take(keep)
        basis.append(vector / off[-1].clamp(min=_TINY).float().unsqueeze(1))
    return multiplier, solution


def _reduced(
    margin: Tensor, half_gradient_norm: Tensor, concavity: Tensor, diagonal: list[Tensor], off: list[Tensor]
) -> tuple[Tensor, list[Tensor], Tensor, Tensor]:
    """Solve the problem in the Krylov space: t, the weights of x in its basis, the dual value and the bound."""
    high = torch.where(concavity > 0, _CAP / concavity, _FAR * margin / half_gradient_norm.square())
    low = torch.zeros_like(high)
    # The closed form's multiplier: never right of the root.
    closed = closed_form_radius(margin, half_gradient_norm, concavity)
    t = torch.minimum(closed_form_multiplier(closed, half_gradient_norm, concavity), high)
    for _ in range(_NEWTON_STEPS):
        y, definite, half_slope = _tridiagonal(t, half_gradient_norm, diagonal, off)
        energy = half_gradient_norm * y[0]
        value = margin - t * (energy + sum(v.square() for v in y))
        right = ~definite | (value < 0)
        low, high = torch.where(right, low, t), torch.where(right, t, high)
        new = t + value / (2 * half_slope)
        new = torch.where(definite & (new >= low) & (new <= high), new, (low + high) / 2)
        if bool(((new - t).abs() <= _STEP_TOLERANCE * t).all()):
            break
        t = new
    y, _, _ = _tridiagonal(t, half_gradient_norm, diagonal, off)
    dual = t * margin - t.square() * half_gradient_norm * y[0]
    residual = t * off[-1] * y[-1]
    bound = dual - t.square() * residual.square() / (1 - t * concavity).clamp(min=_TINY)
    return t, y, dual, bound


def _tridiagonal(
    t: Tensor, half_gradient_norm: Tensor, diagonal: list[Tensor], off: list[Tensor]
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Solve (I + tT) y = ‖b‖e₁ by Thomas's algorithm; also whether I + tT ≻ 0, and yᵀ(I + tT)⁻¹y."""
    pivots = [1 + t * diagonal[0]]
    ratios: list[Tensor] = []
    for alpha, beta in zip(diagonal[1:], off[:-1], strict=True):
        ratios.append(t * beta / pivots[-1])
        pivots.append(1 + t * alpha - ratios[-1] * t * beta)
    definite = torch.stack(pivots).amin(0) > 0
    forward = [half_gradient_norm]
    for ratio in ratios:
        forward.append(-ratio * forward[-1])
    y = [forward[-1] / pivots[-1]]
    for part, pivot, ratio in zip(forward[-2::-1], pivots[-2::-1], ratios[::-1], strict=True):
        y.append(part / pivot - ratio * y[-1])
    y = y[::-1]
    part = y[0]
    half_slope = part.square() / pivots[0]
    for value, pivot, ratio in zip(y[1:], pivots[1:], ratios, strict=True):
        part = value - ratio * part
        half_slope = half_slope + part.square() / pivot
    return y, definite, half_slope


def _evaluate(geometry: Geometry, problems: KrylovProblems, t: Tensor, x: Tensor, threshold: Tensor) -> KrylovSolution:
    """Bound D(t) from below in float64, from the definition and with rounding errors subtracted."""
    margin, half_gradient, error, prediction, rival, concavity = problems
    d = geometry.dim
    image = _Difference(geometry, prediction, rival)(x)
    residual = half_gradient - x - t.unsqueeze(1) * image
    size, half_gradient_norm, energy = x.norm(dim=1), half_gradient.norm(dim=1), geometry.energies
    slip = error + t * gamma(4 * d + 8) * (energy[prediction] + energy[rival]) * size
    slip = slip + gamma(4) * (half_gradient_norm + size + t * image.norm(dim=1))
    rest = residual.norm(dim=1) * (1 + gamma(d + 2)) + slip
    value = ((half_gradient + residual) * x).sum(1)
    room = 1 - t * concavity - gamma(4)  # tℓ may be next to 1
    value = value + (error + slip) * size + gamma(d + 2) * (half_gradient_norm + rest) * size + rest.square() / room
    dual = t * margin - t.square() * value
    dual = torch.where((room > 0) & (dual > 0), dual * (1 - gamma(8)), 0.0)
    # Where rho is negligible t is optimal: only a multiplier at its cap may be improved upon, or a poor search.
    slope = margin - t * (value + x.square().sum(1))
    open_end = (slope > _FLAT * margin) | (dual == 0)
    accurate = t.square() * rest.square() <= _ACCURATE * dual * room
    return KrylovSolution(t, dual, (accurate & ~open_end) | (dual >= threshold))


class _Difference:
    """v ↦ P_rival v − P_prediction v for problems with different pairs, one product per class that occurs."""

    def __init__(self, geometry: Geometry, prediction: Tensor, rival: Tensor) -> None:
        self._geometry, self._prediction, self._rival = geometry, prediction, rival
        self._groups = [grouped(rival), grouped(prediction)]

    def take(self, rows: Tensor) -> _Difference:
        return _Difference(self._geometry, self._prediction[rows], self._rival[rows])

    def __call__(self, v: Tensor) -> Tensor:
        products = [self._geometry.apply(v, groups) for groups in self._groups]
        return products[0].sub_(products[1])
