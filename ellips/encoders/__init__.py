"""Frozen encoders: pretrained, trained on noise, behind a denoiser, or 1-Lipschitz and proven when they are loaded."""

from ellips.encoders.cifar_resnet import CifarResNet
from ellips.encoders.denoised import Denoised
from ellips.encoders.denoiser import Denoiser, DenoiserArchitecture, ResidualDenoiser
from ellips.encoders.diffusion import DiffusionDenoiser
from ellips.encoders.frozen import FrozenEncoder, recorded_encoder
from ellips.encoders.linear import LinearHead
from ellips.encoders.lipschitz import LipschitzArchitecture, LipschitzEncoder
from ellips.encoders.preprocessing import Preprocess

__all__ = [
    "CifarResNet",
    "Denoised",
    "Denoiser",
    "DenoiserArchitecture",
    "DiffusionDenoiser",
    "FrozenEncoder",
    "LinearHead",
    "LipschitzArchitecture",
    "LipschitzEncoder",
    "Preprocess",
    "ResidualDenoiser",
    "recorded_encoder",
]
