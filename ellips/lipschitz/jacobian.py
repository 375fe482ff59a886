"""Spectral norms of Jacobians, many points at once, from forward- and reverse-mode products only."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import jvp, vjp

from ellips.lipschitz.base import ImageMap, LipschitzBound, LipschitzSource
from ellips.lipschitz.sampling import random_directions

Product = Callable[[Tensor], tuple[Tensor]]
"""A product with the Jacobians or their transposes, as torch.func returns it."""


class SpectralNorms(NamedTuple):
    """Spectral norms of the Jacobians at M points.

    Attributes:
        norm: Shape ``(M,)``, float64; approached from below.
        residual: Shape ``(M,)``, float64; some singular value lies within ``residual * norm`` of the norm.
        vector: Shape of the points; unit right singular vectors, a good start for neighbouring points.
    """

    norm: Tensor
    residual: Tensor
    vector: Tensor


@torch.no_grad()  # of the results; torch.func differentiates inside
def spectral_norms(
    function: ImageMap, points: Tensor, start: Tensor, *, num_iterations: int = 20, tolerance: float = 0.0
) -> SpectralNorms:
    """Compute the spectral norm of the Jacobian of ``function`` at each point.

    Power iteration on J'J whose iterates are kept, orthogonalised and combined in the best way (Golub-Kahan-Lanczos
    bidiagonalisation, Golub & Van Loan, *Matrix Computations*, section 10.4): each iteration costs one forward- and
    one reverse-mode product, and the first shares its forward pass between the two.

    Args:
        function: Maps ``(M, ...)`` to ``(M, d)``, each point by itself.
        points: Shape ``(M, ...)``.
        start: Shape of the points: start vectors, not zero and of any length.
        num_iterations: The most iterations; ``min(D, d)`` of them are exact for points of D elements.
        tolerance: Stop once the largest residual of the batch is at most this; 0 never stops early.

    Returns:
        Norms, residuals and singular vectors.

    Raises:
        ValueError: If the function's value is not of shape ``(M, d)`` or there are no iterations.
    """
    if num_iterations < 1:
        raise ValueError(f"Expected `num_iterations` to be at least 1 but got {num_iterations}.")
    right = [_unit(start.flatten(1))[0]]
    left: list[Tensor] = []
    diagonal: list[Tensor] = []
    upper: list[Tensor] = []
    value, product, pull_back = _first_product(function, points, right[0].view_as(points))
    num_iterations = min(num_iterations, right[0].shape[1], value.shape[1])
    push_forward: Product | None = None
    while len(upper) < num_iterations:
        if push_forward is not None:
            (product,) = push_forward(right[-1].view_as(points))
        vector, length = _unit(_orthogonal(product, left), _noise(diagonal + upper))
        left.append(vector)
        diagonal.append(length)
        if push_forward is None and num_iterations > 1:
            back, push_forward = _transposed(pull_back, vector)
        else:
            (back,) = pull_back(vector)
        vector, length = _unit(_orthogonal(back.flatten(1), right), _noise(diagonal + upper))
        right.append(vector)
        upper.append(length)
        if tolerance > 0 and bool((_residual(diagonal, upper) <= tolerance).all()):
            break
    _, values, rows = torch.linalg.svd(_bidiagonal(diagonal, upper), full_matrices=False)
    vector = torch.einsum("mk,mkd->md", rows[:, 0].to(points), torch.stack(right, dim=1))
    return SpectralNorms(values[:, 0], _residual(diagonal, upper), vector.view_as(points))


def _first_product(function: ImageMap, points: Tensor, direction: Tensor) -> tuple[Tensor, Tensor, Product]:
    """Return the values, ``J direction``, and the reverse-mode product as a function, from one forward pass."""

    def value_and_product(at: Tensor) -> tuple[Tensor, Tensor]:
        dual: Any = jvp(function, (at,), (direction,))
        return dual[0], dual[1]

    # torch types the result for two or three values at once, depending on has_aux.
    found: Any = vjp(value_and_product, points, has_aux=True)
    value, pull_back, product = found
    if value.ndim != 2 or len(value) != len(points):
        raise ValueError(
            f"Expected the function to map {tuple(points.shape)} to shape ({len(points)}, d) "
            f"but got {tuple(value.shape)}."
        )
    return value, product, pull_back


def _transposed(pull_back: Product, vector: Tensor) -> tuple[Tensor, Product]:
    """Return ``J'vector`` and the forward-mode product as a function.

    The reverse-mode product is linear, so its own reverse is the forward-mode product, without another forward pass.
    """
    found: Any = vjp(lambda cotangent: pull_back(cotangent)[0], vector)
    return found[0], found[1]


def _noise(lengths: list[Tensor]) -> Tensor | None:
    """What rounding leaves of a vector that lies in the span of those before it, given the lengths so far."""
    if not lengths:
        return None
    return 1e3 * torch.finfo(lengths[0].dtype).eps * torch.stack(lengths).amax(dim=0)


def _unit(vectors: Tensor, floor: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return unit vectors and lengths; what is not longer than ``floor`` becomes zero.

    Beyond the Jacobian's rank only rounding errors are left. Brought to unit length they would be directions that are
    not orthogonal to the others, and the norms would come out too large.
    """
    length = torch.linalg.vector_norm(vectors, dim=1)
    if floor is not None:
        length = torch.where(length > floor, length, torch.zeros_like(length))
        vectors = torch.where(length[:, None] > 0, vectors, torch.zeros_like(vectors))
    return vectors / length.clamp_min(torch.finfo(vectors.dtype).tiny)[:, None], length


