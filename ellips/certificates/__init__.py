"""Certificates in latent space: closed forms, the exact radius, and an independent check (METHOD: [E26] section 4)."""

from ellips.certificates.certificate import METHODS, Certificate, Method, round_down
from ellips.certificates.solve import certify

__all__ = ["METHODS", "Certificate", "Method", "certify", "round_down"]
