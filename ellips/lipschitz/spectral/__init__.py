"""Proven Lipschitz constants from the weights of a network."""

from ellips.lipschitz.capture import UnprovenOperationError
from ellips.lipschitz.spectral.product import SpectralProduct

__all__ = ["SpectralProduct", "UnprovenOperationError"]
