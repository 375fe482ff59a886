"""Frozen encoders: pretrained ones from timm or a file, and 1-Lipschitz ones that are proven when they are loaded."""

from ellips.encoders.cifar_resnet import CifarResNet
from ellips.encoders.frozen import FrozenEncoder
from ellips.encoders.linear import LinearHead
from ellips.encoders.lipschitz import LipschitzArchitecture, LipschitzEncoder
from ellips.encoders.preprocessing import Preprocess

__all__ = ["CifarResNet", "FrozenEncoder", "LinearHead", "LipschitzArchitecture", "LipschitzEncoder", "Preprocess"]
