"""Callbacks: certification and Gaussianity while training and testing, per-image files, requeueing under SLURM."""

from .certificate_writer import CertificateWriter
from .certification import CertificationCallback
from .gaussianity import GaussianityCallback
from .requeue import SafeRequeue

__all__ = ["CertificateWriter", "CertificationCallback", "GaussianityCallback", "SafeRequeue"]
