"""Data sets streamed through a frozen encoder."""

import ellips  # noqa: F401 - first: it sees to it that `datamodules` and `ellips.datamodules` are the same

from .base import PARTS, SPLITS, Part, Split, SplitDataModule
from .cifar10 import CIFAR10DataModule
from .digits import DigitsDataModule
from .encoded import EncodedDataModule
from .folder import BadImageError
from .gaussian_mixture import GaussianMixtureDataModule
from .image_folder import ImageFolderDataModule, ImageNetDataModule
from .manifest import CacheMismatchError
from .noise import GaussianNoise, NoisyImages
from .selection import SelectionDataModule
from .sources import ArraySource, ImageSource

__all__ = [
    "PARTS",
    "SPLITS",
    "ArraySource",
    "BadImageError",
    "CIFAR10DataModule",
    "CacheMismatchError",
    "DigitsDataModule",
    "EncodedDataModule",
    "GaussianMixtureDataModule",
    "GaussianNoise",
    "ImageFolderDataModule",
    "ImageNetDataModule",
    "ImageSource",
    "NoisyImages",
    "Part",
    "SelectionDataModule",
    "Split",
    "SplitDataModule",
]
