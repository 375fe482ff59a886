"""Maximum mean discrepancy between each class's latents and a Gaussian."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from ellips.gaussians import Mixture
from ellips.losses.base import LatentLoss
from ellips.losses.groups import ClassBlock, class_blocks
from ellips.validation import one_of, positive

Reference = Literal["sampled", "expected"]


class ClassMMD(LatentLoss):
    """Squared maximum mean discrepancy of each class from ``N(μ_k, s² I)``, summed over the batch's classes.

    With the RBF kernel ``k(x, y) = exp(−‖x − y‖² / (2 h²))`` and the class mean ``μ_k`` of the batch, class k adds

        mean_ij k(z_i, z_j) + mean_ij k(z̃_i, z̃_j) − 2 mean_ij k(z_i, z̃_j) ,

    the biased estimate, which is never negative. ``"sampled"`` draws one ``z̃_i = μ_k + s·noise`` per sample, as the
    paper does; the noise depends on seed and step alone, so that all processes and a resumed run see the same.
    ``"expected"`` puts the two terms with ``z̃`` at their expectations over the Gaussian, which are closed forms:
    ``(h²/(h²+2s²))^{d/2}`` and ``(h²/(h²+s²))^{d/2} exp(−‖z_i − μ_k‖² / (2(h²+s²)))``; no noise.

    Args:
        bandwidth: h; None: the median distance within the class's samples and reference samples, anew for each class
            and step, taken as a constant by the gradient.
        reference: ``"sampled"`` or ``"expected"``.
        std: s, standard deviation of the Gaussian the latents are drawn to; [E26] has 1.
        seed: Seed of the noise.
        weight: See :class:`LatentLoss`; [E26] calls it λ_MMD.
        start_step: See :class:`LatentLoss`.

    Raises:
        ValueError: If ``bandwidth`` or ``std`` is not positive or ``reference`` is unknown.

    Source: [E26] eq. 94 and 95; median heuristic after Gretton et al. 2012.
    """

    def __init__(
        self,
        bandwidth: float | None = None,
        reference: Reference = "sampled",
        std: float = 1.0,
        seed: int = 0,
        weight: float = 1.0,
        start_step: int = 0,
    ) -> None:
        super().__init__(weight, start_step)
        positive(bandwidth=bandwidth, std=std)
        one_of(get_args(Reference), reference=reference)
        self.bandwidth = bandwidth
        self.reference: Reference = reference
        self.std = float(std)
        self.seed = int(seed)

    def noise(self, latents: Tensor, labels: Tensor, step: int) -> Tensor:
        """Return a step's standard normal noise, shape ``(n, d)``, the same on every device.

        It is dealt out in order of the labels: whichever way a batch is spread over processes, each class gets the
        same noise.
        """
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + step) % 2**63)
        drawn = torch.randn(latents.shape, generator=generator, dtype=latents.dtype).to(latents.device)
        return torch.empty_like(drawn).index_copy_(0, torch.argsort(labels, stable=True), drawn)

    def compute(self, latents: Tensor, labels: Tensor, mixture: Mixture | None, step: int) -> Tensor:
        """Return the sum over the batch's classes."""
        noise = self.noise(latents, labels, step) if self.reference == "sampled" else None
        total = latents.new_zeros(())
        for block in class_blocks(labels):
            total = total + (
                self._sampled(block, latents, noise) if noise is not None else self._expected(block, latents)
            )
        return total

    def _sampled(self, block: ClassBlock, latents: Tensor, noise: Tensor) -> Tensor:
        rows, mean = _rows_and_mean(block, latents)
        both = torch.cat([rows, mean + self.std * block.gather(noise)], dim=1)
        valid = block.mask.repeat(1, 2)
        squared = _squared_distances(both)
        # +1 on one sample, −1 on the other, 0 on padding: the three means are one quadratic form.
        sign = torch.cat([block.mask, -block.mask.to(rows.dtype)], dim=1) / block.count.unsqueeze(1)
        kernel = torch.exp(-squared / (2 * self._squared_bandwidth(squared, valid)))
        return torch.einsum("bi,bij,bj->", sign, kernel, sign)

    def _expected(self, block: ClassBlock, latents: Tensor) -> Tensor:
        rows, mean = _rows_and_mean(block, latents)
        d, count = latents.shape[1], block.count.to(latents.dtype)
        squared = _squared_distances(rows)
        h2 = self._squared_bandwidth(squared, block.mask)
        within = torch.einsum(
            "bi,bij,bj->b", block.mask.to(rows.dtype), torch.exp(-squared / (2 * h2)), block.mask.to(rows.dtype)
        )
        wide = h2 + self.std**2
        to_center = (rows - mean).square().sum(-1)
        across = torch.exp(0.5 * d * torch.log(h2 / wide).squeeze(-1) - to_center / (2 * wide.squeeze(-1)))
        across = (across * block.mask).sum(1)
        reference = torch.exp(0.5 * d * torch.log(h2 / (h2 + 2 * self.std**2))).flatten()
        return (within / count.square() + reference - 2 * across / count).sum()

    def _squared_bandwidth(self, squared: Tensor, valid: Tensor) -> Tensor:
        """Return h² per class, shape ``(B, 1, 1)``."""
        if self.bandwidth is not None:
            return squared.new_full((squared.shape[0], 1, 1), self.bandwidth**2)
        distances = squared.detach().clone()
        pair = valid.unsqueeze(1) & valid.unsqueeze(2)
        pair = pair & ~torch.eye(pair.shape[-1], dtype=torch.bool, device=pair.device)
        median = distances.masked_fill(~pair, torch.nan).flatten(1).nanmedian(dim=1).values
        # One sample, or all equal: any bandwidth will do, as long as it is positive.
        return torch.where(median > 0, median, torch.ones_like(median))[:, None, None]


def _rows_and_mean(block: ClassBlock, latents: Tensor) -> tuple[Tensor, Tensor]:
    rows = block.gather(latents)
    return rows, rows.sum(1, keepdim=True) / block.count.to(rows.dtype)[:, None, None]


def _squared_distances(rows: Tensor) -> Tensor:
    """Squared distances ``(B, m, m)`` of rows ``(B, m, d)``, by inner products of centred rows, never negative."""
    rows = rows - rows.mean(1, keepdim=True).detach()
    norms = rows.square().sum(-1)
    return (norms.unsqueeze(1) + norms.unsqueeze(2) - 2 * rows @ rows.mT).clamp(min=0)
