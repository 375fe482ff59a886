"""Lightning modules: thin shells around :mod:`ellips`."""

import ellips  # noqa: F401 - first: it sees to it that `lightning_modules` and `ellips.lightning_modules` are the same

from .certifier import Certifier
from .gen_ellips import GenEllips
from .lipschitz_encoder import LipschitzEncoderTraining
from .optimization import Optimization

__all__ = ["Certifier", "GenEllips", "LipschitzEncoderTraining", "Optimization"]