def _orthogonal(vectors: Tensor, basis: list[Tensor]) -> Tensor:
    """Remove the parts along the orthonormal ``basis``, twice, because once is not enough in floating point."""
    if not basis:
        return vectors
    stacked = torch.stack(basis, dim=1)
    for _ in range(2):
        vectors = vectors - torch.einsum("mk,mkd->md", torch.einsum("mkd,md->mk", stacked, vectors), stacked)
    return vectors


def _bidiagonal(diagonal: list[Tensor], upper: list[Tensor]) -> Tensor:
    """Return the ``(M, k, k + 1)`` bidiagonal matrix, in float64."""
    count = len(diagonal)
    matrix = diagonal[0].new_zeros(len(diagonal[0]), count, count + 1, dtype=torch.float64)
    matrix[:, range(count), range(count)] = torch.stack(diagonal, dim=1).double()
    matrix[:, range(count), range(1, count + 1)] = torch.stack(upper, dim=1).double()
    return matrix


def _residual(diagonal: list[Tensor], upper: list[Tensor]) -> Tensor:
    """Return ``||J'u - s v|| / s`` of the square matrix's leading singular triple, for which ``J v = s u`` holds."""
    columns, values, _ = torch.linalg.svd(_bidiagonal(diagonal, upper)[:, :, :-1])
    residual = upper[-1].double() * columns[:, -1, 0].abs()
    return torch.where(residual > 0, residual / values[:, 0], torch.zeros_like(residual))


class JacobianNorm(LipschitzSource):
    """The spectral norm of the Jacobian at the image itself: ``estimated``.

    It says how fast the latent changes *at* the image and nothing about the points around it, so a radius made from
    it is the first-order one.

    Args:
        num_iterations: The most pairs of forward- and reverse-mode products.
        tolerance: Stop once the relative residual is at most this in the whole batch.
        seed: Seed of the start vectors; each image's start depends on the image and the seed only.
        ball_radius: L2 radius, on [0, 1] pixels, to which the user is ready to extrapolate; it caps the input radius.

    Raises:
        ValueError: If a setting is out of range.
    """

    def __init__(
        self, num_iterations: int = 30, tolerance: float = 1e-3, seed: int = 0, ball_radius: float = 1.0
    ) -> None:
        if num_iterations < 1:
            raise ValueError(f"Expected `num_iterations` to be at least 1 but got {num_iterations}.")
        if not tolerance >= 0:
            raise ValueError(f"Expected `tolerance` to be at least 0 but got {tolerance}.")
        if not ball_radius > 0:
            raise ValueError(f"Expected `ball_radius` to be positive but got {ball_radius}.")
        self.num_iterations = num_iterations
        self.tolerance = tolerance
        self.seed = seed
        self.ball_radius = ball_radius

    def bound(self, function: ImageMap, images: Tensor) -> LipschitzBound:
        """Compute the Jacobian's spectral norm at each image; see :meth:`LipschitzSource.__call__`."""
        start = random_directions(images, self.seed)
        limit = min(self.num_iterations, math.prod(images.shape[1:]))
        found = spectral_norms(function, images, start, num_iterations=limit, tolerance=self.tolerance)
        return LipschitzBound(
            constant=found.norm,
            ball_radius=torch.full_like(found.norm, self.ball_radius),
            soundness="estimated",
            source=f"JacobianNorm({self.num_iterations} iterations, tolerance {self.tolerance:g}, seed {self.seed})",
            diagnostics={"residual": found.residual},
        )
