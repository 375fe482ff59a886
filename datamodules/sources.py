"""Where images come from: something with a length, labels, and images by position."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from ellips.types import ImageBatch


class ImageSource(ABC):
    """Labelled images, read by position.

    Attributes:
        labels: Shape ``(N,)``, int64 class indices.
    """

    labels: NDArray[np.int64]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    @abstractmethod
    def read(self, rows: Sequence[int]) -> list[Tensor] | Tensor:
        """Read images by position, 8-bit or floating point in [0, 1], each ``(C, H, W)``."""

    @abstractmethod
    def identity(self) -> dict[str, str]:
        """What tells this source from any other: name, count, digest of its content or listing."""

    def path(self, row: int) -> Path | None:
        """The file an image is read from, or None where it has no file of its own."""
        del row
        return None


class ArraySource(ImageSource):
    """Images that are in memory.

    Args:
        name: Of the data set and part, for its identity.
        images: Shape ``(N, C, H, W)``, uint8 or floating point in [0, 1].
        labels: Shape ``(N,)``.
    """

    def __init__(self, name: str, images: Tensor, labels: Sequence[int] | NDArray[np.int64]) -> None:
        if len(images) != len(labels):
            raise ValueError(f"Expected as many labels as images but got {len(labels)} and {len(images)}.")
        self.name = name
        self.images = images.contiguous()
        self.labels = np.asarray(labels, dtype=np.int64)

    def read(self, rows: Sequence[int]) -> Tensor:
        """Read images by position as one tensor."""
        return self.images[torch.as_tensor(rows)]

    def identity(self) -> dict[str, str]:
        """Name, count and SHA-256 of pixels and labels."""
        digest = hashlib.sha256(self.images.numpy().data)
        digest.update(self.labels.tobytes())
        return {"name": self.name, "count": str(len(self)), "sha256": digest.hexdigest()}


class ImageDataset(Dataset[ImageBatch]):
    """Batches of a source, by lists of row numbers.

    Args:
        source: Where the images are.
        augment: Called with each image ``(C, H, W)`` in [0, 1]; None leaves them alone.
    """

    def __init__(self, source: ImageSource, augment: Callable[[Tensor], Tensor] | None = None) -> None:
        self.source = source
        self.augment = augment

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.source)

    def __getitem__(self, rows: Sequence[int]) -> ImageBatch:
        """Read, scale and stack one batch."""
        images = self.source.read(rows)
        if self.augment is not None:
            images = [self.augment(to_unit(image)) for image in images]
        stacked = images if isinstance(images, Tensor) else torch.stack(list(images))
        index = torch.as_tensor(rows, dtype=torch.int64)
        return ImageBatch(to_unit(stacked), torch.from_numpy(self.source.labels[np.asarray(rows)]), index)


def to_unit(images: Tensor) -> Tensor:
    """8-bit images to float32 in [0, 1]; floating point ones as they are."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images
