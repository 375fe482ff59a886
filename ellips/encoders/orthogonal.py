"""Training of matrices that stay orthogonal: steps along the manifold, Adam in its tangent space."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ellips.validation import at_least


def random_orthogonal(*shape: int) -> Tensor:
    """Draw orthogonal matrices uniformly, from torch's generator.

    Args:
        *shape: ``(..., n)``.

    Returns:
        Shape ``(..., n, n)``.
    """
    factor, triangle = torch.linalg.qr(torch.randn(*shape, shape[-1]))
    # Without the signs the decomposition's own would not be uniform (Mezzadri 2007).
    found: Tensor = factor * triangle.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]
    return found


def truncated_exponential(tangent: Tensor) -> Tensor:
    """Return the matrix exponential's series up to the third power; the error is at most ``‖A‖⁴ e^‖A‖ / 24``.

    Args:
        tangent: Skew-symmetric matrices, shape ``(..., n, n)``.
    """
    identity = torch.eye(tangent.shape[-1], dtype=tangent.dtype, device=tangent.device)
    square = tangent @ tangent
    # I + A + A²/2 + A³/6, with two products.
    return identity + tangent + square / 2 + square @ tangent / 6


def polar_step(matrices: Tensor) -> Tensor:
    """Move nearly orthogonal matrices towards the nearest orthogonal ones: one Newton–Schulz step.

    A singular value s becomes s (3 − s²) / 2, so that an error e becomes about 3 e² / 2.

    Args:
        matrices: Shape ``(..., n, n)``, with singular values below √3.
    """
    moved: Tensor = 1.5 * matrices - 0.5 * matrices @ (matrices.mT @ matrices)
    return moved


def polar(matrices: Tensor) -> Tensor:
    """Return the nearest orthogonal matrices, the polar factors, by singular value decompositions in float64.

    Args:
        matrices: Shape ``(..., n, n)``.

    Returns:
        The same shape and type.
    """
    left, _, right = torch.linalg.svd(matrices.double())
    nearest: Tensor = (left @ right).to(matrices)
    return nearest


def orthogonality_error(matrices: Tensor) -> float:
    """Return the largest entry of ``|WᵀW − I|``.

    Args:
        matrices: Shape ``(..., n, n)``.
    """
    wide = matrices.detach().double()
    identity = torch.eye(wide.shape[-1], dtype=wide.dtype, device=wide.device)
    return float((wide.mT @ wide - identity).abs().max())


class OrthogonalAdam(torch.optim.AdamW):
    """Adam, on the manifold of orthogonal matrices where a group of parameters says so.

    For a matrix W of such a group with Euclidean gradient G, the gradient along the manifold is W A with the
    skew-symmetric A = (WᵀG − GᵀW) / 2. Adam's averages are those of A, which lies in the same space whatever W is, so
    that nothing has to be transported; they are symmetric where A is skew, so that the step is skew. The step S then
    leads along the geodesic, W exp(S), by the series up to its third power, and every ``polar_interval`` steps one
    Newton–Schulz step takes off what series and rounding have left. All matrices of one shape are best one parameter,
    ``(m, n, n)``: every product here is then a batched one.

    Args:
        parameters: Parameters or groups; a group with ``orthogonal=True`` holds stacks ``(..., n, n)`` of orthogonal
            matrices. They decay never.
        lr: Learning rate; for orthogonal matrices an angle, about.
        betas: Of Adam's averages.
        weight_decay: Of the other groups.
        polar_interval: Steps between two polar steps.
    """

    def __init__(
        self,
        parameters: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        polar_interval: int = 4,
    ) -> None:
        at_least(1, polar_interval=polar_interval)
        super().__init__(parameters, lr=lr, betas=betas, weight_decay=weight_decay)
        self.polar_interval = polar_interval
        for group in self.param_groups:
            group.setdefault("orthogonal", False)
            if group["orthogonal"]:
                group["weight_decay"] = 0.0  # would pull the step, not the matrix
                group.setdefault("steps", 0)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # noqa: ANN401 - torch's
        """Make one step.

        Args:
            closure: Computes the loss anew, with gradients.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = [group for group in self.param_groups if group["orthogonal"]]
        matrices = [p for group in groups for p in group["params"] if p.grad is not None]
        bases = [p.clone() for p in matrices]
        for parameter, base in zip(matrices, bases, strict=True):
            product = base.mT @ parameter.grad
            parameter.grad.copy_((product - product.mT) / 2)
            parameter.zero_()  # the origin of the tangent space, where Adam makes its step
        super().step()
        for parameter, base in zip(matrices, bases, strict=True):
            parameter.copy_(base @ truncated_exponential(parameter))
        for group in groups:
            group["steps"] += 1
            if group["steps"] % self.polar_interval == 0:
                for parameter in group["params"]:
                    parameter.copy_(polar_step(parameter))
        return loss
