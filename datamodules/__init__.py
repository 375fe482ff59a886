"""Data sets streamed through a frozen encoder."""

import ellips  # noqa: F401 - first: it sees to it that `datamodules` and `ellips.datamodules` are the same

from .base import EncodedDataModule
from .cifar10 import CIFAR10DataModule
from .digits import DigitsDataModule
from .gaussian_mixture import GaussianMixtureDataModule
from .image_folder import ImageFolderDataModule, ImageNetDataModule
from .selection import SelectionDataModule

__all__ = [
    "CIFAR10DataModule",
    "DigitsDataModule",
    "EncodedDataModule",
    "GaussianMixtureDataModule",
    "ImageFolderDataModule",
    "ImageNetDataModule",
    "SelectionDataModule",
]
