"""Lightning modules: thin shells around :mod:`ellips`."""

import ellips  # noqa: F401 - first: it sees to it that `lightning_modules` and `ellips.lightning_modules` are the same

from .adversarial_encoder import AdversarialEncoderTraining
from .certifier import Certifier
from .classifier_encoder import ClassifierEncoderTraining
from .denoiser import DenoiserTraining
from .encoder_training import EncoderTraining
from .gen_ellips import GenEllips
from .lipschitz_encoder import LipschitzEncoderTraining
from .noisy_encoder import NoisyEncoderTraining
from .optimization import Optimization

__all__ = [
    "AdversarialEncoderTraining",
    "Certifier",
    "ClassifierEncoderTraining",
    "DenoiserTraining",
    "EncoderTraining",
    "GenEllips",
    "LipschitzEncoderTraining",
    "NoisyEncoderTraining",
    "Optimization",
]
