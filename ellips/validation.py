"""Checks of what users hand in; every message says what was expected, what came and, where there is one, the cure."""

from __future__ import annotations

import torch
from torch import Tensor


def check_latents(z: Tensor, dim: int, name: str = "z") -> None:
    """Refuse anything that is not a finite floating-point tensor of shape ``(N, dim)``.

    Raises:
        ValueError: If it is not.
    """
    if not isinstance(z, Tensor) or not z.is_floating_point():
        kind = z.dtype if isinstance(z, Tensor) else type(z).__name__
        raise ValueError(f"Expected `{name}` to be a floating-point tensor but got {kind}.")
    if z.ndim != 2 or z.shape[1] != dim:
        raise ValueError(f"Expected `{name}` to have shape (N, {dim}) but got {tuple(z.shape)}.")
    if not bool(torch.isfinite(z).all()):
        row = int((~torch.isfinite(z)).any(1).nonzero()[0])
        raise ValueError(
            f"Expected `{name}` to be finite but got NaN or infinite values, first in row {row}; "
            "check the encoder's output and the mixed-precision range."
        )


def check_labels(labels: Tensor, num_classes: int, size: int, name: str = "labels") -> None:
    """Refuse anything that is not an integer tensor of shape ``(size,)`` with values in ``[0, num_classes)``.

    Raises:
        ValueError: If it is not.
    """
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.dtype == torch.bool:
        kind = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise ValueError(f"Expected `{name}` to be an integer tensor but got {kind}.")
    if labels.shape != (size,):
        raise ValueError(f"Expected `{name}` to have shape ({size},) but got {tuple(labels.shape)}.")
    if size and (int(labels.min()) < 0 or int(labels.max()) >= num_classes):
        raise ValueError(
            f"Expected `{name}` to lie in [0, {num_classes}) but got values from {int(labels.min())} to "
            f"{int(labels.max())}; does `num_classes` match the data?"
        )
