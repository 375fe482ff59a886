"""Sources of a Lipschitz constant, each of exactly the function that it is given."""

from ellips.lipschitz.base import ConstantSource
from ellips.lipschitz.capture import UnprovenOperationError
from ellips.lipschitz.clever import Clever
from ellips.lipschitz.jacobian import JacobianNorm
from ellips.lipschitz.known import KnownConstant
from ellips.lipschitz.spectral import SpectralProduct

__all__ = ["Clever", "ConstantSource", "JacobianNorm", "KnownConstant", "SpectralProduct", "UnprovenOperationError"]


_MOVED = {
    "LipschitzEncoder": "ellips.encoders",
    "SmoothedEncoder": "ellips.input_certifiers",
    "MarginClever": "ellips.input_certifiers",
    "LipschitzBound": "ellips.types",
}


def __getattr__(name: str) -> object:
    if name == "LipschitzSource":
        raise AttributeError("ellips.lipschitz.LipschitzSource is now called ellips.lipschitz.ConstantSource.")
    if name in _MOVED:
        raise AttributeError(f"ellips.lipschitz.{name} has moved: it is {_MOVED[name]}.{name} now.")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
