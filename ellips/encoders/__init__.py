"""Frozen encoders: pretrained, trained on noise, behind a denoiser, or 1-Lipschitz and proven when they are loaded."""

from ellips.encoders.architecture import EncoderArchitecture
from ellips.encoders.bronet import BRONetArchitecture, import_bronet
from ellips.encoders.cifar_resnet import CifarResNet
from ellips.encoders.denoised import Denoised
from ellips.encoders.denoiser import Denoiser, DenoiserArchitecture, ResidualDenoiser
from ellips.encoders.diffusion import DiffusionDenoiser
from ellips.encoders.frozen import FrozenEncoder, recorded_encoder
from ellips.encoders.linear import LinearHead
from ellips.encoders.lipnext import LipNeXt, LipNeXtArchitecture
from ellips.encoders.lipschitz import LipschitzArchitecture, LipschitzEncoder, export_encoder
from ellips.encoders.liresnet import LiResNetArchitecture, import_liresnet
from ellips.encoders.margin_classifier import MarginClassifier
from ellips.encoders.orthogonal import OrthogonalMuon
from ellips.encoders.preprocessing import Preprocess
from ellips.encoders.registry import RegisteredEncoder, registered_encoders

__all__ = [
    "BRONetArchitecture",
    "CifarResNet",
    "Denoised",
    "Denoiser",
    "DenoiserArchitecture",
    "DiffusionDenoiser",
    "EncoderArchitecture",
    "FrozenEncoder",
    "LiResNetArchitecture",
    "LinearHead",
    "LipNeXt",
    "LipNeXtArchitecture",
    "LipschitzArchitecture",
    "LipschitzEncoder",
    "MarginClassifier",
    "OrthogonalMuon",
    "Preprocess",
    "RegisteredEncoder",
    "ResidualDenoiser",
    "export_encoder",
    "import_bronet",
    "import_liresnet",
    "recorded_encoder",
    "registered_encoders",
]
