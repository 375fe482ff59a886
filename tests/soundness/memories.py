"""Functions that remember: what they do to an image depends on those that came before."""

from __future__ import annotations

import collections
import functools
import itertools
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


LATE: dict[str, Callable[[], Function]] = {
    "slots": lambda: late_by(Slotted()),
    "an iterator": lambda: late_by(itertools.count().__next__),
    "a generator": lambda: late_by(in_a_generator()),
    "an array": lambda: late_by(in_an_array()),
    "a deque": lambda: late_by(in_a_deque()),
    "a partial": late_in_a_partial,
    "a module in modules": late_deep_inside,
}


class Drifting(nn.Module):
    """Grows by a millionth at every call, through `.data`."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(48, 4)

    def forward(self, images: Tensor) -> Tensor:
        self.layer.weight.data = self.layer.weight.data * 1.000001
        return self.layer(images.flatten(1))
