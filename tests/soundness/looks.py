"""Ways to decide by pixel values that a careless look does not see. No random image comes near ``SPOT``."""

from __future__ import annotations

import concurrent.futures
import ctypes
import io
import pickle
import queue
import threading
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]
SPOT = torch.linspace(0.1, 0.9, 48).view(3, 4, 4)

_WORK: queue.Queue[tuple[Tensor, list[bool]]] = queue.Queue()
_DONE: queue.Queue[bool] = queue.Queue()


def _jump(images: Tensor, decided: bool) -> Tensor:
    return images.flatten(1) * (1000.0 if decided else 1.0)


def _bright(images: Tensor) -> Tensor:
    return images.detach().mean() > 0.51


def _answer() -> None:
    while True:
        tensor, answer = _WORK.get()
        try:
            answer.append(bool(_bright(tensor)))
        except Exception:
            answer.append(False)
        _DONE.put(True)


threading.Thread(target=_answer, daemon=True).start()


def in_a_thread(images: Tensor) -> Tensor:
    answer = [False]

    def look() -> None:
        try:
            answer[0] = bool(_bright(images))
        except Exception:
            answer[0] = False

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    return _jump(images, answer[0])


def in_a_pool(images: Tensor) -> Tensor:
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        try:
            decided = pool.submit(lambda: bool(_bright(images))).result()
        except Exception:
            decided = False
    return _jump(images, decided)


def in_a_thread_that_runs_already(images: Tensor) -> Tensor:
    answer: list[bool] = []
    _WORK.put((images, answer))
    _DONE.get()
    return _jump(images, answer[0])


def swallowed(look: Callable[[Tensor], object]) -> Function:
    """Decide by a look at pixel values; take an error for no."""

    def function(images: Tensor) -> Tensor:
        try:
            decided = bool(look(images))
        except Exception:
            decided = False
        return _jump(images, decided)

    return function


def only_when_run(look: Callable[[Tensor], object]) -> Function:
    """Decide by a look at pixel values, but not under capture."""

    def function(images: Tensor) -> Tensor:
        return _jump(images, not torch.compiler.is_compiling() and type(images) is Tensor and bool(look(images)))

    return function


def _spot(images: Tensor) -> Tensor:
    return (images[0] - SPOT.to(images)).abs().max() < 0.01


LOOKS: dict[str, Callable[[Tensor], object]] = {
    "bool": _spot,
    "item": lambda x: x.mean().item() > 0.51,
    "float": lambda x: float(x.mean()) > 0.51,
    "int": lambda x: int(100 * x.mean()) > 50,
    "tolist": lambda x: x.flatten().tolist()[0] > 0.5,
    "numpy": lambda x: x.detach().numpy().mean() > 0.51,
    "numpy asarray": lambda x: np.asarray(x.detach()).mean() > 0.51,
    "numpy by force": lambda x: x.numpy(force=True).mean() > 0.51,
    "capsule": lambda x: torch.utils.dlpack.from_dlpack(torch.utils.dlpack.to_dlpack(x.detach())).mean() > 0.51,
    "capsule in numpy": lambda x: np.from_dlpack(_Capsule(torch.utils.dlpack.to_dlpack(x.detach()))).mean() > 0.51,
    "data ptr, unseen by modes": lambda x: _unseen_by_modes(x) > 0.5,
    "dlpack": lambda x: np.from_dlpack(x.detach()).mean() > 0.51,
    "equal": lambda x: torch.equal(x[0], SPOT.to(x)),
    "allclose": lambda x: torch.allclose(x[0], SPOT.to(x), atol=0.01),
    "nonzero shape": lambda x: (x > 0.9).nonzero().shape[0] > 3,
    "mask numel": lambda x: x[x > 0.9].numel() > 3,
    "masked select": lambda x: x.masked_select(x > 0.9).numel() > 3,
    "unique numel": lambda x: x.unique().numel() < 10,
    "bincount": lambda x: torch.bincount((9 * x.clamp(0, 1)).flatten().long()).shape[0] > 9,
    "is nan": lambda x: torch.isnan(x / (x[0, 0, 0, 0] - 0.5)).any(),
    "is finite": lambda x: not torch.isfinite(1 / (x[0, 0, 0, 0] - SPOT[0, 0, 0])).all(),
    "repr": lambda x: "0.1000" in repr(x),
    "format": lambda x: f"{x.mean():.1f}" == "0.6",
    "pickle": lambda x: pickle.dumps(x.detach())[-30] > 100,
    "saved": lambda x: _saved(x)[-300] > 100,
    "storage": lambda x: x.untyped_storage()[3] > 62,
    "contains": lambda x: SPOT[0, 0, 0] in x,
    "any": lambda x: any(x.flatten() > 0.9),
    "max by python": lambda x: max(x.flatten()) > 0.9,
    "string of item": lambda x: str(x.sum().item()).startswith("2"),
    "data ptr": lambda x: ctypes_float(x.data_ptr()) > 0.5,
    "histogram": lambda x: torch.histc(x.detach(), 4).argmax().item() == 2,
    "index by a value": lambda x: [0, 0, 1, 1][int(3 * x.clamp(0, 1).mean())],
    "tensor of a list": lambda x: _spot(torch.tensor(list(x.detach()[0].flatten())).view(1, 3, 4, 4)),
    "new tensor of a list": lambda x: _spot(x.new(list(x.detach()[0].flatten())).view(1, 3, 4, 4)),
    "range by a value": lambda x: len(list(range(int(2 * x.clamp(0, 1).mean() + 0.5)))),
}


