"""Errors that callers may want to tell apart."""

from __future__ import annotations


class NotFittedError(RuntimeError):
    """A classifier was used before its Gaussians were fitted."""


class EncoderMismatchError(ValueError):
    """Two things that must come from one encoder come from different ones."""


class DataMismatchError(ValueError):
    """Images are not what a classifier was made for: other classes, or read in another way."""


class WeightsNotFoundError(FileNotFoundError):
    """Pretrained weights are not where they were looked for."""
