"""What the precisions of K classes look like, and what follows from the tensors that are stored of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor

# Latents are whitened in tiles of some points for some classes; larger ones leave the processor's caches.
TILE_ROWS = 256
_TILE_ELEMENTS = 2**18


def square_norm(whitened: Tensor) -> Tensor:
    """Return ‖y‖² over the last dimension; y is overwritten where no gradient needs it."""
    squares = whitened.square() if whitened.requires_grad else whitened.square_()
    return squares.sum(-1)


def class_tiles(classes: int, width: int) -> list[slice]:
    """Return ranges of classes such that ``width`` numbers for each and ``TILE_ROWS`` points stay in the caches."""
    step = max(1, _TILE_ELEMENTS // (TILE_ROWS * max(1, width)))
    return [slice(k, min(k + step, classes)) for k in range(0, classes, step)]


def row_tiles(z: Tensor) -> Sequence[Tensor]:
    """Return latents in parts of ``TILE_ROWS``; all at once where how many there are shall stay open."""
    return (z,) if torch.compiler.is_compiling() else z.split(TILE_ROWS)


def grouped_rows(classes: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Return every class that occurs with the rows it stands in."""
    order = classes.argsort()
    found, counts = torch.unique_consecutive(classes[order], return_counts=True)
    return zip(found.tolist(), order.split(counts.tolist()), strict=True)


class Structure(ABC):
    """Precisions P_k of K classes as their tensors say; a view that copies nothing and is differentiable.

    Attributes:
        stored: Names of the tensors, which are buffers of the mixture.
        trained: Those among them that may be trained.
        num_classes: K.
    """

    stored: ClassVar[tuple[str, ...]]
    trained: ClassVar[tuple[str, ...]]
    num_classes: int

    @staticmethod
    @abstractmethod
    def shapes(num_classes: int, dim: int, rank: int) -> list[tuple[int, ...]]:
        """Return the shapes of the stored tensors, in order."""

    @property
    @abstractmethod
    def read(self) -> tuple[Tensor, ...]:
        """What is read of the stored tensors: all that the mixture computes follows from it."""

    @property
    @abstractmethod
    def logs(self) -> list[Tensor]:
        """Numbers whose absolute values' logarithms sum to log det A_k, of shapes ``(K, n)``; P_k = A_kᵀA_k."""

    @property
    @abstractmethod
    def factor_norms(self) -> Tensor:
        """How large A_k is: ‖A_k‖_F, shape ``(K,)``; of a mixture of low rank that of its common factor."""

    @abstractmethod
    def squares(self, z: Tensor, means: Tensor) -> Tensor:
        """Return (z − μ_k)ᵀP_k(z − μ_k) of all points and classes, shape ``(N, K)``."""

    @abstractmethod
    def pull(self, away: Tensor, classes: Tensor) -> Tensor:
        """Return P_k v for a vector and a class in each row, shape ``(N, d)``."""

    @abstractmethod
    def energy(self, vector: Tensor, classes: Tensor) -> Tensor:
        """Return vᵀP_k v for a vector and a class in each row, shape ``(N,)``."""

    @abstractmethod
    def factor(self, classes: Tensor) -> Tensor:
        """Return A_k written out, with A_kᵀA_k = P_k, for some classes, shape ``(N, d, d)``."""

    @abstractmethod
    def covariances(self) -> Tensor:
        """Return Σ_k, shape ``(K, d, d)``."""

    @abstractmethod
    def traces(self) -> Tensor:
        """Return tr Σ_k, shape ``(K,)``."""

    @abstractmethod
    def color(self, noise: Tensor, classes: Tensor) -> Tensor:
        """Return standard normal rows turned into deviations from the means of their classes."""

    @abstractmethod
    def detached(self) -> Self:
        """Return the same without gradients."""

    def precisions(self, classes: Tensor) -> Tensor:
        """Return P_k of some classes, shape ``(N, d, d)``."""
        factor = self.factor(classes)
        return factor.mT @ factor


class Factored(Structure):
    """P_k = A_kᵀA_k with a stored factor for each class.

    Args:
        factors: A_k.
    """

    stored = trained = ("precision_factors",)

    def __init__(self, factors: Tensor) -> None:
        self.factors = factors
        self.num_classes = len(factors)

    @abstractmethod
    def whitening(self, means: Tensor) -> Callable[[Tensor, slice], Tensor]:
        """Return the map from z, shape ``(N, d)``, and a range of k classes to A(z − μ), shape ``(N, k, d)``.

        Latents are centred on the mean of the means first: data far from the origin would otherwise cost digits.
        """

    def detached(self) -> Self:
        """See :class:`Structure`."""
        return type(self)(self.factors.detach())

    @property
    def read(self) -> tuple[Tensor, ...]:
        """See :class:`Structure`."""
        return (self.factors,)

    @property
    def factor_norms(self) -> Tensor:
        """See :class:`Structure`."""
        norms: Tensor = self.factors.flatten(1).norm(dim=1)
        return norms

    def squares(self, z: Tensor, means: Tensor) -> Tensor:
        """See :class:`Structure`."""
        whiten, tiles = self.whitening(means), class_tiles(*means.shape)
        parts = [torch.cat([square_norm(whiten(rows, k)) for k in tiles], dim=1) for rows in row_tiles(z)]
        return torch.cat(parts)


