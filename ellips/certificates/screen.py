"""Scores of all classes and, for every rival, bounds on margin and half gradient."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ellips.certificates.geometry import Geometry
from ellips.certificates.rounding import gamma, score_error, whitened_error
from ellips.gaussians.mixture import TILE_ROWS, square_norm

_HELD_ELEMENTS = 2**24  # of P_k(z − μ_k) of all classes, which wait until the prediction is known


class Screen(NamedTuple):
    """What one pass over all classes tells about N points.

    Attributes:
        prediction: Shape ``(N,)``.
        margins: Computed m, shape ``(N, K)``; ``inf`` for the prediction itself.
        safe_margins: Lower bounds on m, not negative, shape ``(N, K)``; ``inf`` for the prediction itself.
        half_gradient_norms: Upper bounds on ‖b‖, shape ``(N, K)``.
        point_norms: ‖z − c‖, shape ``(N,)``.
    """

    prediction: Tensor
    margins: Tensor
    safe_margins: Tensor
    half_gradient_norms: Tensor
    point_norms: Tensor


def screen(geometry: Geometry, z: Tensor, dtype: torch.dtype = torch.float64) -> Screen:
    """Score points and bound the half gradients of all margins.

    Args:
        geometry: The mixture.
        z: Shape ``(N, d)``, float64.
        dtype: Precision of the half gradients; float32 is enough to tell which rivals matter, its error is added.

    Returns:
        Bounds for every point and rival; scores are always float64.
    """
    classes = geometry.num_classes
    rows = min(TILE_ROWS, max(16, _HELD_ELEMENTS // (classes * geometry.dim)))
    parts = [_screen_block(geometry, part, dtype) for part in z.split(rows)]
    return _bounds(geometry, z, *(torch.cat(columns) for columns in zip(*parts, strict=True)))


def _screen_block(geometry: Geometry, z: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return ‖A_k(z − μ_k)‖² and ‖b_k‖, b_k = P_k(z − μ_k) − P_{i*}(z − μ_{i*}), both of shape ``(N, K)``."""
    squares = torch.cat([square_norm(geometry.whiten(z, k)) for k in geometry.tiles], dim=1)
    prediction = (geometry.offsets - squares).argmax(1)
    x, pull = (z - geometry.center).to(dtype), geometry.pulling(dtype)
    pulls = torch.empty(len(z), geometry.num_classes, geometry.dim, dtype=dtype, device=z.device)
    for k in geometry.tiles:
        pull(x, k, pulls)
    pulls -= pulls[torch.arange(len(z), device=z.device), prediction].unsqueeze(1)
    return squares, torch.linalg.vector_norm(pulls, dim=-1)


def _bounds(geometry: Geometry, z: Tensor, squares: Tensor, computed_norms: Tensor) -> Screen:
    """Turn computed squares and norms into predictions and bounds that hold for the exact ones."""
    dtype, dim = computed_norms.dtype, geometry.dim
    scores = geometry.offsets - squares
    prediction = scores.argmax(1)
    own = prediction.unsqueeze(1)
    margins = scores.gather(1, own) - scores
    norms = (z - geometry.center).norm(dim=1)
    distances = squares.sqrt_()
    errors = whitened_error(dim, geometry.factor_norms, norms.unsqueeze(1), geometry.mean_norms)
    score_errors = score_error(dim, distances, errors, geometry.offset_sizes)
    safe = (margins - score_errors - score_errors.gather(1, own)).clamp_(min=0)
    slip = gamma(2 * dim + 8, dtype) * geometry.factor_norms.square() * (norms.unsqueeze(1) + geometry.mean_norms)
    half_gradient_norms = computed_norms.double().mul_(1 + gamma(dim + 4, dtype)) + slip + slip.gather(1, own)
    for values in (margins, safe):
        values.scatter_(1, own, torch.inf)
    return Screen(prediction, margins, safe, half_gradient_norms, norms)
