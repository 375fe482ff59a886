"""Functions that remember: what they do to an image depends on those that came before."""

from __future__ import annotations

import collections
import contextvars
import functools
import io
import itertools
import random
import weakref
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from tests.soundness.looks import Function


class Counting(nn.Module):
    """Another function at every call."""

    calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return images.flatten(1) * float(self.calls)


class Caching(nn.Module):
    """The first result for ever, then something steep."""

    first: Tensor | None = None

    def forward(self, images: Tensor) -> Tensor:
        if self.first is None:
            self.first = images.flatten(1).clone()
            return self.first
        return 1000 * images.flatten(1)


class Buffered(nn.Module):
    """Multiplies by a buffer that every call changes."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.in_place = in_place
        self.register_buffer("factor", torch.ones(1))

    def forward(self, images: Tensor) -> Tensor:
        if self.in_place:
            self.factor.mul_(1.5)
        else:
            self.factor = self.factor * 1.5
        return images.flatten(1) * self.factor


class Remembering(nn.Module):
    """Keeps the image in a buffer, and adds the last one."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("last", torch.zeros(3, 4, 4))

    def forward(self, images: Tensor) -> Tensor:
        result = images.flatten(1) + 100 * self.last.flatten()
        self.last.copy_(images[-1].detach())
        return result


class Late(nn.Module):
    """Turns steep after a thousand calls."""

    calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return images.flatten(1) * (1.0 if self.calls < 1000 else 300.0)


def late() -> Function:
    calls = [0]

    def function(images: Tensor) -> Tensor:
        calls[0] += 1
        return images.flatten(1) * (1.0 if calls[0] < 1000 else 300.0)

    return function


def late_by(count: Callable[[], object]) -> Function:
    """As above, counting elsewhere."""
    return lambda images: images.flatten(1) * (1.0 if count() < 1000 else 300.0)


class Slotted:
    """Counts where there is no dictionary."""

    __slots__ = "__calls"

    def __init__(self) -> None:
        self.__calls = 0

    def __call__(self) -> int:
        self.__calls += 1
        return self.__calls


def in_an_array() -> Callable[[], float]:
    array = np.zeros(1)

    def count() -> float:
        array[0] += 1
        return float(array[0])

    return count


def in_a_deque() -> Callable[[], int]:
    calls: collections.deque[int] = collections.deque()

    def count() -> int:
        calls.append(0)
        return len(calls)

    return count


def in_a_generator() -> Callable[[], int]:
    def numbers() -> Iterator[int]:
        number = 0
        while True:
            number += 1
            yield number

    return numbers().__next__


def late_in_a_partial() -> Function:
    def function(calls: list[int], images: Tensor) -> Tensor:
        calls[0] += 1
        return images.flatten(1) * (1.0 if calls[0] < 1000 else 300.0)

    return functools.partial(function, [0])


def late_deep_inside() -> nn.Module:
    module: nn.Module = Late()
    for _ in range(15):
        module = nn.Sequential(module)
    return module


class Number(int):
    calls = 0


class Kind(type):
    calls = 0


class OfKind(metaclass=Kind):
    """Its class keeps nothing, its class's class does."""

    calls_of_one = 0

    @staticmethod
    def count() -> int:
        _CALLS[0] += 1
        return _CALLS[0]


_CALLS = [0]


def on(item: object) -> Callable[[], int]:
    """Count in an attribute."""

    def count() -> int:
        item.calls = getattr(item, "calls", 0) + 1  # type: ignore[attr-defined]
        return item.calls  # type: ignore[attr-defined]

    return count


def in_a_class_of_classes() -> Callable[[], int]:
    Kind.calls = 0
    item = OfKind()

    def count() -> int:
        type(type(item)).calls += 1
        return type(type(item)).calls

    return count


def in_a_static_method() -> Callable[[], int]:
    item = OfKind()
    return lambda: item.count()


def in_a_growing_dictionary() -> Callable[[], int]:
    calls: dict[int, None] = {}

    def count() -> int:
        calls[len(calls)] = None
        return len(calls)

    return count


def under_a_key_that_reads_like_another() -> Callable[[], int]:
    calls: dict[object, int] = {1: 0, "1": 0}

    def count() -> int:
        calls[1] += 1
        return calls[1]

    return count


def at_the_end_of(calls: list[float] | np.ndarray) -> Callable[[], float]:
    def count() -> float:
        calls[-1] += 1
        return float(calls[-1])

    return count


def in_the_data_of_a_tensor() -> Callable[[], float]:
    """Through `.data`, which counts no changes, but not under capture."""
    calls = torch.zeros(1)

    def count() -> float:
        if torch.compiler.is_compiling():
            return 0.0
        calls.data.add_(1)
        return float(calls)

    return count


def in_a_cache() -> Callable[[], int]:
    cached = functools.lru_cache(lambda key: 0)

    def count() -> int:
        cached(object())
        return cached.cache_info().misses

    return count


