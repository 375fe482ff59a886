"""Scores of all classes and, for every rival, a closed-form lower bound on the distance to its boundary."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ellips.certificates.geometry import Geometry
from ellips.certificates.rounding import gamma, score_error, whitened_error


class Screen(NamedTuple):
    """What one pass over all classes tells about N points.

    Attributes:
        prediction: Shape ``(N,)``.
        margins: Computed m, shape ``(N, K)``; ``inf`` for the prediction itself.
        safe_margins: Lower bounds on m, not negative, shape ``(N, K)``; ``inf`` for the prediction itself.
        gradients: Upper bounds on ‖b‖, shape ``(N, K)``.
        point_norms: ‖z − c‖, shape ``(N,)``.
    """

    prediction: Tensor
    margins: Tensor
    safe_margins: Tensor
    gradients: Tensor
    point_norms: Tensor


def screen(geometry: Geometry, z: Tensor, dtype: torch.dtype = torch.float64) -> Screen:
    """Score points and bound the gradients of all margins.

    Args:
        geometry: The mixture.
        z: Shape ``(N, d)``, float64.
        dtype: Precision of the gradients; float32 is enough to tell which rivals matter, its rounding error is added.

    Returns:
        Bounds for every point and rival; scores are always float64.
    """
    parts = [_screen_block(geometry, rows, dtype) for rows in z.split(geometry.block_rows)]
    return Screen(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def _screen_block(geometry: Geometry, z: Tensor, dtype: torch.dtype) -> Screen:
    whitened = geometry.whiten(z)
    squares = whitened.square().sum(-1)
    scores = geometry.offsets - squares
    prediction = scores.argmax(1)
    own = prediction.unsqueeze(1)
    margins = scores.gather(1, own) - scores
    norms = (z - geometry.center).norm(dim=1)
    distance = squares.sqrt()
    errors = whitened_error(geometry.dim, geometry.factor_norms, norms.unsqueeze(1), geometry.mean_norms)
    score_errors = score_error(geometry.dim, distance, errors, geometry.offsets)
    safe = (margins - score_errors - score_errors.gather(1, own)).clamp_(min=0)
    gradients = _gradient_norms(geometry, whitened, prediction, dtype)
    slip = geometry.factor_norms * (gamma(geometry.dim + 4, dtype) * distance + errors)
    gradients += slip + slip.gather(1, own)
    for values in (margins, safe):
        values.scatter_(1, own, torch.inf)
    return Screen(prediction, margins, safe, gradients, norms)


def _gradient_norms(geometry: Geometry, whitened: Tensor, prediction: Tensor, dtype: torch.dtype) -> Tensor:
    """‖b_i‖ with b_i = g_i − g_{i*}, g_k = A_kᵀ A_k (z − μ_k), computed in ``dtype``, shape ``(N, K)`` float64."""
    factors = geometry.factors_in(dtype)
    if geometry.diagonal:
        pulls = (whitened.to(dtype) * factors).transpose(0, 1)
    else:
        pulls = torch.bmm(whitened.to(dtype).transpose(0, 1), factors)
    rows = torch.arange(len(prediction), device=prediction.device)
    norms: Tensor = (pulls - pulls[prediction, rows]).norm(dim=-1).mT
    return norms.double().mul_(1 + gamma(geometry.dim + 4, dtype))
