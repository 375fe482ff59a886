from __future__ import annotations

import math
import types
from pathlib import Path

import psutil
import pytest
import torch
from torch import nn

from ellips import memory
from ellips.memory import AllocationWatch, control_group_room, free_memory, is_out_of_memory

CPU = torch.device("cpu")


def test_the_watch_counts_what_is_alive_at_once() -> None:
    given, other = torch.zeros(1000), torch.zeros(50, 20)
    with AllocationWatch() as watch:
        a = given + 1  # 4,000 bytes
        b = a * 2  # 8,000
        del a
        c = b.view(10, 100)  # no memory of its own
        c.add_(1)
        _ = other.t()  # nor this
        d = torch.cat([b, b])  # 12,000
    assert watch.peak == 12_000
    del b, c, d


CUDA = pytest.param(
    "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
)


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_the_watch_sees_what_the_backward_pass_keeps(device: str) -> None:
    layers = nn.Sequential(*(nn.Sequential(nn.Linear(100, 100), nn.Tanh()) for _ in range(4))).requires_grad_(False)
    layers.to(device)
    peaks = []
    for count in (10, 40):
        points = torch.randn(count, 100, requires_grad=True, device=device)
        with AllocationWatch() as watch:
            torch.autograd.grad(layers(points).sum(), points)
        peaks.append(watch.peak / count)
    assert peaks[0] == pytest.approx(peaks[1], rel=0.01)
    assert peaks[0] >= 4 * 100 * 4  # four layers' values are kept


def group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)


def test_control_groups_of_version_2_leave_what_the_tightest_of_them_leaves(tmp_path: Path) -> None:
    own, root = tmp_path / "cgroup", tmp_path / "fs"
    own.write_text("0::/slurm/job1\n")
    assert control_group_room(own, root) == math.inf
    group(root / "slurm", memory__max="1000\n", memory__current="700\n", memory__stat="anon 1\ninactive_file 100\n")
    group(root / "slurm" / "job1", memory__max="max\n", memory__current="5\n", memory__stat="inactive_file 0\n")
    assert control_group_room(own, root) == 400
    group(root / "slurm" / "job1", memory__max="300\n")
    assert control_group_room(own, root) == 295
    group(root / "slurm" / "job1", memory__current="310\n")
    assert control_group_room(own, root) == 0
    assert control_group_room(tmp_path / "none", root) == math.inf


def test_control_groups_of_version_1_are_known_too(tmp_path: Path) -> None:
    own, root = tmp_path / "cgroup", tmp_path / "fs"
    own.write_text("5:cpu,cpuacct:/a\n4:memory:/a\n0::/a\n")
    files = {"memory__limit_in_bytes": "900", "memory__usage_in_bytes": "500", "memory__stat": "total_inactive_file 50"}
    group(root / "memory" / "a", **files)
    assert control_group_room(own, root) == 450


def test_free_memory_is_the_least_of_all_limits_and_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: types.SimpleNamespace(available=1000))
    monkeypatch.setattr(memory, "control_group_room", lambda: math.inf)
    assert free_memory(CPU) == 1000
    monkeypatch.setattr(memory, "control_group_room", lambda: 600.0)
    assert free_memory(CPU) == 600
    monkeypatch.setattr(memory, "world_size", lambda: 2)
    assert free_memory(CPU) == 300
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert free_memory(CPU) == 150


def test_on_a_gpu_the_unused_part_of_the_pool_counts_as_free(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("mem_get_info", (500, 1000)), ("memory_reserved", 300), ("memory_allocated", 100)):
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert free_memory(torch.device("cuda", 0)) == 700


def test_errors_that_speak_of_memory_are_told_apart() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"))
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"))
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(error.value)
