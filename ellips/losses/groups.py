"""Samples of a batch gathered by class into few, tightly padded blocks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ClassBlock:
    """Classes of similar size, stacked.

    Attributes:
        index: Shape ``(B, m)``, positions in the batch; row b holds one class's samples, then padding (position 0).
        mask: Shape ``(B, m)``, True where ``index`` is a sample.
        count: Shape ``(B,)``, samples of each class, int64.
        label: Shape ``(B,)``, the classes.
    """

    index: Tensor
    mask: Tensor
    count: Tensor
    label: Tensor

    def gather(self, latents: Tensor) -> Tensor:
        """Return the latents ``(n, d)`` as ``(B, m, d)`` with zeros in the padding."""
        return latents[self.index] * self.mask.unsqueeze(-1)


def class_blocks(labels: Tensor) -> list[ClassBlock]:
    """Group a batch by class: the class-indicator matrix (K, n), kept as the positions of its ones.

    Classes whose sizes lie between the same two powers of two share a block, so that padding at most doubles it: with
    1,000 classes in a batch of 1,024 the blocks hold about as many entries as the batch, where the indicator times a
    per-class scatter matrix would hold 1,000 of those.

    Args:
        labels: Shape ``(n,)``, int64.

    Returns:
        At most ``log2(n) + 1`` blocks; classes without a sample appear in none.
    """
    order = torch.argsort(labels, stable=True)
    present, count = torch.unique_consecutive(labels[order], return_counts=True)
    start = count.cumsum(0) - count
    # frexp's exponent is exact, where a rounded logarithm could put a power of two on either side.
    size_class = torch.frexp(count.double()).exponent
    blocks = []
    for size in torch.unique(size_class).tolist():
        member = size_class == size
        size_count = count[member]
        slot = torch.arange(int(size_count.max()), device=labels.device)
        mask = slot < size_count.unsqueeze(1)
        position = torch.where(mask, start[member].unsqueeze(1) + slot, 0)
        blocks.append(ClassBlock(torch.where(mask, order[position], 0), mask, size_count, present[member]))
    return blocks


def smaller_gram(rows: Tensor) -> Tensor:
    """Return ``A Aᵀ`` or ``Aᵀ A``, whichever is smaller, for ``A`` of shape ``(..., m, d)``.

    Both have the same non-zero eigenvalues, hence the same ``log det(I + a ·)`` and Frobenius norm.
    """
    return rows @ rows.mT if rows.shape[-2] <= rows.shape[-1] else rows.mT @ rows
