"""Precisions that share most of themselves: one common factor, and a few directions per class (METHOD's section 11)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

import torch
from torch import Tensor

from ellips.gaussians.structures import Structure, class_tiles, grouped_rows, inverse_factor, row_tiles


class LowRank(Structure):
    """P_k = Aᵀ(I − Σ_j (1 − s_kj²) q_kj q_kjᵀ)A, and det A_k = det A · Π_j s_kj.

    With orthonormal directions q_kj of the whitened space, Σ_k = A⁻¹(I + Σ_j (s_kj⁻² − 1) q_kj q_kjᵀ)A⁻ᵀ: a scale
    below 1 is a direction in which the class is wider than the common covariance, one above 1 a narrower one. Whatever
    is stored, scores and certificates are those of these two formulas.

    Args:
        factor: A, shape ``(d, d)``, of which the lower triangle is read.
        directions: q_kj, shape ``(K, r, d)``.
        scales: s_kj, shape ``(K, r)``.
    """

    stored = ("precision_factors", "directions", "scales")
    # Directions stay as they are: a step of an optimiser would take their lengths and right angles away.
    trained = ("precision_factors", "scales")

    def __init__(self, factor: Tensor, directions: Tensor, scales: Tensor) -> None:
        self.shared, self.directions, self.scales = factor.tril(), directions, scales
        self.num_classes = len(scales)

    @staticmethod
    def shapes(num_classes: int, dim: int, rank: int) -> list[tuple[int, ...]]:
        """See :class:`Structure`."""
        return [(dim, dim), (num_classes, rank, dim), (num_classes, rank)]

    def detached(self) -> Self:
        """See :class:`Structure`."""
        return type(self)(self.shared.detach(), self.directions.detach(), self.scales.detach())

    @property
    def read(self) -> Iterator[Tensor]:
        """See :class:`Structure`."""
        return iter((self.shared, *self.directions.split(1), self.scales))

    @property
    def logs(self) -> list[Tensor]:
        """See :class:`Structure`."""
        return [self.shared.diagonal().expand(self.num_classes, -1), self.scales]

    @property
    def weights(self) -> Tensor:
        """E_kj = 1 − s_kj², what a direction takes off the common precision, shape ``(K, r)``."""
        return 1 - self.scales.square()

    @property
    def factor_norms(self) -> Tensor:
        """See :class:`Structure`."""
        norm: Tensor = self.shared.norm()
        return norm.expand(self.num_classes)

    def squares(self, z: Tensor, means: Tensor) -> Tensor:
        """See :class:`Structure`."""
        centered = self.centered(means)
        return torch.cat([self._squares(rows, *centered) for rows in row_tiles(z)])

    def centered(self, means: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return c, the mean of the means, A(μ_k − c), shape ``(K, d)``, and q_kjᵀA(μ_k − c), shape ``(K, r)``."""
        center = means.mean(0)
        whitened = (means - center) @ self.shared.mT
        return center, whitened, (self.directions @ whitened.unsqueeze(-1)).squeeze(-1)

    def _squares(self, z: Tensor, center: Tensor, whitened: Tensor, projected: Tensor) -> Tensor:
        x = (z - center) @ self.shared.mT
        common = x.square().sum(1, keepdim=True) - 2 * x @ whitened.mT + whitened.square().sum(1)
        return torch.cat(
            [common[:, k] - (part.square() * self.weights[k]).sum(-1) for k, part in self.projections(x, projected)],
            dim=1,
        )

    def projections(self, x: Tensor, projected: Tensor) -> list[tuple[slice, Tensor]]:
        """Return q_kjᵀ(x − A(μ_k − c)) for ranges of classes, of shapes ``(N, k, r)``, given x = A(z − c)."""
        (_, rank, dim), parts = self.directions.shape, []
        for k in class_tiles(self.num_classes, rank):
            rows = self.directions[k].reshape(-1, dim)
            part = torch.addmm(projected[k].reshape(1, -1), x, rows.mT, beta=-1)
            parts.append((k, part.view(x.shape[0], k.stop - k.start, rank)))
        return parts

    def pull(self, away: Tensor, classes: Tensor) -> Tensor:
        """See :class:`Structure`."""
        y = away @ self.shared.mT
        return (y - self._mapped(y, classes, self.weights)) @ self.shared

    def energy(self, vector: Tensor, classes: Tensor) -> Tensor:
        """See :class:`Structure`."""
        y = vector @ self.shared.mT
        return (y * (y - self._mapped(y, classes, self.weights))).sum(-1)

    def factor(self, classes: Tensor) -> Tensor:
        """See :class:`Structure`; not triangular."""
        q = self.directions[classes]
        return self.shared + (q.mT * (self.scales[classes] - 1).unsqueeze(1)) @ (q @ self.shared)

    def precisions(self, classes: Tensor) -> Tensor:
        """See :class:`Structure`."""
        v = self.directions[classes] @ self.shared
        return self.shared.mT @ self.shared - (v.mT * self.weights[classes].unsqueeze(1)) @ v

    @property
    def widths(self) -> Tensor:
        """D_kj = s_kj⁻² − 1, shape ``(K, r)``."""
        return self.scales.square().reciprocal() - 1

    def covariances(self) -> Tensor:
        """See :class:`Structure`."""
        root = inverse_factor(self.shared)
        u = self.directions @ root.mT
        return root @ root.mT + (u.mT * self.widths.unsqueeze(1)) @ u

    def traces(self) -> Tensor:
        """See :class:`Structure`."""
        root = inverse_factor(self.shared)
        lengths = torch.stack([(q @ root.mT).square().sum(-1) for q in self.directions])  # one class at a time
        return root.square().sum() + (self.widths * lengths).sum(1)

    def color(self, noise: Tensor, classes: Tensor) -> Tensor:
        """See :class:`Structure`."""
        colored = noise + self._mapped(noise, classes, self.scales.reciprocal().abs() - 1)
        result: Tensor = torch.linalg.solve_triangular(self.shared, colored.mT, upper=False).mT
        return result

    def _mapped(self, y: Tensor, classes: Tensor, weights: Tensor) -> Tensor:
        """Return Σ_j w_kj q_kj q_kjᵀy for a class in each row, grouped by class."""
        parts, rows = [y[:0]], [classes[:0]]
        for k, group in grouped_rows(classes):
            q = self.directions[k]
            parts.append((y[group] @ q.mT * weights[k]) @ q)
            rows.append(group)
        return torch.cat(parts)[torch.cat(rows).argsort()]
