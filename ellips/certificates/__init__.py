"""Certificates in latent space: closed forms, the exact radius, and their proofs by a verified kernel."""

from ellips.certificates.certificate import METHODS, Certificate, Method, round_down
from ellips.certificates.check import Prover, check, checked_scope
from ellips.certificates.confirm import confirm
from ellips.certificates.decisions import decisions
from ellips.certificates.direction import worst_case_perturbation
from ellips.certificates.solve import WEYL, by_weyl, certify

__all__ = [
    "METHODS",
    "WEYL",
    "Certificate",
    "Method",
    "Prover",
    "by_weyl",
    "certify",
    "check",
    "checked_scope",
    "confirm",
    "decisions",
    "round_down",
    "worst_case_perturbation",
]
