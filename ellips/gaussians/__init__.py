"""Gaussian mixtures: moments, covariances, regularisation, and the mixture itself."""

from ellips.gaussians.covariance import class_covariances, precision_factor
from ellips.gaussians.mixture import Mixture
from ellips.gaussians.moments import ClassMoments, Moments
from ellips.gaussians.parameters import CovarianceType
from ellips.gaussians.regularization import Regularization
from ellips.gaussians.shrinkage import Estimator, fit_shrunk
from ellips.gaussians.sketch import ClassSketch, Collector, SketchedMoments, collector

__all__ = [
    "ClassMoments",
    "ClassSketch",
    "Collector",
    "CovarianceType",
    "Estimator",
    "Mixture",
    "Moments",
    "Regularization",
    "SketchedMoments",
    "class_covariances",
    "collector",
    "fit_shrunk",
    "precision_factor",
]
