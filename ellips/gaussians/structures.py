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
_RANGE_ELEMENTS = 2**22  # of the matrices of some classes that something is made of at a time: 32 MB


def square_norm(whitened: Tensor) -> Tensor:
    """Return ‖y‖² over the last dimension; y is overwritten where no gradient needs it."""
    squares = whitened.square() if whitened.requires_grad else whitened.square_()
    return squares.sum(-1)


def class_tiles(classes: int, width: int) -> list[slice]:
    """Return ranges of classes such that ``width`` numbers for each and ``TILE_ROWS`` points stay in the caches."""
    step = max(1, _TILE_ELEMENTS // (TILE_ROWS * max(1, width)))
    return [slice(k, min(k + step, classes)) for k in range(0, classes, step)]


def class_ranges(classes: int, elements: int) -> list[slice]:
    """Return ranges of classes of ``elements`` numbers each that take little memory, however many classes there are."""
    step = max(1, _RANGE_ELEMENTS // max(1, elements))
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
    def read(self) -> Iterator[Tensor]:
        """What is read of the stored tensors, some classes at a time: all that the mixture computes follows from it."""

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

    Attributes:
        factors: A_k.
    """

    stored = trained = ("precision_factors",)

    factors: Tensor
    num_classes: int

    @abstractmethod
    def whitening(self, means: Tensor) -> Callable[[slice], Callable[[Tensor], Tensor]]:
        """Return, for a range of k classes, the map from z, shape ``(N, d)``, to A(z − μ), shape ``(N, k, d)``.

        Latents are centred on the mean of the means first: data far from the origin would otherwise cost digits.
        """

    @abstractmethod
    def detached(self) -> Self:
        """See :class:`Structure`; of triangular factors nothing is copied unless numbers stand above the diagonal."""

    @property
    def factor_norms(self) -> Tensor:
        """See :class:`Structure`."""
        norms: Tensor = self.factors.flatten(1).norm(dim=1)
        return norms

    def squares(self, z: Tensor, means: Tensor) -> Tensor:
        """See :class:`Structure`; class by class, so that no more than a tile of factors is made of the stored ones."""
        whiten, columns, squares = self.whitening(means), [], z.new_empty(z.shape[0], len(means))
        for k in class_tiles(*means.shape):
            tile = whiten(k)
            column = torch.cat([square_norm(tile(rows)) for rows in row_tiles(z)])
            if column.requires_grad:
                columns.append(column)
            else:  # into one tensor: small ones between large ones that are freed would break up the memory
                squares[:, k] = column
        return torch.cat(columns, dim=1) if columns else squares


class Full(Factored):
    """P_k = A_kᵀA_k with A_k lower triangular.

    Args:
        stored: Shape ``(K, d, d)``, of which the lower triangles are read.
        triangular: Whether nothing else stands there, so that they need not be cut out.
    """

    def __init__(self, stored: Tensor, triangular: bool = False) -> None:
        self._stored, self._triangular = stored, triangular
        self.num_classes = len(stored)

    @staticmethod
    def shapes(num_classes: int, dim: int, rank: int) -> list[tuple[int, ...]]:
        """See :class:`Structure`."""
        return [(num_classes, dim, dim)]

    def detached(self) -> Self:
        """See :class:`Factored`."""
        stored = self._stored.detach()
        ranges = class_ranges(self.num_classes, stored[0].numel())
        if self._triangular or not any(bool(stored[k].triu(1).any()) for k in ranges):
            return type(self)(stored, triangular=True)
        return type(self)(stored.tril(), triangular=True)

    @property
    def factors(self) -> Tensor:  # type: ignore[override]  # made when they are asked for
        """A_k, shape ``(K, d, d)``: a copy, where numbers may stand above the diagonal."""
        return self._stored if self._triangular else self._stored.tril()

    def lower(self, k: slice | Tensor | int) -> Tensor:
        """Return A_k of some classes."""
        part = self._stored[k]
        return part if self._triangular else part.tril()

    @property
    def read(self) -> Iterator[Tensor]:
        """See :class:`Structure`."""
        return (self.lower(k) for k in class_ranges(self.num_classes, self._stored[0].numel()))

    @property
    def factor_norms(self) -> Tensor:
        """See :class:`Structure`."""
        return torch.cat([part.flatten(1).norm(dim=1) for part in self.read])

    @property
    def logs(self) -> list[Tensor]:
        """See :class:`Structure`."""
        return [self._stored.diagonal(dim1=-2, dim2=-1)]

    def whitening(self, means: Tensor) -> Callable[[slice], Callable[[Tensor], Tensor]]:
        """See :class:`Factored`."""
        center, dim = means.mean(0), means.shape[1]
        away = (means - center).unsqueeze(-1)

        def whiten(k: slice) -> Callable[[Tensor], Tensor]:
            lower = self.lower(k)
            stacked, shifted = lower.reshape(-1, dim).mT, (lower @ away[k]).reshape(1, -1)
            return lambda z: torch.addmm(shifted, z - center, stacked, beta=-1).view(z.shape[0], len(lower), dim)

        return whiten

    def pull(self, away: Tensor, classes: Tensor) -> Tensor:
        """See :class:`Structure`; grouped by class, so that each factor is read once and none is copied."""
        parts, rows = [], []
        for k, group in grouped_rows(classes):
            factor = self.lower(k)
            parts.append((away[group] @ factor.mT) @ factor)
            rows.append(group)
        return _reordered(parts, rows, away)

    def energy(self, vector: Tensor, classes: Tensor) -> Tensor:
        """See :class:`Structure`."""
        energy: Tensor = (self.lower(classes) @ vector.unsqueeze(-1)).flatten(1).square().sum(-1)
        return energy

    def factor(self, classes: Tensor) -> Tensor:
        """See :class:`Structure`."""
        return self.lower(classes)

    def covariances(self) -> Tensor:
        """See :class:`Structure`."""
        roots = (inverse_factor(part) for part in self.read)
        return torch.cat([root @ root.mT for root in roots])

    def traces(self) -> Tensor:
        """See :class:`Structure`."""
        return torch.cat([inverse_factor(part).square().flatten(1).sum(1) for part in self.read])

    def color(self, noise: Tensor, classes: Tensor) -> Tensor:
        """See :class:`Structure`."""
        colored = torch.empty_like(noise)
        for k, rows in grouped_rows(classes):
            colored[rows] = torch.linalg.solve_triangular(self.lower(k), noise[rows].mT, upper=False).mT
        return colored


class Diagonal(Factored):
    """P_k = diag(a_k)².

    Args:
        factors: a_k, shape ``(K, d)``.
    """

    def __init__(self, factors: Tensor) -> None:
        self.factors = factors
        self.num_classes = len(factors)

    def detached(self) -> Self:
        """See :class:`Factored`."""
        return type(self)(self.factors.detach())

    @property
    def read(self) -> Iterator[Tensor]:
        """See :class:`Structure`."""
        return iter((self.factors,))

    @staticmethod
    def shapes(num_classes: int, dim: int, rank: int) -> list[tuple[int, ...]]:
        """See :class:`Structure`."""
        return [(num_classes, dim)]

    @property
    def logs(self) -> list[Tensor]:
        """See :class:`Structure`."""
        return [self.factors]

    def whitening(self, means: Tensor) -> Callable[[slice], Callable[[Tensor], Tensor]]:
        """See :class:`Factored`."""
        center = means.mean(0)
        scaled = self.factors * (means - center)
        return lambda k: lambda z: (z - center).unsqueeze(1) * self.factors[k] - scaled[k]

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
