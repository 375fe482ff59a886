"""How far class covariances are moved towards simpler ones."""

from __future__ import annotations

from dataclasses import dataclass

from ellips.validation import fraction


@dataclass(frozen=True)
class Regularization:
    """The two parameters of regularised discriminant analysis (Friedman 1989).

    Attributes:
        pooling: In [0, 1]: how far each class covariance is moved to the common one (1: tied covariances).
        shrinkage: In [0, 1]: how far it is then moved to a multiple of the identity (1: spherical covariances).

    Raises:
        ValueError: If one is out of its range.
    """

    pooling: float = 0.0
    shrinkage: float = 0.0

    def __post_init__(self) -> None:
        fraction(pooling=self.pooling, shrinkage=self.shrinkage)
