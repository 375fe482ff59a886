"""Bounds on rounding errors: what is subtracted from a radius so that it stays a lower bound.

Every bound is the classical worst case, γ_n = n u / (1 − n u) with unit roundoff u for n operations (Higham, Accuracy
and Stability of Numerical Algorithms, 2nd ed., section 3.1). The classifier is taken as defined by its stored factors
A_k, means μ_k and offsets, so the error of fitting them does not enter.
"""

from __future__ import annotations

import torch
from torch import Tensor

UNDERFLOW = {torch.float32: 2.0**-60, torch.float64: 2.0**-480}
"""What is added to a length that may be a little more than 0, and then is enough more that its square is a number.

A number whose square underflows is below 2^-63, or 2^-511. Where classes are equal and a length is 0 exactly, nothing
is added: it is what tells that a boundary is never reached.
"""


def gamma(operations: int, dtype: torch.dtype = torch.float64) -> float:
    """Return γ_n, the relative error that n rounded operations may accumulate in a floating-point type.

    Raises:
        ValueError: If so many operations have no finite bound in that type.
    """
    total = operations * torch.finfo(dtype).eps / 2
    if total >= 1:
        raise ValueError(f"Expected fewer operations than {dtype} has precision for but got {operations}.")
    return total / (1 - total)


def whitened_error(
    dim: int, factor_norm: Tensor, point_norm: Tensor, mean_norm: Tensor, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Bound ‖fl(y) − y‖ for y = A(z − μ), computed as A(z − c) − A(μ − c).

    Args:
        dim: Width d.
        factor_norm: ‖A‖_F.
        point_norm: ‖z − c‖.
        mean_norm: ‖μ − c‖.
        dtype: What it is computed in.
    """
    return gamma(dim + 4, dtype) * factor_norm * (point_norm + mean_norm)


def score_error(
    dim: int, distance: Tensor, whitened: Tensor, offset: Tensor, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Bound the error of a computed score −‖y‖² + offset.

    Args:
        dim: Width d.
        distance: ‖y‖, as computed.
        whitened: Bound on the error of y, from :func:`whitened_error`.
        offset: Sum of the absolute values that the score's constant part is made of.
        dtype: What squares are added in.
    """
    # Eight operations more than are done: what the verified kernel takes off for its own rounding.
    return (2 * distance + whitened) * whitened + gamma(dim + 12, dtype) * (distance.square() + offset)
