"""Image classifiers whose robustness is proven: Gaussians on frozen pretrained features, with exact certificates."""

from ellips._imports import without_collection

with without_collection():
    from ellips import _clone
    from ellips.classifier import Ellips
    from ellips.encoders import FrozenEncoder
    from ellips.gaussians import ClassMoments
    from ellips.head import EllipsHead
    from ellips.pipeline import ImageClassifier

_clone.install()

__all__ = ["ClassMoments", "Ellips", "EllipsHead", "FrozenEncoder", "ImageClassifier"]
