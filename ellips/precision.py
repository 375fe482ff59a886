"""Keep what must stay float64 in float64, float32 what says it is float32, and an encoder in its own precision."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import reduce
from threading import Lock, get_ident
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ellips.validation import one_of

Precision = Literal["32", "16", "bf16"]
"""What an encoder computes in: float32, or under autocast with float16 or bfloat16."""

HALF_TYPES = {"16": torch.float16, "bf16": torch.bfloat16}

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

_LOCK = Lock()
_INSIDE: list[int] = []  # the threads that compute in full precision, one as often as it began to
_OUTSIDE: list[tuple[Any, str, Any]] = []  # the settings that the first of them found

_GRAIN = 2**15  # numbers of a tensor that torch does not share among threads


def require_subnormals() -> None:
    """Refuse to prove anything where the processor takes the smallest numbers, of weights too, for 0.

    Raises:
        RuntimeError: If it does.
    """
    # In every thread that a large tensor is worked on in: what a thread was started with stays with it.
    few = torch.zeros(_GRAIN * torch.get_num_threads(), dtype=torch.float64)
    few[:: _GRAIN // 32] = 2.0**-1074
    if int((few * 1.0).count_nonzero()) < 32 * torch.get_num_threads():
        raise RuntimeError("Expected IEEE arithmetic but subnormals are flushed: torch.set_flush_denormal(False).")


def keep_dtype(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Wrap a function that ``Module._apply`` maps over tensors so that it moves them but never casts them.

    Lightning's true-half precisions and ``module.to(dtype)`` cast whole models; moments and mixtures must not follow.
    """

    def move(tensor: Tensor) -> Tensor:
        moved = fn(tensor)
        return moved if moved.dtype == tensor.dtype else tensor.to(device=moved.device)

    return move


class OnePrecision(nn.Module):
    """A module that says itself which precision it computes in, whatever autocast and TF32 are set to around it.

    Attributes:
        precision: One of :data:`Precision`.
    """

    precision: Precision = "32"

    @contextmanager
    def arithmetic(self, device: torch.device) -> Iterator[None]:
        """Compute in :attr:`precision` and in no other.

        Float64 numbers stay what they are: a float64 copy of the module computes in float64.

        Raises:
            ValueError: If the precision is none that there is.
        """
        one_of(get_args(Precision), precision=self.precision)
        half = HALF_TYPES.get(self.precision)
        # Where autocast is off already it is not touched: a graph that torch.export captures would hold the region.
        as_it_is = half is None and not torch.is_autocast_enabled(device.type)
        autocast = nullcontext() if as_it_is else torch.autocast(device.type, dtype=half, enabled=half is not None)
        with full_precision(), autocast:
            yield


def reduced_precision(module: nn.Module | None) -> bool:
    """Whether a part of the module computes in less than float32 by its own word."""
    parts = () if module is None else module.modules()
    return any(isinstance(part, OnePrecision) and part.precision != "32" for part in parts)


@contextmanager
def in_float32(module: nn.Module | None) -> Iterator[None]:
    """Have all parts of a module compute in float32 for a while."""
    parts = [] if module is None else [part for part in module.modules() if isinstance(part, OnePrecision)]
    before = [part.precision for part in parts]
    try:
        for part in parts:
            part.precision = "32"
        yield
    finally:
        for part, precision in zip(parts, before, strict=True):
            part.precision = precision


@contextmanager
def full_precision() -> Iterator[None]:
    """Compute products of float32 numbers in float32: TF32 and reduced precision are off, on every device.

    Wherever a certificate or its input is computed, whatever the user's global setting is; it is restored after, and
    where several threads compute at once when the last of them ends: settings are those of all.
    """
    thread = get_ident()
    with _LOCK:
        saved = _settings()
        if not _INSIDE:
            _OUTSIDE[:] = saved
        _INSIDE.append(thread)
    try:
        with _LOCK:
            with suppress(RuntimeError):  # raised if the user has mixed torch's two ways to say it
                torch.set_float32_matmul_precision("highest")
            for place, name, _ in saved:
                _set(place, name, "ieee" if name == "fp32_precision" else False)
        yield
    finally:
        with _LOCK:
            _INSIDE.remove(thread)
            if all(other == thread for other in _INSIDE):
                for place, name, value in saved if _INSIDE else _OUTSIDE:
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
