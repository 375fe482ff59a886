"""Certified accuracy, its curve and the average certified radius, as functions and as torchmetrics classes."""

from ellips.metrics.certified import AverageCertifiedRadius, CertifiedAccuracy, CertifiedAccuracyCurve
from ellips.metrics.distinct import DistinctRows
from ellips.metrics.functional import (
    CertifiedCurve,
    average_certified_radius,
    certified_accuracy,
    certified_accuracy_curve,
    clopper_pearson,
)

__all__ = [
    "AverageCertifiedRadius",
    "CertifiedAccuracy",
    "CertifiedAccuracyCurve",
    "CertifiedCurve",
    "DistinctRows",
    "average_certified_radius",
    "certified_accuracy",
    "certified_accuracy_curve",
    "clopper_pearson",
]
