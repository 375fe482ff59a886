"""Image classifiers whose robustness is proven: Gaussians on frozen pretrained features, with exact certificates."""

from ellips.classifier import Ellips
from ellips.encoders import FrozenEncoder
from ellips.gaussians.moments import ClassMoments
from ellips.head import EllipsHead
from ellips.pipeline import ImageClassifier

__all__ = ["ClassMoments", "Ellips", "EllipsHead", "FrozenEncoder", "ImageClassifier"]
