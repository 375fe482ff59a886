"""Data sets streamed through a frozen encoder."""

from .base import EncodedDataModule
from .digits import DigitsDataModule

__all__ = ["DigitsDataModule", "EncodedDataModule"]
