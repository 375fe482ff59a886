"""Sources of a Lipschitz constant, each of exactly the function that it is given."""

from ellips.lipschitz.base import ConstantSource
from ellips.lipschitz.clever import Clever
from ellips.lipschitz.jacobian import JacobianNorm
from ellips.lipschitz.known import KnownConstant
from ellips.lipschitz.spectral import SpectralProduct, UnprovenOperationError

__all__ = ["Clever", "ConstantSource", "JacobianNorm", "KnownConstant", "SpectralProduct", "UnprovenOperationError"]
