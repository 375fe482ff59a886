"""Keep what must stay float64 in float64, and float32 what says it is float32."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import reduce
from typing import Any

import torch
from torch import Tensor

# Where torch keeps whether products of float32 numbers may be computed with fewer digits. Since torch 2.9 one name per
# kind of computation ("ieee" allows nothing); before, two flags; both exist side by side.
_KINDS = tuple(
    " cuda.matmul cudnn cudnn.conv cudnn.rnn mkldnn mkldnn.matmul mkldnn.conv mkldnn.rnn".split(" ")
)  # the first, without a name, is of all
_FLAGS = (
    ("cuda.matmul", "allow_tf32"),
    ("cudnn", "allow_tf32"),
    ("cuda.matmul", "allow_fp16_reduced_precision_reduction"),
    ("cuda.matmul", "allow_bf16_reduced_precision_reduction"),
    ("cuda.matmul", "allow_fp16_accumulation"),
)


def keep_dtype(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Wrap a function that ``Module._apply`` maps over tensors so that it moves them but never casts them.

    Lightning's true-half precisions and ``module.to(dtype)`` cast whole models; moments and mixtures must not follow.
    """

    def move(tensor: Tensor) -> Tensor:
        moved = fn(tensor)
        return moved if moved.dtype == tensor.dtype else tensor.to(device=moved.device)

    return move


@contextmanager
def full_precision() -> Iterator[None]:
    """Compute products of float32 numbers in float32: TF32 and reduced precision are off, on every device.

    Wherever a certificate or its input is computed, whatever the user's global setting is; it is restored after.
    """
    saved = _settings()
    try:
        with suppress(RuntimeError):  # raised if the user has mixed torch's two ways to say it
            torch.set_float32_matmul_precision("highest")
        for place, name, _ in saved:
            _set(place, name, "ieee" if name == "fp32_precision" else False)
        yield
    finally:
        for place, name, value in saved:
            _set(place, name, value)


def _settings() -> list[tuple[Any, str, Any]]:
    """Return place, name and value of every setting that this version of torch has, in the order of restoring."""

    def read(kinds: Iterable[tuple[str, str]]) -> list[tuple[Any, str, Any]]:
        found: list[tuple[Any, str, Any]] = []
        for kind, name in kinds:
            # An AttributeError: this version has no such setting. A RuntimeError: it speaks in the other way only.
            with suppress(AttributeError, RuntimeError):
                place = reduce(getattr, filter(None, kind.split(".")), torch.backends)
                found.append((place, name, getattr(place, name)))
        return found

    found = read(_FLAGS)
    with suppress(RuntimeError):  # after the flags, which change it
        found.append((torch, "float32_matmul_precision", torch.get_float32_matmul_precision()))
    return found + read((kind, "fp32_precision") for kind in _KINDS)


def _set(place: Any, name: str, value: Any) -> None:  # noqa: ANN401 - torch's settings have no common type
    if name == "float32_matmul_precision":
        torch.set_float32_matmul_precision("highest" if value is False else value)
    else:
        setattr(place, name, value)
