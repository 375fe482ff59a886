"""How an audit goes on, and until when."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic

from torch import Tensor

from ellips.types import ImageMap


@dataclass(frozen=True)
class Course:
    """How an audit goes on, and until when; what is found may depend on it, if it ends before all attacks were made.

    Attributes:
        advance: Called with the number of passes of single points that were made, or need not be made any more.
        end: Reading of :func:`time.monotonic` after which nothing but the first, cheapest attack on a point is begun.
    """

    advance: Callable[[int], object] = lambda count: None
    end: float = math.inf

    @property
    def over(self) -> bool:
        """Whether the time is up."""
        return monotonic() > self.end

    @contextmanager
    def stage(self, passes: int) -> Iterator[Callable[[ImageMap], ImageMap]]:
        """Tell of the passes of an attack while they are made.

        Args:
            passes: About as many as there will be; in the end exactly so many were told of.

        Yields:
            What makes of a function one whose passes are told of.
        """
        told = 0

        def tell(count: int) -> None:
            nonlocal told
            count = min(count, passes - told)
            told += count
            self.advance(count)

        def counted(function: ImageMap) -> ImageMap:
            def call(points: Tensor) -> Tensor:
                values = function(points)
                tell(len(points))
                return values

            return call

        yield counted
        tell(passes)
