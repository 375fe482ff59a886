"""Certificates in latent space: closed forms, the exact radius, an independent check, and files that carry them."""

from ellips.certificates.certificate import METHODS, Certificate, Method, round_down
from ellips.certificates.check import check
from ellips.certificates.direction import worst_case_perturbation
from ellips.certificates.solve import certify
from ellips.certificates.storage import SavedCertificates, load_certificates, save_certificates

__all__ = [
    "METHODS",
    "Certificate",
    "Method",
    "SavedCertificates",
    "certify",
    "check",
    "load_certificates",
    "round_down",
    "save_certificates",
    "worst_case_perturbation",
]
