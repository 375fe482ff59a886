"""Which radii a table or an axis shows where nobody said: those of the data, so that no scale has to be known."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from decimal import ROUND_FLOOR, Decimal
from typing import Final

import numpy as np
import torch
from torch import Tensor

from ellips.metrics.functional import check_radii

QUANTILES: Final = (0.1, 0.3, 0.5, 0.7, 0.9, 0.99)
# Leading digits that are rounded down to, the roundest first.
_DIGITS: Final = (
    (100, 125, 150, 175, 200, 250, 300, 350, 400, 500, 600, 700, 800, 900),
    range(100, 1000, 10),
    range(100, 1000),
)
_ENOUGH: Final = 4  # radii in a table; rounder ones are worth more than six of them


def radii_of_data(found: Iterable[tuple[Tensor, Tensor, Tensor]], fallback: Sequence[float]) -> tuple[float, ...]:
    """Return radii at which certified accuracy falls from nearly all to nearly none: quantiles, rounded down.

    They are quantiles of the radii of right predictions, of all series together, so that these can be compared; each
    is rounded down to 1, 1.25, 1.5, 1.75, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8 or 9 times a power of ten, or to two or three
    digits where no four would be told apart. A latent space whose radii are
    near 0.002 gets radii near 0.002, where a grid made for another scale would read 0 everywhere. They do not depend on
    the order of images. Multiplied by a power of ten, the data give the radii multiplied by it.

    Args:
        found: For each series ``radius``, ``prediction`` and ``target``, each of shape ``(N,)``.
        fallback: Returned where no right prediction has a positive, finite radius.

    Returns:
        Ascending, at most one for each of :data:`QUANTILES`.

    Example:
        >>> radius, label = torch.linspace(0.0004, 0.0044, 101), torch.zeros(101, dtype=torch.int64)
        >>> radii_of_data([(radius, label, label)], [0.5])
        (0.0008, 0.0015, 0.002, 0.003, 0.0035, 0.004)
    """
    parts = [radius[prediction == target].detach().double().cpu() for radius, prediction, target in found]
    pooled = torch.cat([*parts, torch.empty(0, dtype=torch.float64)])
    pooled = pooled[(pooled > 0) & pooled.isfinite()]
    if not len(pooled):
        return check_radii(fallback)
    # Values that occur: between an atom and its neighbour no image ends.
    quantiles = np.quantile(pooled.numpy(), QUANTILES, method="lower").tolist()
    rounded = [sorted({_round_down(value, digits) for value in quantiles}) for digits in _DIGITS]
    enough = min(_ENOUGH, len(set(quantiles)))
    return tuple(next((grid for grid in rounded if len(grid) >= enough), rounded[-1]))


def _round_down(value: float, digits: Sequence[int]) -> float:
    """Round a positive number down to the nearest whose first three digits are among those given, ascending."""
    exact = Decimal(repr(value))
    unit = exact.adjusted() - 2
    leading = int(exact.scaleb(-unit).to_integral_value(ROUND_FLOOR))
    return float(Decimal(digits[bisect_right(digits, leading) - 1]).scaleb(unit))
