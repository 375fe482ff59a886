"""Image classifiers whose robustness is proven: Gaussians on frozen pretrained features, with exact certificates."""

from ellips.classifier import Ellips
from ellips.moments import ClassMoments

__all__ = ["ClassMoments", "Ellips"]
