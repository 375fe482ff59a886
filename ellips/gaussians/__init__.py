"""Gaussian mixtures: moments, covariances, regularisation, and the mixture itself."""

from ellips.gaussians.covariance import class_covariances, precision_factor
from ellips.gaussians.mixture import Mixture
from ellips.gaussians.moments import ClassMoments, Moments
from ellips.gaussians.parameters import CovarianceType
from ellips.gaussians.regularization import Regularization
from ellips.gaussians.shrinkage import Estimator, fit_shrunk

__all__ = [
    "ClassMoments",
    "CovarianceType",
    "Estimator",
    "Mixture",
    "Moments",
    "Regularization",
    "class_covariances",
    "fit_shrunk",
    "precision_factor",
]
