"""Callbacks: certification and Gaussianity while training and testing, requeueing under SLURM."""

from .certification import CertificationCallback
from .gaussianity import GaussianityCallback
from .requeue import SafeRequeue

__all__ = ["CertificationCallback", "GaussianityCallback", "SafeRequeue"]
