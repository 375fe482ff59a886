"""Sources of the Lipschitz constant that carries a latent radius to the image."""

from ellips.lipschitz.base import LipschitzBound, LipschitzSource
from ellips.lipschitz.clever import Clever, MarginClever
from ellips.lipschitz.encoder import LipschitzEncoder
from ellips.lipschitz.jacobian import JacobianNorm
from ellips.lipschitz.known import KnownConstant
from ellips.lipschitz.smoothing import SmoothedEncoder
from ellips.lipschitz.spectral import SpectralProduct, UnprovenOperationError

__all__ = [
    "Clever",
    "JacobianNorm",
    "KnownConstant",
    "LipschitzBound",
    "LipschitzEncoder",
    "LipschitzSource",
    "MarginClever",
    "SmoothedEncoder",
    "SpectralProduct",
    "UnprovenOperationError",
]
