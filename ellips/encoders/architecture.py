"""What architectures of 1-Lipschitz encoders have in common: how they are built, trained and made plain."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from typing import Any, ClassVar, Self

from torch import nn


class EncoderArchitecture(ABC):
    """Layers of a 1-Lipschitz encoder; every subclass is a frozen dataclass of their sizes.

    Attributes:
        kind: Its name in files.
        dense_limit: Up to how many inputs or outputs an affine piece is written out for the proof.
        gram_iterations: Gram iterations for each convolution that is not, see :class:`SpectralProduct`.
        image_shape: Channels, height and width of the images.
        feature_dim: Width of the features.
    """

    kind: ClassVar[str]
    dense_limit: ClassVar[int] = 4096
    gram_iterations: ClassVar[int] = 10

    image_shape: tuple[int, int, int]
    feature_dim: int

    def __post_init__(self) -> None:
        if len(self.image_shape) != 3 or min((*self.image_shape, self.feature_dim)) < 1:
            raise ValueError(
                f"Expected `image_shape` to be (C, H, W) and `feature_dim` positive but got {self.image_shape} and "
                f"{self.feature_dim}."
            )

    @abstractmethod
    def build(self) -> nn.Module:
        """Return the plain layers that an exported file holds the weights of."""

    @abstractmethod
    def trainable(self) -> nn.Module:
        """Return the layers as they are trained."""

    def manifold(self, trained: nn.Module) -> list[nn.Parameter]:
        """Return the parameters that have to stay stacks of orthogonal matrices while training."""
        del trained
        return []

    @abstractmethod
    def plain(self, trained: nn.Module) -> nn.Module:
        """Return plain layers, in eval mode, that compute what trained ones do."""

    @abstractmethod
    def scaled(self, plain: nn.Module) -> Iterable[nn.Parameter]:
        """Return the parameters of plain layers to divide so that all features are divided."""

    @property
    def untold(self) -> str:
        """What of it neither its weights nor its image size tell, unless it is the default: for fingerprints."""
        return ""

    def to_record(self) -> dict[str, Any]:
        """Return what JSON can hold and :meth:`from_record` reads."""
        return {"kind": self.kind, **asdict(self)}  # type: ignore[call-overload]  # a dataclass

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Self:
        """Return the architecture of a record.

        Raises:
            ValueError: If it lacks a number, or they do not fit each other.
        """
        names = [field.name for field in fields(cls)]  # type: ignore[arg-type]  # a dataclass
        if missing := [name for name in names if name not in record]:
            raise ValueError(f"Expected the record of the architecture to have {names} but {missing} are missing.")
        return cls(**{name: _frozen(record[name]) for name in names})


def _frozen(value: object) -> Any:  # noqa: ANN401 - of any field
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
