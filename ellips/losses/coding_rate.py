"""Maximal coding rate reduction: classes spread apart, each compact."""

from __future__ import annotations

import torch
from torch import Tensor

from ellips.gaussians import Mixture
from ellips.losses.base import LatentLoss
from ellips.losses.groups import class_blocks, smaller_gram
from ellips.validation import at_least, positive


def logdet_identity_plus(rows: Tensor, scale: Tensor) -> Tensor:
    """Return ``log det(I + scale · Aᵀ A)`` by a Cholesky factorisation of the smaller Gram matrix.

    Args:
        rows: ``A``, shape ``(..., m, d)``; rows of zeros change nothing.
        scale: Shape ``(...)``, not negative.

    Returns:
        Shape ``(...)``. Where float32 cannot factorise the matrix (very long latents), that batch is done in float64.

    Raises:
        ValueError: If the latents are not finite.
    """
    gram = smaller_gram(rows) * scale[..., None, None]
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    factor, info = torch.linalg.cholesky_ex(gram + identity)
    if bool(info.any()):
        if not bool(torch.isfinite(gram).all()):
            raise ValueError("Expected finite latents in the coding rate but got NaN or infinite ones.")
        # Formed anew in float64: the float32 Gram matrix has already lost its positive definiteness.
        wide = smaller_gram(rows.double()) * scale.double()[..., None, None] + identity.double()
        factor = torch.linalg.cholesky(wide).to(gram.dtype)
    logdet: Tensor = 2.0 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return logdet


def coding_rate(latents: Tensor, epsilon_squared: float = 0.1) -> Tensor:
    """Return the coding rate of a batch, ``½ log det(I + d/(n ε²) ZᵀZ)``, in nats.

    Args:
        latents: ``Z``, shape ``(n, d)``.
        epsilon_squared: The squared distortion ε².

    Source: Yu et al. 2020, eq. 7.
    """
    n, d = latents.shape
    return 0.5 * logdet_identity_plus(latents, latents.new_tensor(d / (n * epsilon_squared)))


def class_coding_rate(latents: Tensor, labels: Tensor, epsilon_squared: float = 0.1) -> Tensor:
    """Return the rate with the classes coded apart, ``Σ_k (n_k/2n) log det(I + d/(n_k ε²) Z_kᵀZ_k)``, in nats.

    Args:
        latents: ``Z``, shape ``(n, d)``.
        labels: Shape ``(n,)``, int64; classes without a sample contribute nothing.
        epsilon_squared: The squared distortion ε².

    Source: Yu et al. 2020, eq. 8.
    """
    n, d = latents.shape
    rate = latents.new_zeros(())
    for block in class_blocks(labels):
        count = block.count.to(latents.dtype)
        logdet = logdet_identity_plus(block.gather(latents), d / (count * epsilon_squared))
        rate = rate + (count / (2 * n) * logdet).sum()
    return rate


class CodingRateReduction(LatentLoss):
    """Maximal coding rate reduction (MCR²): minus the rate of the whole batch plus the rate of its classes.

    ``−ΔR = −½ log det(I + d/(n ε²) ZᵀZ) + Σ_k (n_k/2n) log det(I + d/(n_k ε²) Z_kᵀZ_k)``. Memory is linear in
    ``n · min(n, d)`` whatever the number of classes.

    With latents of free length the first term can grow without bound; an isotropy term or latents on the unit ball or
    sphere keep the scale.

    Args:
        epsilon_squared: The squared distortion ε².
        warmup_steps: For so many optimiser steps only the first term is used (total coding rate).
        weight: See :class:`LatentLoss`.
        start_step: See :class:`LatentLoss`.

    Raises:
        ValueError: If ``epsilon_squared`` is not positive or ``warmup_steps`` is negative.

    Source: Yu et al. 2020, "Learning Diverse and Discriminative Representations via the Principle of Maximal Coding
    Rate Reduction"; warm-up after Chu et al. 2023 (CPP).
    """

    def __init__(
        self, epsilon_squared: float = 0.1, warmup_steps: int = 0, weight: float = 1.0, start_step: int = 0
    ) -> None:
        super().__init__(weight, start_step)
        positive(epsilon_squared=epsilon_squared)
        at_least(0, warmup_steps=warmup_steps)
        self.epsilon_squared = float(epsilon_squared)
        self.warmup_steps = int(warmup_steps)

    def compute(self, latents: Tensor, labels: Tensor, mixture: Mixture | None, step: int) -> Tensor:
        """Return minus the rate reduction, or minus the total rate during warm-up."""
        loss = -coding_rate(latents, self.epsilon_squared)
        if step < self.warmup_steps:
            return loss
        return loss + class_coding_rate(latents, labels, self.epsilon_squared)
