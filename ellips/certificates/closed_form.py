"""The closed form behind [E26] Theorem 4.1 (eq. 5), for any bounds on margin, half gradient and concavity."""

from __future__ import annotations

import torch
from torch import Tensor


def closed_form_radius(margin: Tensor, half_gradient_norm: Tensor, concavity: Tensor) -> Tensor:
    """Return the largest R with margin − 2·‖b‖·R − concavity·R² ≥ 0, the root of [E26] eq. 5.

    With m(z+δ) = δᵀWδ + 2bᵀδ + m, no δ of norm below R makes it negative if ``margin`` ≤ m,
    ``half_gradient_norm`` ≥ ‖b‖ and ``concavity`` ≥ max(0, −λ_min(W)).

    Args:
        margin: m; where it is not positive the radius is 0, where it is infinite so is the radius.
        half_gradient_norm: ‖b‖, non-negative, any shape that broadcasts with the others.
        concavity: (−λ_min(W))₊, non-negative.

    Returns:
        R, of the broadcast shape; ``inf`` where ‖b‖ and concavity are both 0.
    """
    margin = margin.clamp(min=0)
    radius = margin / ((half_gradient_norm.square() + concavity * margin).sqrt() + half_gradient_norm)
    return torch.where(margin == 0, 0.0, torch.where(margin.isinf(), torch.inf, radius))


def closed_form_multiplier(radius: Tensor, half_gradient_norm: Tensor, concavity: Tensor) -> Tensor:
    """Return the dual multiplier t that proves a closed-form radius: D(t) ≥ R² there.

    Bounding bᵀ(I + tW)⁻¹b by ‖b‖²/(1 − t·concavity) leaves a problem in one dimension whose optimum is R² at
    t = R / (concavity·R + ‖b‖).
    """
    multiplier = radius / (concavity * radius + half_gradient_norm)
    return torch.where(radius == 0, 0.0, torch.where(radius.isinf(), torch.inf, multiplier))
