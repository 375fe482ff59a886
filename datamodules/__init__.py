"""Data sets streamed through a frozen encoder."""

from .base import EncodedDataModule
from .cifar10 import CIFAR10DataModule
from .digits import DigitsDataModule
from .gaussian_mixture import GaussianMixtureDataModule
from .image_folder import ImageFolderDataModule, ImageNetDataModule

__all__ = [
    "CIFAR10DataModule",
    "DigitsDataModule",
    "EncodedDataModule",
    "GaussianMixtureDataModule",
    "ImageFolderDataModule",
    "ImageNetDataModule",
]
