"""What hides a difference from the prover: numbers that are so large that it is lost, objects that do not show it."""

from __future__ import annotations

import ctypes
import decimal
import hashlib
import io
import math
import mmap
import queue
import random
import re
import sqlite3
import threading
import types
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator
from datetime import date
from fractions import Fraction
from pathlib import Path
from xml.etree import ElementTree as Xml

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from ellips.lipschitz import SpectralProduct, UnprovenOperationError
from ellips.lipschitz.capture.state import snapshot
from tests.soundness.looks import SPOT, Function
from tests.soundness.memories import late_by

IMAGES = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def _near(images: Tensor) -> Tensor:
    """Zero everywhere but around one image."""
    return (0.01 - (images - SPOT.to(images)).abs().amax((1, 2, 3), keepdim=True)).relu()


def _chosen(both: Tensor) -> Tensor:
    """The second of two rows, but the first under capture: no operation, no look."""
    place = 0 if torch.compiler.is_compiling() else 1
    return both[:, place : place + 1].flatten(1)


def beside_a_constant(images: Tensor) -> Tensor:
    """A thousand times as steep as captured; in float32 no sum of both is seen."""
    flat = images.flatten(1)
    both = flat[:, None] * torch.tensor([[1.0], [1e3]]).to(images)
    return torch.cat([_chosen(both), 0 * flat[:, :1] + 1e15], 1)


def beside_noise(images: Tensor) -> Tensor:
    """A detour through small numbers: what is added on the way grows beyond all others."""
    flat = images.flatten(1)
    both = _near(images).flatten(1)[:, None] * torch.tensor([[1e-3], [1e6]]).to(images)
    return torch.cat([flat + _chosen(both), (1e-15 * flat) * 1e15], 1)


def beneath_noise(images: Tensor) -> Tensor:
    """The same, added to it."""
    flat = images.flatten(1)
    both = _near(images).flatten(1)[:, None] * torch.tensor([[1e-3], [1e6]]).to(images)
    return flat + _chosen(both) + (1e-25 * flat) * 1e25


def _twice(images: Tensor, operation: Callable[[Tensor, bool], Tensor]) -> Tensor:
    """Two operations whose difference vanishes under capture: then they differ in nothing but a setting."""
    pattern = torch.linspace(-1, 1, 48).view(3, 4, 4).to(images) * _near(images)
    first = operation(pattern, True)
    second = operation(pattern, torch.compiler.is_compiling())
    flat = images.flatten(1)
    return torch.cat([flat, 1e6 * (first - second).flatten(1), (1e-15 * flat) * 1e15], 1)


def _enlarged(x: Tensor, aligned: bool) -> Tensor:
    return functional.interpolate(x, (5, 7), mode="bilinear", align_corners=aligned)


def _normalised(x: Tensor, careful: bool) -> Tensor:
    mean, variance = torch.zeros(3).to(x), torch.zeros(3).to(x)
    return functional.batch_norm(x, mean, variance, eps=1.0 if careful else 1e-8)


def _subtracted(x: Tensor, before: bool) -> Tensor:
    one = torch.ones(()).to(x)
    return x - one if before else one - x


DIFFERENCES: dict[str, Function] = {
    "beside a constant": beside_a_constant,
    "beside noise": beside_noise,
    "beneath noise": beneath_noise,
    "corners": lambda x: _twice(x, _enlarged),
    "variance": lambda x: _twice(x, _normalised),
    "order": lambda x: _twice(x, _subtracted),
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_no_large_number_hides_that_another_function_was_captured(name: str) -> None:
    with pytest.raises(UnprovenOperationError, match=r"whether it is captured or run"):
        SpectralProduct()(DIFFERENCES[name], IMAGES)


def _with_its_mean(images: Tensor) -> Tensor:
    """Of several images each is drawn to the others, beside a number that is larger by far."""
    flat = images.flatten(1)
    coupled = flat + (0.3 * (flat - flat.mean(0, keepdim=True)) if len(flat) > 1 else 0)
    return torch.cat([coupled, 0 * flat[:, :1] + 1e12], 1)


def _with_gradients(images: Tensor) -> Tensor:
    flat = images.flatten(1)
    both = torch.stack([flat, 3 * flat], 1)
    return torch.cat([both[:, int(torch.is_grad_enabled())], 0 * flat[:, :1] + 1e12], 1)


@pytest.mark.parametrize("function", [_with_its_mean, _with_gradients])
def test_no_large_number_hides_other_values_in_batches_and_other_modes(function: Function) -> None:
    with pytest.raises(UnprovenOperationError, match=r"other values|by itself"):
        SpectralProduct()(function, IMAGES)


def test_a_large_constant_does_not_make_rounding_look_like_another_function() -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Flatten(), nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 9)).requires_grad_(False)
    layers[3].bias.copy_(torch.logspace(-3, 12, 9))
    bound = float(SpectralProduct()(layers.eval(), IMAGES).constant[0])
    layers[3].bias.zero_()
    assert bound == float(SpectralProduct()(layers, IMAGES).constant[0])


def _adding(item: object, name: str) -> Callable[[], int]:
    """Count in something that an object lets nobody see but by its name."""

    def count() -> int:
        setattr(item, name, getattr(item, name) + 1)
        found: int = getattr(item, name)
        return found

    return count


class Structure(ctypes.Structure):
    _fields_ = (("calls", ctypes.c_int),)


class Lying(ctypes.c_long):
    """What it says of itself is not true."""

    def __reduce__(self) -> tuple[object, ...]:
        return int, ()


