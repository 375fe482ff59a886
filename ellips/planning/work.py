"""How much work a stage is, counted in images that go through the encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

PRODUCT: Final = 2
"""Forward passes that a product with a Jacobian costs; forward and backward together are about three of them."""


@dataclass(frozen=True)
class Work:
    """Images through the encoder, each counted as often as it goes.

    Attributes:
        forward: Forward passes.
        products: Products with the encoder's Jacobian or its transpose, after a forward pass.
    """

    forward: int = 0
    products: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(self.forward + other.forward, self.products + other.products)

    def times(self, count: int) -> Work:
        """Return the work of so many of these."""
        return Work(self.forward * count, self.products * count)

    @property
    def passes(self) -> int:
        """Forward passes that it costs in all."""
        return self.forward + PRODUCT * self.products

    def hours(self, images_per_second: float, processes: int = 1) -> float:
        """Return the hours it takes.

        Args:
            images_per_second: Forward passes of one process in a second.
            processes: Processes that share the work evenly.
        """
        return self.passes / images_per_second / processes / 3600


@dataclass(frozen=True)
class Cost:
    """What a stage costs.

    Attributes:
        most: It takes no more.
        expected: It takes about that; the same where nothing ends early.
    """

    most: Work
    expected: Work

    @classmethod
    def fixed(cls, work: Work) -> Cost:
        """What takes as much in any case."""
        return cls(work, work)

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.most + other.most, self.expected + other.expected)

    def times(self, count: int) -> Cost:
        """Return the cost of so many of these."""
        return Cost(self.most.times(count), self.expected.times(count))
