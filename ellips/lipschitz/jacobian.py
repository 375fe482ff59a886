"""Spectral norms of Jacobians, many points at once, from forward- and reverse-mode products only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ellips.chunks import Chunks, ChunkSize, validate_chunk_size
from ellips.lipschitz.base import ConstantSource
from ellips.lipschitz.products import linearize
from ellips.lipschitz.sampling import random_directions
from ellips.settings import UNRECORDED
from ellips.types import ImageMap, LipschitzBound
from ellips.validation import at_least, positive


class SpectralNorms(NamedTuple):
    """Spectral norms of the Jacobians at M points.

    Attributes:
        norm: Shape ``(M,)``, float64; approached from below.
        residual: Shape ``(M,)``, float64; of the estimate s half an iteration before the norm: some singular value
            lies within ``residual * s`` of s.
        left: Shape ``(M, d)``; left singular vectors of length 1, a good start for neighbouring points.
        right: Shape of the points; right singular vectors, with ``J right = norm left``: where the function changes
            fastest. Of length 1, or zero where the norm is.
    """

    norm: Tensor
    residual: Tensor
    left: Tensor
    right: Tensor


@torch.no_grad()  # of the results; torch.func differentiates inside
def spectral_norms(
    function: ImageMap, points: Tensor, start: Tensor, *, num_iterations: int = 20, tolerance: float = 0.0
) -> SpectralNorms:
    """Compute the spectral norm of the Jacobian of ``function`` at each point.

    Power iteration on JJ' whose iterates are kept, orthogonalised and combined in the best way (Golub-Kahan-Lanczos
    bidiagonalisation to lower form, Golub & Van Loan, *Matrix Computations*, section 10.4; Paige & Saunders 1982).
    One forward pass at first, then one reverse- and one forward-mode product an iteration.

    Args:
        function: Maps ``(M, ...)`` to ``(M, d)``, each point by itself.
        points: Shape ``(M, ...)``, D elements each.
        start: Shape ``(M, d)``: start vectors among the values, of any length. One that is orthogonal to all values
            the Jacobian can produce, such as zero, gives norm 0.
        num_iterations: The most iterations; ``min(D, d)`` of them are exact but for rounding.
        tolerance: A point's iterations count until its residual is at most this, so that it gets the same in any
            batch; 0: all of them count.

    Returns:
        Norms, residuals and singular vectors.

    Raises:
        ValueError: If the function's value is not of the shape of ``start`` or there are no iterations.
    """
    at_least(1, num_iterations=num_iterations)
    left = [_unit(start)[0]]
    right: list[Tensor] = []
    diagonal: list[Tensor] = []
    lower: list[Tensor] = []
    derivative = linearize(function, points, left[0])
    back = derivative.pulled
    counted = torch.zeros(len(points), dtype=torch.int64, device=points.device)  # iterations; 0: not over
    residual = torch.zeros(len(points), dtype=torch.float64, device=points.device)
    for _ in range(min(num_iterations, points[0].numel(), start.shape[1]) if len(points) else 1):
        if right:
            back = derivative.pull_back(left[-1])
        vector, length = _unit(_orthogonal(back.flatten(1), right), _noise(diagonal + lower))
        right.append(vector)
        diagonal.append(length)
        product = derivative.push_forward(vector.view_as(points))
        vector, length = _unit(_orthogonal(product, left), _noise(diagonal + lower))
        left.append(vector)
        lower.append(length)
        if tolerance > 0:
            now = _residual(diagonal, lower)
            over = (counted == 0) & (now <= tolerance)
            counted, residual = torch.where(over, len(right), counted), torch.where(over, now, residual)
            if bool((counted > 0).all()):
                break
    residual = torch.where(counted > 0, residual, _residual(diagonal, lower))
    counted = torch.where(counted > 0, counted, len(right))
    columns, values, rows = torch.linalg.svd(_bidiagonal(diagonal, lower, counted), full_matrices=False)
    return SpectralNorms(
        norm=values[:, 0],
        residual=residual,
        left=_combined(left, columns[:, :, 0]),
        right=_combined(right, rows[:, 0]).view_as(points),
    )


def latent_dim(function: ImageMap, images: Tensor) -> int:
    """Return d, the width of the values of ``function``, by running it on one of the images.

    Raises:
        ValueError: If a value is not a vector.
    """
    with torch.no_grad():
        value = function(images[:1])
    if value.ndim != 2:
        expected = f"({len(images[:1])}, d)"
        raise ValueError(
            f"Expected the function to map {tuple(images[:1].shape)} to shape {expected} but got {tuple(value.shape)}."
        )
    return value.shape[1]


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


def _combined(basis: list[Tensor], weights: Tensor) -> Tensor:
    """Combine k vectors ``(M, n)`` by weights ``(M, k)``."""
    return torch.einsum("mk,mkn->mn", weights.to(basis[0]), torch.stack(basis, dim=1))


def _bidiagonal(diagonal: list[Tensor], lower: list[Tensor], counted: Tensor | None = None) -> Tensor:
    """Return ``U'JV``, lower bidiagonal, ``(M, k + 1, k)`` after k iterations, in float64.

    Columns beyond the iterations that count, ``(M,)``, are zero: they change no other singular value or vector.
    """
    count = len(diagonal)
    matrix = diagonal[0].new_zeros(len(diagonal[0]), count + 1, count, dtype=torch.float64)
    matrix[:, range(count), range(count)] = torch.stack(diagonal, dim=1).double()
    matrix[:, range(1, count + 1), range(count)] = torch.stack(lower, dim=1).double()
    if counted is not None:
        matrix *= (torch.arange(count, device=matrix.device) < counted[:, None])[:, None]
    return matrix


def _residual(diagonal: list[Tensor], lower: list[Tensor]) -> Tensor:
    """Return ``||J v - s u|| / s`` of the leading singular triple on all left vectors but the last.

    For that triple ``J'u = s v`` holds; for the one on all of them ``J'u`` is not known.
    """
    _, values, rows = torch.linalg.svd(_bidiagonal(diagonal, lower)[:, :-1])
    residual = lower[-1].double() * rows[:, 0, -1].abs()
    return torch.where(residual > 0, residual / values[:, 0], torch.zeros_like(residual))


@dataclass(frozen=True)
class JacobianNorm(ConstantSource):
    """The spectral norm of the Jacobian at the image itself: ``estimated``.

    It says how fast the latent changes *at* the image and nothing about the points around it, so a radius made from
    it is the first-order one.

    Args:
        num_iterations: The most pairs of forward- and reverse-mode products.
        tolerance: Stop once the relative residual is at most this.
        seed: Seed of the start vectors; each image's start depends on the image and the seed only.
        ball_radius: L2 radius, on [0, 1] pixels, to which the user is ready to extrapolate; it caps the input radius.
        chunk_size: Images that go through the network at once; ``"auto"``: as many as memory takes. It changes no
            estimate.

    Raises:
        ValueError: If a setting is out of range.
    """

    num_iterations: int = 30
    tolerance: float = 1e-3
    seed: int = 0
    ball_radius: float = 1.0
    chunk_size: ChunkSize = field(default="auto", repr=False, compare=False, metadata=UNRECORDED)

    def __post_init__(self) -> None:
        validate_chunk_size(self.chunk_size)
        at_least(1, num_iterations=self.num_iterations)
        at_least(0, tolerance=self.tolerance)
        positive(ball_radius=self.ball_radius, finite=False)

    def bound(self, function: ImageMap, images: Tensor) -> LipschitzBound:
        """Compute the Jacobian's spectral norm at each image; see :meth:`ConstantSource.__call__`."""
        start = random_directions(images, latent_dim(function, images), self.seed)

        def of_chunk(points: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
            found = spectral_norms(
                function, points, starts, num_iterations=self.num_iterations, tolerance=self.tolerance
            )
            return found.norm, found.residual

        norm, residual = Chunks(self.chunk_size, most=max(1, len(images))).run(of_chunk, images, start)
        return LipschitzBound(
            constant=norm,
            ball_radius=torch.full_like(norm, self.ball_radius),
            soundness="estimated",
            source=repr(self),
            diagnostics={"residual": residual},
        )
