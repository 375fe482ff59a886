"""Certificates in latent space: closed forms, the exact radius, and an independent check."""

from ellips.certificates.certificate import METHODS, Certificate, Method, round_down
from ellips.certificates.check import check
from ellips.certificates.direction import worst_case_perturbation
from ellips.certificates.solve import certify

__all__ = [
    "METHODS",
    "Certificate",
    "Method",
    "certify",
    "check",
    "round_down",
    "worst_case_perturbation",
]