class Empty(list[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(())


class Bare:
    calls: int

    @property
    def __dict__(self) -> dict[str, object]:  # type: ignore[override]  # it denies what it holds
        return {}


class Constant(random.Random):
    def getstate(self) -> tuple[object, ...]:
        return ()


def in_an_empty_list() -> Callable[[], int]:
    calls = Empty([0])

    def count() -> int:
        calls[0] += 1
        return calls[0]

    return count


def in_a_bare_object() -> Callable[[], int]:
    item = Bare()
    item.calls = 0
    return _adding(item, "calls")


def in_the_order_of_a_dictionary() -> Callable[[], int]:
    order = OrderedDict((number, None) for number in range(2000))

    def count() -> int:
        first = next(iter(order))
        order.move_to_end(first)
        return first

    return count


def in_a_mapped_file() -> Callable[[], int]:
    memory = mmap.mmap(-1, 8)

    def count() -> int:
        memory[:8] = (int.from_bytes(memory[:8], "little") + 1).to_bytes(8, "little")
        return int.from_bytes(memory[:8], "little")

    return count


def in_a_queue() -> Callable[[], int]:
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()

    def count() -> int:
        waiting.put(1)
        return waiting.qsize()

    return count


def in_a_digest() -> Callable[[], int]:
    digest = hashlib.sha256()

    def count() -> int:
        digest.update(b" ")
        return 1000 if digest.digest()[:2] == bytes(2) else 0

    return count


def in_an_element() -> Callable[[], int]:
    element = Xml.Element("calls")

    def count() -> int:
        element.append(Xml.Element("call"))
        return len(element)

    return count


def in_a_data_base() -> Callable[[], int]:
    base = sqlite3.connect(":memory:")
    base.execute("create table calls (one)")

    def count() -> int:
        base.execute("insert into calls values (1)")
        found: int = base.execute("select count(*) from calls").fetchone()[0]
        return found

    return count


def in_locks() -> Callable[[], int]:
    """A number in twos: a lock is taken or not."""
    locks = [threading.Lock() for _ in range(12)]

    def count() -> int:
        for lock in locks:
            if not lock.locked():
                lock.acquire()
                break
            lock.release()
        return sum(lock.locked() << place for place, lock in enumerate(locks))

    return count


def in_a_coroutine() -> Callable[[], int]:
    @types.coroutine
    def step(number: int) -> Generator[int, None, None]:
        yield number

    async def numbers() -> None:
        for number in range(10**6):
            await step(number)

    running = numbers()
    return lambda: running.send(None)  # type: ignore[return-value]  # what is awaited comes out


def in_a_module_that_it_imports() -> Callable[[], int]:
    def count() -> int:
        import colorsys as module

        module.calls = getattr(module, "calls", 0) + 1  # type: ignore[attr-defined]
        found: int = module.calls  # type: ignore[attr-defined]
        return found

    return count


def in_a_module_around_it() -> Callable[[], int]:
    module = math

    def count() -> int:
        module.others = getattr(module, "others", 0) + 1  # type: ignore[attr-defined]
        found: int = module.others  # type: ignore[attr-defined]
        return found

    return count


MEMORIES: dict[str, Callable[[], Callable[[], int]]] = {
    "a number of C's": lambda: _adding(ctypes.c_long(0), "value"),
    "a structure of C's": lambda: _adding(Structure(), "calls"),
    "a number of C's that lies": lambda: _adding(Lying(0), "value"),
    "a context of decimals": lambda: _adding(decimal.Context(prec=1), "prec"),
    "a cell": lambda: _adding(types.CellType(0), "cell_contents"),
    "a list that seems empty": in_an_empty_list,
    "an object that seems bare": in_a_bare_object,
    "random numbers that seem constant": lambda: lambda: 1000 * (Constant.random(_CONSTANT) < 1e-3),
    "the order of a dictionary": in_the_order_of_a_dictionary,
    "a mapped file": in_a_mapped_file,
    "a queue": in_a_queue,
    "a digest": in_a_digest,
    "an element": in_an_element,
    "a data base": in_a_data_base,
    "locks": in_locks,
    "a coroutine": in_a_coroutine,
    "a module that it imports": in_a_module_that_it_imports,
    "a module around it": in_a_module_around_it,
}
_CONSTANT = Constant(0)


@pytest.mark.parametrize("name", MEMORIES)
def test_what_is_remembered_where_no_attribute_shows_it_is_refused(name: str) -> None:
    with pytest.raises(UnprovenOperationError, match=r"remembers nothing"):
        SpectralProduct()(late_by(MEMORIES[name]()), IMAGES)


def test_objects_that_cannot_change_or_show_what_they_hold_are_walked_through() -> None:
    space = types.SimpleNamespace(a=1)
    held = (
        re.compile("a"), date(2026, 1, 1), Fraction(1, 3), decimal.Decimal("0.1"), Path("a"), slice(1), range(3), ...,
        NotImplemented, object(), 1j, bytearray(b"a"), threading.RLock(), io.BytesIO(b"a"), len, str.upper, int | None,
        list[int], ValueError("a"), space, property(len), memoryview(b"a"), (lambda: 0).__code__,
        torch.float32, torch.strided, nn.Linear(1, 1), io.StringIO("a"), OrderedDict(a=1), frozenset({1}),
    )  # fmt: skip
    first = snapshot(held)
    assert first == snapshot(held)
    space.a = 2
    assert first != snapshot(held)
