"""Distribution function of Σ_l a_l (n_l + c_l)² with independent standard normal n_l and positive weights a_l.

With equal weights it is a scaled non-central χ², which SciPy has. In two dimensions it is one integral over an angle,
whose integrand is smooth. With unequal weights in more dimensions the characteristic function is inverted by the
trapezoidal sum of R. B. Davies, "Numerical inversion of a characteristic function", Biometrika 60 (1973), whose two
errors are controlled: the step is chosen so that the aliased mass is below 1e-12, and the sum goes on until what is
left of it is below the tolerance.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr
from scipy.stats import ncx2

Array = NDArray[np.float64]

# Laurent and Massart (2000), Lemma 1 in its non-central form (Birgé 2001, Lemma 8.1): P(Q > upper) <= exp(-_TAIL).
_TAIL = 28.0
_MAX_NODES = 2**17
_BLOCK = 2**21


def quadratic_form_cdf(x: Array, weights: Array, shifts: Array, tolerance: float = 1e-8) -> Array:
    """Return P(Σ_l a_l (n_l + c_l)² ≤ x).

    Args:
        x: Any shape, thresholds.
        weights: Shape ``(d,)``, positive a_l.
        shifts: Shape ``(d,)``, c_l.
        tolerance: Absolute error asked for, where the weights are unequal. For three dimensions and small shifts the
            sum decays slowly; it is cut after 131,072 terms, which leaves an error of about 1e-6.

    Returns:
        Probabilities of the shape of ``x``.

    Raises:
        ValueError: If weights and shifts are not two vectors of one length or a weight is not positive.
    """
    x, weights, shifts = (np.asarray(v, dtype=np.float64) for v in (x, weights, shifts))
    if weights.ndim != 1 or weights.shape != shifts.shape or not np.all(weights > 0):
        raise ValueError(
            f"Expected `weights` and `shifts` to be vectors of one length, weights positive, but got shapes "
            f"{weights.shape} and {shifts.shape} with smallest weight {weights.min() if weights.size else 'none'}."
        )
    noncentrality = float(shifts @ shifts)
    if np.ptp(weights) <= 1e-9 * weights.max():
        scaled = np.maximum(x, 0) / weights.mean()
        return np.asarray(ncx2.cdf(scaled, len(weights), noncentrality), dtype=np.float64)
    if len(weights) == 2:
        return _planar_cdf(x, weights, shifts)
    mean = float(weights @ (1 + shifts**2))
    spread = math.sqrt(float(weights**2 @ (1 + 2 * shifts**2)))
    period = mean + 2 * spread * math.sqrt(_TAIL) + 2 * float(weights.max()) * _TAIL
    nodes, amplitude, phase = _transform(period, weights, shifts, tolerance)
    inside = (x > 0) & (x < period)
    flat = np.where(inside, x, 0.0).ravel()
    total = np.zeros_like(flat)
    rows = max(1, _BLOCK // len(nodes))
    for start in range(0, len(flat), rows):
        part = slice(start, start + rows)
        total[part] = np.sin(phase - np.outer(flat[part], nodes)) @ amplitude
    value = np.clip(0.5 - total, 0, 1).reshape(x.shape)
    return np.where(inside, value, np.where(x <= 0, 0.0, 1.0))


@lru_cache(maxsize=1)
def _legendre() -> tuple[Array, Array]:
    points, weights = np.polynomial.legendre.leggauss(256)
    return np.asarray(points), np.asarray(weights)


def _planar_cdf(x: Array, weights: Array, shifts: Array) -> Array:
    """Return the distribution function in two dimensions, by Gauss–Legendre quadrature along the first axis.

    With n₁ + c₁ = √(x/a₁) sin θ the chord in the second direction has half-length √(x/a₂) cos θ. Only the θ with
    |n₁| < 9 matter, and the first axis is the one of the smaller weight, so that the integrand never gets narrow.
    """
    order = np.argsort(weights)
    (a1, a2), (c1, c2) = weights[order], shifts[order]
    flat = np.maximum(x, np.finfo(np.float64).tiny).ravel()[:, None]
    long, short = np.sqrt(flat / a1), np.sqrt(flat / a2)
    low, high = (np.arcsin(np.clip((c1 + side) / long, -1, 1)) for side in (-9, 9))
    points, node_weights = _legendre()
    theta = (high + low) / 2 + (high - low) / 2 * points
    chord = short * np.cos(theta)
    density = np.exp(-0.5 * (long * np.sin(theta) - c1) ** 2) / math.sqrt(2 * math.pi)
    integrand = density * (ndtr(chord - c2) - ndtr(-chord - c2)) * long * np.cos(theta)
    value = ((high - low) / 2 * integrand) @ node_weights
    return np.where(x > 0, np.clip(value, 0, 1).reshape(x.shape), 0.0)


def _transform(period: float, weights: Array, shifts: Array, tolerance: float) -> tuple[Array, Array, Array]:
    """Return the nodes, and amplitude and phase of the characteristic function there, divided by π(k + ½)."""
    count = 64
    while True:
        k = np.arange(count) + 0.5
        nodes = 2 * math.pi / period * k
        log_phi = np.zeros(count, dtype=np.complex128)
        for a, c in zip(weights, shifts, strict=True):
            root = 1 - 2j * nodes * a
            log_phi += 1j * nodes * a * c * c / root - 0.5 * np.log(root)
        # Beyond the last node |φ(u)| falls at least like u^(-1/2) per direction with a u >> 1, or faster.
        rest = 2 / math.pi * math.exp(float(log_phi[-1].real)) / _decay(nodes[-1], weights)
        if rest < tolerance or count >= _MAX_NODES:
            amplitude = np.asarray(np.exp(log_phi.real) / (math.pi * k), dtype=np.float64)
            return np.asarray(nodes, dtype=np.float64), amplitude, np.asarray(log_phi.imag, dtype=np.float64)
        count *= 2


def _decay(node: float, weights: Array) -> float:
    """Return −2 d log|φ| / d log u at the node, from the central factors alone: at most d."""
    square = (2 * node * weights) ** 2
    return max(float(np.sum(square / (1 + square))), 1e-3)
