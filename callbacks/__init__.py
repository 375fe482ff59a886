"""Callbacks: certification while training and testing."""

from .certification import CertificationCallback

__all__ = ["CertificationCallback"]
