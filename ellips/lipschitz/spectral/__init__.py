"""Proven Lipschitz constants from the weights of a network."""

from ellips.lipschitz.spectral.product import SpectralProduct
from ellips.lipschitz.spectral.tracing import UnprovenOperationError

__all__ = ["SpectralProduct", "UnprovenOperationError"]