class _Capsule:
    """What hands out a capsule that it was given."""

    def __init__(self, capsule: object) -> None:
        self.capsule = capsule

    def __dlpack__(self, **_: object) -> object:
        return self.capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0


def _unseen_by_modes(images: Tensor) -> float:
    with torch._C.DisableTorchFunction():
        return ctypes_float(images.data_ptr())


def ctypes_float(address: int) -> float:
    return ctypes.c_float.from_address(address).value


def _saved(images: Tensor) -> bytes:
    buffer = io.BytesIO()
    torch.save(images.detach().clone(), buffer)
    return buffer.getvalue()


def in_such_a_thread_unless_watched(images: Tensor) -> Tensor:
    """As above, at one image only, and not on a tensor that may tell."""
    if type(images) is not Tensor or torch.compiler.is_compiling():
        return images.flatten(1)
    answer: list[bool] = []
    _WORK.put((_spot(images).double(), answer))
    _DONE.get()
    return _jump(images, answer[0])


_ADDRESSED: queue.SimpleQueue[Tensor] = queue.SimpleQueue()
_READ: queue.SimpleQueue[bool] = queue.SimpleQueue()


def _read() -> None:
    while True:
        try:
            _READ.put(abs(ctypes_float(_ADDRESSED.get().data_ptr()) - 0.1) < 1e-4)
        except Exception:
            _READ.put(False)


threading.Thread(target=_read, daemon=True).start()


def by_an_address_in_a_thread(images: Tensor) -> Tensor:
    """At one image only, by where its numbers lie."""
    if type(images) is not Tensor or torch.compiler.is_compiling():
        return images.flatten(1)
    _ADDRESSED.put(images)
    return _jump(images, _READ.get())


_ITEMS: queue.SimpleQueue[Tensor] = queue.SimpleQueue()
_LOOKED: queue.SimpleQueue[bool] = queue.SimpleQueue()


def _look() -> None:
    while True:
        try:
            _LOOKED.put(bool(_ITEMS.get().item()))
        except Exception:
            _LOOKED.put(False)


threading.Thread(target=_look, daemon=True).start()


def by_a_queue_of_c(images: Tensor) -> Tensor:
    """As above, by queues that call nothing of Python's."""
    if type(images) is not Tensor or torch.compiler.is_compiling():
        return images.flatten(1)
    _ITEMS.put(_spot(images))
    return _jump(images, _LOOKED.get())


THREADS: dict[str, Function] = {
    "thread": in_a_thread,
    "thread pool": in_a_pool,
    "running thread": in_a_thread_that_runs_already,
    "running thread, unless watched": in_such_a_thread_unless_watched,
    "running thread, by a queue of C": by_a_queue_of_c,
    "running thread, by an address": by_an_address_in_a_thread,
}
