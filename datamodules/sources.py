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

from ellips.types import FeatureBatch, ImageBatch
from ellips.validation import validate_pixels

from .cache import FeatureCache
from .sampling import RowsDataset


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
    def read(self, rows: Sequence[int]) -> tuple[Tensor, Sequence[int]]:
        """Read images by position.

        Returns:
            Images ``(n, C, H, W)``, 8-bit or floating point in [0, 1], and the rows they are of: all that were asked
            for, but for unreadable ones that the source was told to skip.
        """

    @abstractmethod
    def identity(self) -> dict[str, str]:
        """What tells this source from any other: name, count, digest of its content or listing."""

    def content(self, rows: Sequence[int]) -> str:
        """Return a digest of the content of some images' files; empty where :meth:`identity` covers the pixels."""
        del rows
        return ""

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

    Raises:
        ValueError: If there are not as many labels as images.
    """

    def __init__(self, name: str, images: Tensor, labels: Sequence[int] | NDArray[np.int64]) -> None:
        if len(images) != len(labels):
            raise ValueError(f"Expected as many labels as images but got {len(labels)} and {len(images)}.")
        self.name = name
        self.images = images.contiguous()
        self.labels = np.asarray(labels, dtype=np.int64)

    def read(self, rows: Sequence[int]) -> tuple[Tensor, Sequence[int]]:
        """Read images by position; none is ever skipped."""
        return self.images[torch.as_tensor(rows)], rows

    def identity(self) -> dict[str, str]:
        """Name, count and SHA-256 of pixels and labels."""
        digest = hashlib.sha256(self.images.numpy().data)
        digest.update(self.labels.tobytes())
        return {"name": self.name, "count": str(len(self)), "sha256": digest.hexdigest()}


class ImageDataset(RowsDataset[ImageBatch]):
    """Batches of a source, by lists of row numbers.

    Args:
        source: Where the images are.
        augment: Called with each image ``(C, H, W)`` in [0, 1]; None leaves them alone.

    Attributes:
        copies: Rows in a row that are of one image.
    """

    copies: int = 1

    def __init__(self, source: ImageSource, augment: Callable[[Tensor], Tensor] | None = None) -> None:
        self.source = source
        self.augment = augment

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.source)

    @property
    def labels(self) -> NDArray[np.int64]:
        """The class of each row, shape ``(N,)``; nothing is read for it."""
        return np.repeat(self.source.labels, self.copies)

    def __getitem__(self, rows: Sequence[int]) -> ImageBatch:
        """Read, scale and augment one batch."""
        stored, kept = self.source.read(rows)
        images = to_unit(stored)
        if stored.dtype != torch.uint8:  # 8 bits over 255 are in [0, 1]; to look would take as long as to decode
            validate_pixels(images, [self.source.path(row) or row for row in kept])
        if self.augment is not None and len(images):
            images = torch.stack([self.augment(image) for image in images])
        index = torch.as_tensor(kept, dtype=torch.int64)
        return ImageBatch(images, torch.from_numpy(self.source.labels)[index], index)


class FeatureDataset(RowsDataset[FeatureBatch]):
    """Batches of a feature cache, by lists of positions.

    Args:
        cache: The features.
        images: What was encoded, if it is wanted beside the features.
    """

    def __init__(self, cache: FeatureCache, images: ImageDataset | None = None) -> None:
        self.cache = cache
        self.images = images

    def __len__(self) -> int:
        """Return the number of rows that have features."""
        return len(self.cache)

    @property
    def labels(self) -> NDArray[np.int64]:
        """The class of each row, shape ``(N,)``."""
        labels: NDArray[np.int64] = self.cache.labels.numpy()
        return labels

    def __getitem__(self, rows: Sequence[int]) -> FeatureBatch:
        """Read one batch of features, by position, and of images if they are wanted."""
        batch = self.cache.read(rows)
        if self.images is None:
            return batch
        copies = self.images.copies
        # An image has features of all its copies or, if it was skipped, of none.
        encoded = batch.index * copies + torch.as_tensor(rows) % copies
        return batch._replace(image=self.images[encoded.tolist()].image)


def to_unit(images: Tensor) -> Tensor:
    """8-bit images to float32 in [0, 1]; floating point ones as they are."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images
