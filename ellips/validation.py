"""Checks of what users hand in; every message says what was expected, what came and, where there is one, the cure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

_unchecked: ContextVar[bool] = ContextVar("unchecked", default=False)


@contextmanager
def unchecked() -> Iterator[None]:
    """Leave out checks of tensors' values, so that nothing but the computation is seen by who writes it down."""
    token = _unchecked.set(True)
    try:
        yield
    finally:
        _unchecked.reset(token)


def truth(condition: Tensor) -> bool | None:
    """Return a single truth value, or None where it cannot be looked at.

    It cannot while ``torch.compile`` and ``torch.export`` write a computation down, nor in ``torch.vmap``, where a
    tensor stands for many.
    """
    if torch.compiler.is_compiling():
        return None
    try:
        return bool(condition)
    except RuntimeError as error:
        if "vmap" not in str(error):
            raise
        return None


def at_least(low: float, **values: float | None) -> None:
    """Refuse numbers below ``low``, and NaN; None passes, for settings that may be left out.

    Args:
        low: The smallest number allowed.
        **values: Numbers by the name of their argument.

    Raises:
        ValueError: If one is smaller; it is named.
    """
    for name, value in values.items():
        if value is not None and not value >= low:
            raise ValueError(f"Expected `{name}` to be at least {low} but got {value}.")


def positive(*, finite: bool = True, **values: float | None) -> None:
    """Refuse numbers that are not above 0, NaN and, unless ``finite`` is off, infinity; None passes.

    Raises:
        ValueError: If one is not; it is named.
    """
    for name, value in values.items():
        if value is not None and not (value > 0 and (not finite or math.isfinite(value))):
            raise ValueError(f"Expected `{name}` to be positive{' and finite' if finite else ''} but got {value}.")


def fraction(*, ends: bool = True, **values: float | None) -> None:
    """Refuse numbers outside [0, 1], or outside (0, 1) without its ends; None passes.

    Raises:
        ValueError: If one lies outside; it is named.
    """
    for name, value in values.items():
        if value is not None and not (0 <= value <= 1 if ends else 0 < value < 1):
            raise ValueError(f"Expected `{name}` to be in {'[0, 1]' if ends else '(0, 1)'} but got {value}.")


def one_of(options: Sequence[object], **values: object) -> None:
    """Refuse values that are not among the options.

    Raises:
        ValueError: If one is not; it is named, and so are the options.
    """
    for name, value in values.items():
        if value not in options:
            raise ValueError(f"Expected `{name}` to be one of {tuple(options)} but got {value!r}.")


def all_at_least(low: float, **tensors: Tensor | None) -> None:
    """Refuse tensors with an entry below ``low`` or NaN; None passes, and so does an empty tensor.

    Args:
        low: The smallest entry allowed.
        **tensors: Tensors by the name of their argument.

    Raises:
        ValueError: If an entry is smaller; the tensor is named, and its smallest entry.
    """
    for name, tensor in tensors.items():
        if tensor is not None and not bool((tensor >= low).all()):  # NaN fails this too
            raise ValueError(f"Expected every `{name}` to be at least {low} but got {tensor.amin().item():g}.")


def validate_latents(z: Tensor, dim: int, name: str = "z") -> None:
    """Refuse anything that is not a finite floating-point tensor of shape ``(N, dim)``.

    Raises:
        ValueError: If it is not.
    """
    if not isinstance(z, Tensor) or not z.is_floating_point():
        kind = z.dtype if isinstance(z, Tensor) else type(z).__name__
        raise ValueError(f"Expected `{name}` to be a floating-point tensor but got {kind}.")
    if z.ndim != 2 or z.shape[1] != dim:
        raise ValueError(f"Expected `{name}` to have shape (N, {dim}) but got {tuple(z.shape)}.")
    if not _unchecked.get() and truth(torch.isfinite(z).all()) is False:
        row = int((~torch.isfinite(z)).any(1).nonzero()[0])
        raise ValueError(
            f"Expected `{name}` to be finite but got NaN or infinite values, first in row {row}; "
            "check the encoder's output and the mixed-precision range."
        )


def validate_pixels(images: Tensor, names: Sequence[object] = ()) -> None:
    """Refuse images whose values are not in [0, 1]: radii are measured on that scale.

    Args:
        images: Shape ``(N, C, H, W)``.
        names: Of each, for the message; none: their rows.

    Raises:
        ValueError: If they are of another type, or one has values outside, or NaN; all of the batch are named.
    """
    if not images.is_floating_point():
        raise ValueError(f"Expected images as uint8, or floating point in [0, 1], but got {images.dtype}.")
    if _unchecked.get() or not images.numel():
        return
    flat = images.flatten(1)
    wrong = (~((flat >= 0) & (flat <= 1)).all(1)).nonzero().flatten().tolist()
    if wrong:
        named = [str(names[row] if names else row) for row in wrong[:5]]
        low, high = flat[wrong].min().item(), flat[wrong].max().item()
        raise ValueError(
            f"Expected image values in [0, 1] but got {low:g} to {high:g} in {len(wrong)} images ({named}); hand out "
            "uint8, or divide by 255, without normalisation: that belongs into the encoder."
        )


def validate_labels(labels: Tensor, num_classes: int, size: int, name: str = "labels") -> None:
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
