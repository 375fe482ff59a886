"""How much memory there is, and how much a computation takes of it."""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ellips.distributed import world_size

# What torch and its libraries say: of the processor's allocator (Linux and macOS, Windows), CUDA itself, cuBLAS.
_SAID = ("can't allocate memory", "not enough memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
_VERSION_2 = ("memory.max", "memory.current", "inactive_file")
_VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def free_memory(device: torch.device) -> float:
    """Return the bytes that this process may still take on a device.

    On a CUDA device: what is free and what torch's pool holds unused. Elsewhere: what the machine has available, or
    less if a control group (SLURM, containers) allows less; processes of one run on one machine share it.

    Args:
        device: The device.
    """
    if device.type == "cuda":
        pool = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + pool)
    room = min(float(psutil.virtual_memory().available), control_group_room())
    return room / int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))


def control_group_room(own: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> float:
    """Return the bytes that Linux's control groups leave to this process; infinite where they set no limit.

    psutil does not know them. Pages of files that the system would give up at once do not count as taken.

    Args:
        own: Names the groups of the process.
        root: Where the groups are.
    """
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return math.inf
    rooms = [math.inf]
    for line in lines:
        _, kinds, path = line.split(":", 2)
        if kinds and "memory" not in kinds.split(","):
            continue
        top, names = (root / "memory", _VERSION_1) if kinds else (root, _VERSION_2)
        group = top / path.lstrip("/")
        rooms += [_room(folder, *names) for folder in (group, *group.parents) if folder.is_relative_to(top)]
    return min(rooms)


def _room(folder: Path, limit: str, current: str, inactive: str) -> float:
    try:
        allowed, used = (int((folder / name).read_text()) for name in (limit, current))
        statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no such group, or "max": no limit
        return math.inf
    return float(max(0, allowed - used + int(statistics.get(inactive, 0))))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was not enough."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in _SAID)


class AllocationWatch(TorchDispatchMode):
    """While active, adds up the tensors that torch makes and that are alive at once, on any device.

    It sees neither scratch space inside of an operation nor what an allocator loses to gaps.

    Attributes:
        peak: Most bytes that were alive at once.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._sizes: dict[int, int] = {}
        self._total = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - torch's operations have no common type
        """Run an operation and count what it made."""
        del types
        given = {id(storage) for storage in _storages((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            key = id(storage)
            if key not in given and key not in self._sizes:
                self._sizes[key] = storage.nbytes()
                self._total += storage.nbytes()
                weakref.finalize(storage, self._freed, key)
        self.peak = max(self.peak, self._total)
        return result

    def _freed(self, key: int) -> None:
        self._total -= self._sizes.pop(key)


def _storages(nested: object) -> list[torch.UntypedStorage]:
    tensors = [leaf for leaf in tree_leaves(nested) if isinstance(leaf, Tensor)]
    return [tensor.untyped_storage() for tensor in tensors if tensor.layout is torch.strided]