class Full(Factored):
    """P_k = A_kᵀA_k with A_k lower triangular.

    Args:
        factors: Shape ``(K, d, d)``, of which the lower triangles are read.
    """

    def __init__(self, factors: Tensor) -> None:
        super().__init__(factors.tril())

    @staticmethod
    def shapes(num_classes: int, dim: int, rank: int) -> list[tuple[int, ...]]:
        """See :class:`Structure`."""
        return [(num_classes, dim, dim)]

    @property
    def logs(self) -> list[Tensor]:
        """See :class:`Structure`."""
        return [self.factors.diagonal(dim1=-2, dim2=-1)]

    def whitening(self, means: Tensor) -> Callable[[Tensor, slice], Tensor]:
        """See :class:`Factored`."""
        center, dim = means.mean(0), means.shape[1]
        stacked = self.factors.reshape(-1, dim).mT
        shifted = (self.factors @ (means - center).unsqueeze(-1)).reshape(1, -1)

        def whiten(z: Tensor, k: slice) -> Tensor:
            columns = slice(k.start * dim, k.stop * dim)
            return torch.addmm(shifted[:, columns], z - center, stacked[:, columns], beta=-1).view(
                z.shape[0], k.stop - k.start, dim
            )

        return whiten

    def pull(self, away: Tensor, classes: Tensor) -> Tensor:
        """See :class:`Structure`; grouped by class, so that each factor is read once and none is copied."""
        groups = list(grouped_rows(classes))
        pulls = [(away[rows] @ self.factors[k].mT) @ self.factors[k] for k, rows in groups]
        return _reordered(pulls, [rows for _, rows in groups], away)

    def energy(self, vector: Tensor, classes: Tensor) -> Tensor:
        """See :class:`Structure`."""
        energy: Tensor = (self.factors[classes] @ vector.unsqueeze(-1)).flatten(1).square().sum(-1)
        return energy

    def factor(self, classes: Tensor) -> Tensor:
        """See :class:`Structure`."""
        return self.factors[classes]

    def covariances(self) -> Tensor:
        """See :class:`Structure`."""
        roots = inverse_factor(self.factors)
        return roots @ roots.mT

    def traces(self) -> Tensor:
        """See :class:`Structure`."""
        return inverse_factor(self.factors).square().flatten(1).sum(1)

    def color(self, noise: Tensor, classes: Tensor) -> Tensor:
        """See :class:`Structure`."""
        colored = torch.empty_like(noise)
        for k, rows in grouped_rows(classes):
            colored[rows] = torch.linalg.solve_triangular(self.factors[k], noise[rows].mT, upper=False).mT
        return colored


class Diagonal(Factored):
    """P_k = diag(a_k)².

    Args:
        factors: a_k, shape ``(K, d)``.
    """

    @staticmethod
    def shapes(num_classes: int, dim: int, rank: int) -> list[tuple[int, ...]]:
        """See :class:`Structure`."""
        return [(num_classes, dim)]

    @property
    def logs(self) -> list[Tensor]:
        """See :class:`Structure`."""
        return [self.factors]

    def whitening(self, means: Tensor) -> Callable[[Tensor, slice], Tensor]:
        """See :class:`Factored`."""
        center = means.mean(0)
        scaled = self.factors * (means - center)
        return lambda z, k: (z - center).unsqueeze(1) * self.factors[k] - scaled[k]

    def pull(self, away: Tensor, classes: Tensor) -> Tensor:
        """See :class:`Structure`."""
        return self.factors[classes].square() * away

    def energy(self, vector: Tensor, classes: Tensor) -> Tensor:
        """See :class:`Structure`."""
        return (self.factors[classes] * vector).square().sum(-1)

    def factor(self, classes: Tensor) -> Tensor:
        """See :class:`Structure`."""
        return torch.diag_embed(self.factors[classes])

    def covariances(self) -> Tensor:
        """See :class:`Structure`."""
        return torch.diag_embed(self.factors.reciprocal().square())

    def traces(self) -> Tensor:
        """See :class:`Structure`."""
        return self.factors.reciprocal().square().sum(1)

    def color(self, noise: Tensor, classes: Tensor) -> Tensor:
        """See :class:`Structure`."""
        return noise / self.factors[classes]


def inverse_factor(factor: Tensor) -> Tensor:
    """Return A⁻¹ of lower triangular matrices ``(..., d, d)``."""
    eye = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    inverse: Tensor = torch.linalg.solve_triangular(factor, eye.expand_as(factor), upper=False)
    return inverse


def _reordered(parts: list[Tensor], rows: list[Tensor], like: Tensor) -> Tensor:
    """Put rows that were computed group by group back in their places."""
    order = torch.cat([*rows, rows[0][:0]]) if rows else torch.arange(0, device=like.device)
    return torch.cat([*parts, like[:0]])[order.argsort()]
