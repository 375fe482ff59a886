"""Isotropy: every class's covariance a multiple of the identity."""

from __future__ import annotations

import torch
from torch import Tensor

from ellips.gaussians import Mixture
from ellips.losses.base import LatentLoss
from ellips.losses.groups import class_blocks, smaller_gram


def isotropy(latents: Tensor, labels: Tensor) -> Tensor:
    """Return ``Σ_k ‖C_k − (tr C_k / d) I‖²_F`` over the classes of the batch.

    ``C_k`` is the covariance of class k's samples with divisor ``n_k``; a class with one sample contributes nothing.
    For ``n_k <= d`` it is formed from the ``n_k × n_k`` Gram matrix as ``‖C_k‖²_F − (tr C_k)²/d``, which is free of
    cancellation there, because a matrix of rank below d is never isotropic.

    Args:
        latents: Shape ``(n, d)``.
        labels: Shape ``(n,)``, int64.

    Source: [E26] eq. 93.
    """
    d = latents.shape[1]
    total = latents.new_zeros(())
    for block in class_blocks(labels):
        count = block.count.to(latents.dtype)[:, None, None]
        rows = block.gather(latents)
        rows = (rows - rows.sum(1, keepdim=True) / count) * block.mask.unsqueeze(-1)
        gram = smaller_gram(rows) / count
        trace = gram.diagonal(dim1=-2, dim2=-1).sum(-1)
        if gram.shape[-1] == d:
            mean_variance = (trace / d)[:, None, None] * torch.eye(d, dtype=gram.dtype, device=gram.device)
            total = total + (gram - mean_variance).square().sum()
        else:
            total = total + (gram.square().sum((-2, -1)) - trace.square() / d).sum()
    return total


class Isotropy(LatentLoss):
    """Squared distance of each class's covariance from the nearest multiple of the identity, summed over classes.

    Args:
        weight: See :class:`LatentLoss`; [E26] calls it λ_iso.
        start_step: See :class:`LatentLoss`; set it to the warm-up's length to train on the expansion term alone first.

    Source: [E26] eq. 93.
    """

    def compute(self, latents: Tensor, labels: Tensor, mixture: Mixture | None, step: int) -> Tensor:
        """Return the sum over the batch's classes."""
        return isotropy(latents, labels)
