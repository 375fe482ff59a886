"""Image classifiers whose robustness is proven: Gaussians on frozen pretrained features, with exact certificates."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ellips._imports import without_collection

with without_collection():
    from ellips import _clone
    from ellips.classifier import Ellips
    from ellips.gaussians import ClassMoments
    from ellips.head import EllipsHead

if TYPE_CHECKING:
    from ellips.encoders import FrozenEncoder
    from ellips.pipeline import ImageClassifier

_clone.install()

__all__ = ["ClassMoments", "Ellips", "EllipsHead", "FrozenEncoder", "ImageClassifier"]

_WITH_ENCODERS = {"FrozenEncoder": "ellips.encoders", "ImageClassifier": "ellips.pipeline"}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a class
    """Import what needs encoders, and timm with them, when it is asked for: a head alone needs neither."""
    if name not in _WITH_ENCODERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with without_collection():
        found = getattr(import_module(_WITH_ENCODERS[name]), name)
    globals()[name] = found  # parsers look names up again and again
    return found
