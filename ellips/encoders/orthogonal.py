"""Training of matrices that stay orthogonal: steps along the manifold, Muon in its tangent space."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ellips.validation import at_least, fraction


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


def truncated_exponential(tangent: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return ``exp(A) − I`` by its series up to the third power; the error is at most ``‖A‖⁴ e^‖A‖ / 24``.

    Args:
        tangent: Skew-symmetric matrices A, shape ``(..., n, n)``.
        dtype: Of the products, which the second and the third power are made of; the type given unless named.
    """
    stack = tangent.reshape(-1, *tangent.shape[-2:])
    reduced = stack.to(stack.dtype if dtype is None else dtype)
    # A²/2 + A³/6 as (A/2 + A²/6) A.
    higher = torch.baddbmm(reduced, reduced, reduced, beta=0.5, alpha=1 / 6) @ reduced
    return (stack + higher).reshape(tangent.shape)


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


def equalised(tangent: Tensor, iterations: int = 3, dtype: torch.dtype = torch.float32) -> Tensor:
    """Turn skew-symmetric matrices all planes by about the same angle, 1: the singular values' own factor is taken off.

    Newton–Schulz iterations with the polynomial of Muon (Jordan et al. 2024), which is not meant to converge. They
    begin where the Schatten norm of order 8, ``(Σ σ⁸)^(1/8)``, is 1, which the first iteration's products tell: at the
    Frobenius norm that Muon takes instead, singular values begin up to ``n^(3/8)`` times smaller, which costs two
    iterations more. They end between 0.68 and 1.21, but for those that were under a fiftieth of that norm.
    The polynomial is odd, so that what was skew stays skew.

    Args:
        tangent: Skew-symmetric, shape ``(..., n, n)``; where all of it is 0 it stays so.
        iterations: How many times the polynomial is applied.
        dtype: Of the products; bfloat16 does as well, where the device is fast with it.

    Returns:
        Shape ``(..., n, n)``, skew-symmetric, of the type given.
    """
    first, third, fifth = 3.4445, -4.7750, 2.0315
    stack = tangent.reshape(-1, *tangent.shape[-2:])
    turned = (stack / _or_one(torch.linalg.matrix_norm(stack, keepdim=True))).to(dtype)
    square = turned @ turned.mT
    fourth = square @ square
    # Singular values of a skew matrix come in pairs: the sum has the largest one twice.
    size = _or_one(torch.linalg.matrix_norm(fourth.to(stack), keepdim=True) / 2**0.5) ** 0.25
    turned = turned * (1 / size).to(dtype)
    factor = square * (third / size**2).to(dtype) + fourth * (fifth / size**4).to(dtype)
    for iteration in range(iterations):
        if iteration:
            square = turned @ turned.mT
            factor = torch.baddbmm(square, square, square, beta=third, alpha=fifth)
        turned = torch.baddbmm(turned, factor, turned, beta=first)
    wide = turned.to(tangent)
    skew: Tensor = ((wide - wide.mT) / 2).reshape(tangent.shape)
    return skew


def _or_one(size: Tensor) -> Tensor:
    return torch.where(size > 0, size, 1.0)


class OrthonormalRows(nn.Module):
    """A linear layer with orthonormal rows: of each part some rows of an orthogonal matrix, then one for all.

    Args:
        width: Of each part.
        dim: Rows, at most ``parts`` times ``width``, and a multiple of ``parts``.
        parts: How many of ``width`` numbers lie side by side in the values.
    """

    def __init__(self, width: int, dim: int, parts: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(random_orthogonal(parts, width))
        self.mixed = nn.Parameter(random_orthogonal(dim)) if parts > 1 else None
        self.count = dim // parts

    def rows(self, exact: Callable[[Tensor], Tensor] = lambda matrices: matrices) -> Tensor:
        """Return the matrix, ``(dim, parts * width)``, of matrices as they are or made ``exact``."""
        rows: Tensor = torch.block_diag(*exact(self.weight)[:, : self.count])
        return rows if self.mixed is None else exact(self.mixed) @ rows

    def forward(self, values: Tensor) -> Tensor:
        """Map ``(N, parts * width)`` to ``(N, dim)``."""
        return functional.linear(values, self.rows())


class OrthogonalMuon(torch.optim.AdamW):
    """Muon on the manifold of orthogonal matrices, where a group of parameters says so, and Adam elsewhere.

    For a matrix W of such a group with Euclidean gradient G, the gradient along the manifold is W A with the
    skew-symmetric A = (WᵀG − GᵀW) / 2. Momentum averages A, which lies in the same space whatever W is, so that nothing
    has to be transported. :func:`equalised` makes of the average a Q that turns every plane by about one angle: the
    steepest descent where the size of a step is the largest angle by which it turns anything (Muon, Jordan et al.
    2024, in the Lie algebra). The step leads along the geodesic, W exp(−lr Q), by the series up to its third power, and
    every ``polar_interval`` steps one Newton–Schulz step takes off what series and rounding have left. All matrices of
    one shape are best one parameter, ``(m, n, n)``: every product here is then a batched one.

    Args:
        parameters: Parameters or groups; a group with ``orthogonal=True`` holds stacks ``(..., n, n)`` of orthogonal
            matrices. They decay never.
        lr: Learning rate; for orthogonal matrices the angle of a step in radians, about, whatever their width.
        momentum: Share of the average that stays, for orthogonal matrices; the gradient counts once more (Nesterov).
        betas: Of Adam's averages, for the other groups.
        weight_decay: Of the other groups.
        polar_interval: Steps between two polar steps.
        dtype: Of the products that choose a direction, and of the second and third power of a step.
    """

    def __init__(
        self,
        parameters: Iterable[Any],
        lr: float = 0.02,
        momentum: float = 0.9,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        polar_interval: int = 4,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        at_least(1, polar_interval=polar_interval)
        fraction(momentum=momentum)
        super().__init__(parameters, lr=lr, betas=betas, weight_decay=weight_decay)
        self.momentum = momentum
        self.polar_interval = polar_interval
        self.dtype = dtype
        for group in self.param_groups:
            group.setdefault("orthogonal", False)
            if group["orthogonal"]:
                group["weight_decay"] = 0.0

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
        gradients: dict[Tensor, Tensor | None] = {}
        for group in self.param_groups:
            if group["orthogonal"]:
                self._turn(group)
                gradients |= {parameter: parameter.grad for parameter in group["params"]}
        for parameter in gradients:
            parameter.grad = None  # Adam passes over it
        super().step()
        for parameter, gradient in gradients.items():
            parameter.grad = gradient
        return loss

    def _turn(self, group: dict[str, Any]) -> None:
        """Step along the manifold with the matrices of a group."""
        for matrices in group["params"]:
            if matrices.grad is None:
                continue
            product = (matrices.mT.to(self.dtype) @ matrices.grad.to(self.dtype)).to(matrices)
            tangent = (product - product.mT) / 2
            state = self.state[matrices]
            if "momentum" not in state:
                state |= {"step": torch.tensor(0.0), "momentum": torch.zeros_like(tangent)}  # AdamW expects a "step"
            state["step"] += 1
            average = state["momentum"]
            average.lerp_(tangent, 1 - self.momentum)
            turn = equalised(average.lerp(tangent, 1 - self.momentum), dtype=self.dtype)
            matrices += matrices @ truncated_exponential(-group["lr"] * turn, self.dtype)
            if int(state["step"]) % self.polar_interval == 0:
                matrices.copy_(polar_step(matrices))
