"""Frozen encoders: pretrained ones from timm or a file, and 1-Lipschitz ones that are proven when they are loaded."""

from ellips.encoders.frozen import FrozenEncoder
from ellips.encoders.lipschitz import LipschitzArchitecture, LipschitzEncoder
from ellips.encoders.preprocessing import Preprocess

__all__ = ["FrozenEncoder", "LipschitzArchitecture", "LipschitzEncoder", "Preprocess"]
