"""Which radii a table or an axis shows where nobody said: those of the data, so that no scale has to be known."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import ROUND_FLOOR, Decimal
from typing import Final

import numpy as np
import torch
from torch import Tensor

from ellips.metrics.functional import check_radii

QUANTILES: Final = (0.1, 0.3, 0.5, 0.7, 0.9, 0.99)
_DIGITS: Final = (1, 2, 3)
_ENOUGH: Final = 4  # radii in a table; rounder ones are worth more than six of them


def radii_of_data(found: Iterable[tuple[Tensor, Tensor, Tensor]], fallback: Sequence[float]) -> tuple[float, ...]:
    """Return radii at which certified accuracy falls from nearly all to nearly none: quantiles, rounded down.

    They are quantiles of the radii of right predictions, of all series together, so that these can be compared; each
    is rounded down to as few digits, three at most, as keep four of them apart. A latent space whose radii are
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
        (0.0008, 0.001, 0.002, 0.003, 0.004)
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


def _round_down(value: float, digits: int) -> float:
    """Round a positive number down to so many significant decimal digits."""
    exact = Decimal(repr(value))
    return float(exact.quantize(Decimal(1).scaleb(exact.adjusted() - digits + 1), ROUND_FLOOR))
