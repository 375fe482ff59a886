"""Noisy copies of images, whose noise never changes: what a classifier that votes under noise is made from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ellips.types import ImageBatch
from ellips.validation import at_least, positive

from .base import Part
from .sources import ImageDataset, ImageSource, to_unit


@dataclass(frozen=True)
class GaussianNoise:
    """Adds Gaussian noise to an image, as randomised smoothing does; pixels may leave [0, 1] and are not clipped.

    Attributes:
        sigma: Standard deviation in each pixel, on [0, 1] pixels at dataset resolution.

    Raises:
        ValueError: If ``sigma`` is not positive.
    """

    sigma: float

    def __post_init__(self) -> None:
        positive(sigma=self.sigma)

    def __call__(self, image: Tensor) -> Tensor:
        """Return a new draw, from torch's global generator."""
        return image + self.sigma * torch.randn_like(image)

    def draw(self, image: Tensor, key: str) -> Tensor:
        """Return the draw that belongs to ``key``: the same in any batch, order and process."""
        # numpy's generator takes all of the digest as its seed, torch's 32 bits: too few for millions of draws.
        digest = hashlib.sha256(key.encode()).digest()
        noise = np.random.default_rng(int.from_bytes(digest, "little")).standard_normal(tuple(image.shape), np.float32)
        return image + self.sigma * torch.from_numpy(noise).to(image.dtype)


class NoisyImages(ImageDataset):
    """Every image of a source several times, each copy with noise of its own.

    Row r is copy ``r % copies`` of image ``r // copies``, so the copies of an image stand together. The noise depends
    on the key, the image's position and the copy's number alone.

    Args:
        source: Where the images are.
        noise: What is added.
        copies: How many of each image.
        key: Tells this noise from that of another seed or split.

    Raises:
        ValueError: If ``copies`` is not positive.
    """

    def __init__(self, source: ImageSource, noise: GaussianNoise, copies: int, key: str) -> None:
        super().__init__(source)
        at_least(1, copies=copies)
        self.noise = noise
        self.copies = copies
        self.key = key

    def __len__(self) -> int:
        """Return the number of copies of all images together."""
        return len(self.source) * self.copies

    def identity(self) -> dict[str, float | int | str]:
        """What the noise depends on, beside the images."""
        return {"sigma": self.noise.sigma, "copies": self.copies, "key": self.key}

    def __getitem__(self, rows: Sequence[int]) -> ImageBatch:
        """Read each image of a batch once and draw its copies; ``index`` is the image's."""
        stored, kept = self.source.read(sorted({row // self.copies for row in rows}))
        images, position = to_unit(stored), {image: i for i, image in enumerate(kept)}
        pairs = [divmod(row, self.copies) for row in rows if row // self.copies in position]
        index = torch.tensor([image for image, _ in pairs], dtype=torch.int64)
        if not pairs:
            return ImageBatch(images[:0], torch.from_numpy(self.source.labels)[index], index)
        drawn = [self.noise.draw(images[position[image]], f"{self.key}/{image}/{copy}") for image, copy in pairs]
        return ImageBatch(torch.stack(drawn), torch.from_numpy(self.source.labels)[index], index)


@dataclass(frozen=True)
class NoisyCopies:
    """Which splits are made of noisy copies, and of how many.

    Attributes:
        noise: What is added.
        train: Copies of each training image.
        votes: Copies of each validation image, beside the clean ones; None: there are none.
        seed: Of the noise.
    """

    noise: GaussianNoise
    train: int
    votes: int | None
    seed: int

    @classmethod
    def of(
        cls, augment: Callable[[Tensor], Tensor] | None, copies: int | None, val_copies: int | None, seed: int
    ) -> NoisyCopies | None:
        """Check a datamodule's arguments; None where they ask for no copies.

        Raises:
            ValueError: If a number is not positive, or the arguments do not go together.
        """
        at_least(1, copies=copies, val_copies=val_copies)
        if copies is None and val_copies is not None:
            raise ValueError(
                f"Expected `copies` with val_copies={val_copies} but got None: Gaussians fitted to clean images would "
                "be judged by votes on noisy ones; set copies to 8, say."
            )
        if copies is None:
            return None
        if not isinstance(augment, GaussianNoise):
            raise ValueError(
                f"Expected `augment` to be GaussianNoise with copies={copies} but got {augment!r}; set augment: "
                "{class_path: ellips.datamodules.GaussianNoise, init_args: {sigma: 0.25}}, or leave out copies to have "
                "images augmented anew in every epoch."
            )
        return cls(augment, copies, val_copies, seed)

    def count(self, split: Part) -> int | None:
        """How many copies a split has of each image; None: its images are clean."""
        return {"train": self.train, "votes": self.votes}.get(split)

    def images(self, source: ImageSource, split: Part) -> ImageDataset:
        """Open the images of a split, or their copies."""
        copies, key = self.count(split), f"{self.seed}/{split}"
        return ImageDataset(source) if copies is None else NoisyImages(source, self.noise, copies, key)

    def folder_name(self, split: Part) -> str:
        """Name of a split's folder in the feature cache: each noise has its own, so that several can be tried."""
        copies = self.count(split)
        return split if copies is None else f"{split}-sigma{float(self.noise.sigma)}-copies{copies}-seed{self.seed}"
