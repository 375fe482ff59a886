"""Keep what must stay float64 in float64."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def keep_dtype(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Wrap a function that ``Module._apply`` maps over tensors so that it moves them but never casts them.

    Lightning's true-half precisions and ``module.to(dtype)`` cast whole models; moments and mixtures must not follow.
    """

    def move(tensor: Tensor) -> Tensor:
        moved = fn(tensor)
        return moved if moved.dtype == tensor.dtype else tensor.to(device=moved.device)

    return move
