"""The theory behind the certificates: localisation, degradation under a misfit, normality, sample complexity.

``python -m ellips.theory`` answers its questions on a checkpoint or on a run of certify.py.
"""

from ellips.theory.degradation import (
    Degradation,
    bretagnolle_huber,
    degradation,
    mixture_certified_accuracy,
    pinsker,
    total_variation_bound,
)
from ellips.theory.divergence import KLEstimate, TooFewLatentsError, kl_knn, kl_likelihood
from ellips.theory.localization import Existence, Localization, Localizer, robust_classifier_exists
from ellips.theory.normality import MardiaResult, mardia
from ellips.theory.sample_complexity import (
    RadiusInterval,
    radius_error_rate,
    radius_errors,
    radius_interval,
    regress_errors,
    samples_needed,
)

__all__ = [
    "Degradation",
    "Existence",
    "KLEstimate",
    "Localization",
    "Localizer",
    "MardiaResult",
    "RadiusInterval",
    "TooFewLatentsError",
    "bretagnolle_huber",
    "degradation",
    "kl_knn",
    "kl_likelihood",
    "mardia",
    "mixture_certified_accuracy",
    "pinsker",
    "radius_error_rate",
    "radius_errors",
    "radius_interval",
    "regress_errors",
    "robust_classifier_exists",
    "samples_needed",
    "total_variation_bound",
]
