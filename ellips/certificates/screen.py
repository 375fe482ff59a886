"""Scores of all classes and, for every rival, bounds on margin and half gradient."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ellips.certificates.geometry import Geometry
from ellips.certificates.parts import Scores


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
    parts = [_bounds(geometry.score(part, dtype)) for part in z.split(geometry.rows)]
    return Screen(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def _bounds(found: Scores) -> Screen:
    """Turn computed scores into margins and bounds that hold for the exact ones."""
    own = found.prediction.unsqueeze(1)
    margins = found.scores.gather(1, own) - found.scores
    safe = (margins - found.score_errors - found.score_errors.gather(1, own)).clamp_(min=0)
    for values in (margins, safe):
        values.scatter_(1, own, torch.inf)
    return Screen(found.prediction, margins, safe, found.half_gradient_norms, found.point_norms)
