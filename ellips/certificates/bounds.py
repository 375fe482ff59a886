"""Rivals that are too far away to need a proof of their own: the closed form with proven bounds.

Part of what has to be trusted, with :mod:`ellips.certificates.verify` and :mod:`ellips.certificates.ties`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ellips.certificates.verify import Kernel, positive_definite, rounding

_BATCH_ELEMENTS = 2**20


class FarRivals:
    """Proves rivals far by m − 2R‖b‖ − R²λ > 0 with λ ≥ λ_max(P_prediction) ≥ −λ_min(W), or λ = 0 where W = 0.

    b = u_r − u_p with u = AᵀA(z−μ), and ‖û − u‖ ≤ γ_{2d+2} ‖n‖ h in the kernel's notation.

    Args:
        kernel: The stored mixture.
        guess: What is taken for λ_max(P_k), shape ``(K,)``, from anywhere: a little more is proven, or ‖A‖_F² is used.
    """

    def __init__(self, kernel: Kernel, guess: Tensor) -> None:
        self._kernel = kernel
        self._norms = kernel.columns.norm(dim=1)  # ‖n‖ = ‖A‖_F
        self._guess = guess.detach().to("cpu", torch.float64)
        self._largest = torch.full_like(self._norms, torch.nan)

    def prove(self, z: Tensor, y: Tensor, prediction: Tensor, margins: Tensor, radius: Tensor) -> Tensor:
        """Return which rivals are proven not to be reached, shape ``(N, K)``.

        Args:
            z: Shape ``(N, d)``.
            y: A(z−μ), from :meth:`Kernel.whiten`.
            prediction: Shape ``(N,)``.
            margins: Lower bounds, from :meth:`Kernel.margins`.
            radius: Shape ``(N,)``.
        """
        kernel, own = self._kernel, prediction.unsqueeze(1)
        u, steps = self.unwhiten(y)
        h = torch.linalg.vecdot((z - kernel.means.unsqueeze(1)).abs(), kernel.columns.unsqueeze(1)).mT
        slip = rounding(steps) * ((h + 2.0**-480) * self._norms)
        length = (u - u.gather(1, own.unsqueeze(-1).expand(-1, 1, kernel.dim))).norm(dim=-1) + 2.0**-480
        length = (1 + rounding(kernel.dim + 8)) * length + 1.01 * (slip + slip.gather(1, own))
        bend = self.bend(prediction).expand_as(length)
        bend = bend.masked_fill(kernel.shapes == kernel.shapes[own], 0.0)
        reach = radius.unsqueeze(1)
        far: Tensor = margins > (1 + rounding(12)) * (2 * reach * length + reach * reach * bend + 2.0**-960)
        return far

    def unwhiten(self, y: Tensor) -> tuple[Tensor, int]:
        """Return u of all points and classes, shape ``(N, K, d)``, and how many roundings it has gone through."""
        kernel = self._kernel
        u = y * kernel.factors.unsqueeze(1) if kernel.diagonal else y @ kernel.factors
        return u.transpose(0, 1), 2 * kernel.terms + 6

    def bend(self, prediction: Tensor) -> Tensor:
        """Upper bounds on −λ_min(W), of a shape that broadcasts with ``(N, K)``."""
        return self._top(prediction).unsqueeze(1)

    def _top(self, classes: Tensor) -> Tensor:
        """Upper bounds on λ_max(P_k), proven when they are first needed."""
        new = classes.unique()
        new = new[self._largest[new].isnan()]
        for part in new.split(max(1, _BATCH_ELEMENTS // self._kernel.dim**2)):
            self._largest[part] = self._prove_top(part)
        return self._largest[classes]

    def _prove_top(self, k: Tensor) -> Tensor:
        kernel = self._kernel
        if kernel.diagonal:
            return kernel.columns[k].amax(1).square() * (1 + rounding(8))
        top = self._guess[k] * (1 + 1e-6)
        # What the kernel keeps of the precisions, it need not make again.
        kept = len(kernel.bordered) > 0
        matrix = -(kernel.bordered[k, :-1, :-1] if kept else kernel.factors[k].mT @ kernel.factors[k])
        diagonal = matrix.diagonal(dim1=1, dim2=2)
        diagonal += top.unsqueeze(1)
        size = kernel.columns[k] / diagonal.sqrt()
        error = rounding(kernel.dim + 1) * size * size.sum(1, keepdim=True)  # p = r
        return torch.where(positive_definite(matrix, error), top, 1.01 * self._norms[k].square())