def in_the_second_generator() -> Callable[[], int]:
    def numbers() -> Iterator[int]:
        number = 0
        while True:
            number += 1
            yield number

    first, second = numbers(), numbers()
    next(first)

    def count() -> int:
        assert first is not None
        return next(second)

    return count


def in_a_context() -> Callable[[], int]:
    calls = contextvars.ContextVar("calls", default=0)

    def count() -> int:
        calls.set(calls.get() + 1)
        return calls.get()

    return count


_ELSEWHERE = OfKind()


def behind_a_weak_reference() -> Callable[[], int]:
    found = weakref.ref(_ELSEWHERE)
    _ELSEWHERE.calls_of_one = 0

    def count() -> int:
        found().calls_of_one += 1
        return found().calls_of_one

    return count


def in_a_stream() -> Callable[[], int]:
    stream = io.BytesIO()

    def count() -> int:
        stream.write(b" ")
        return stream.tell()

    return count


def on_torch() -> Callable[[], int]:
    torch.calls = 0  # type: ignore[attr-defined]

    def count() -> int:
        torch.calls += 1  # type: ignore[attr-defined]
        return torch.calls  # type: ignore[attr-defined,no-any-return]

    return count


def very_rarely(draw: Callable[[], float]) -> Callable[[], int]:
    return lambda: 1000 if draw() < 1e-3 else 0


def in_keyword_defaults() -> Callable[[], int]:
    def count(*, calls: list[int] = [0]) -> int:  # noqa: B006
        calls[0] += 1
        return calls[0]

    return count


def deep_inside() -> Callable[[], int]:
    item: list[object] = [0]
    innermost = item
    for _ in range(200):
        item = [item, "around"]

    def count() -> int:
        assert item
        innermost[0] = int(str(innermost[0])) + 1
        return int(str(innermost[0]))

    return count


def in_a_set() -> Callable[[], int]:
    seen: set[int] = set()

    def count() -> int:
        seen.add(len(seen))
        return len(seen)

    return count


def by_bound_methods() -> Callable[[], int]:
    """Nothing but methods of Python's own, of one list."""
    seen: list[None] = []
    append, length = seen.append, seen.__len__

    def count() -> int:
        append(None)
        return length()

    return count


_OF_THE_MODULE = [0]


def in_a_module() -> Callable[[], int]:
    _OF_THE_MODULE[0] = 0

    def count() -> int:
        _OF_THE_MODULE[0] += 1
        return _OF_THE_MODULE[0]

    return count


LATE: dict[str, Callable[[], Function]] = {
    "a set": lambda: late_by(in_a_set()),
    "bound methods": lambda: late_by(by_bound_methods()),
    "a module": lambda: late_by(in_a_module()),
    "slots": lambda: late_by(Slotted()),
    "an iterator": lambda: late_by(itertools.count().__next__),
    "a generator": lambda: late_by(in_a_generator()),
    "an array": lambda: late_by(in_an_array()),
    "a deque": lambda: late_by(in_a_deque()),
    "a partial": late_in_a_partial,
    "a module in modules": late_deep_inside,
    "a range": lambda: late_by(iter(range(10**9)).__next__),
    "an iterator of iterators": lambda: late_by(itertools.accumulate(itertools.repeat(1)).__next__),
    "a dictionary that grows": lambda: late_by(in_a_growing_dictionary()),
    "a key that reads like another": lambda: late_by(under_a_key_that_reads_like_another()),
    "the end of a long list": lambda: late_by(at_the_end_of([0.0] * 3000)),
    "the end of a large array": lambda: late_by(at_the_end_of(np.zeros(200_000))),
    "the data of a tensor": lambda: late_by(in_the_data_of_a_tensor()),
    "an attribute of a tensor": lambda: late_by(on(torch.zeros(1))),
    "an attribute of a number": lambda: late_by(on(Number(1))),
    "a library": lambda: late_by(on_torch()),
    "a class of classes": lambda: late_by(in_a_class_of_classes()),
    "a static method": lambda: late_by(in_a_static_method()),
    "a cache": lambda: late_by(in_a_cache()),
    "the second generator": lambda: late_by(in_the_second_generator()),
    "a context": lambda: late_by(in_a_context()),
    "a weak reference": lambda: late_by(behind_a_weak_reference()),
    "a stream": lambda: late_by(in_a_stream()),
    "random numbers of its own": lambda: late_by(very_rarely(random.Random(0).random)),
    "random numbers of NumPy's": lambda: late_by(very_rarely(np.random.default_rng(0).random)),
    "everybody's random numbers": lambda: late_by(very_rarely(random.random)),
    "keyword defaults": lambda: late_by(in_keyword_defaults()),
    "the innermost list": lambda: late_by(deep_inside()),
}


class Drifting(nn.Module):
    """Grows by a millionth at every call, through `.data`."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(48, 4)

    def forward(self, images: Tensor) -> Tensor:
        self.layer.weight.data = self.layer.weight.data * 1.000001
        return self.layer(images.flatten(1))
