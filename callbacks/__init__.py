"""Callbacks: certification and Gaussianity while training and testing, per-image files, requeueing under SLURM."""

import ellips  # noqa: F401 - first: it sees to it that `callbacks` and `ellips.callbacks` are the same

from .atomic_checkpoints import AtomicCheckpointIO
from .certificate_writer import CertificateWriter
from .certification import CertificationCallback
from .evaluation import EvaluationCallback
from .gaussianity import GaussianityCallback
from .requeue import SafeRequeue

__all__ = [
    "AtomicCheckpointIO",
    "CertificateWriter",
    "CertificationCallback",
    "EvaluationCallback",
    "GaussianityCallback",
    "SafeRequeue",
]
