"""The end of a process group: nothing of it may outlive the program's last line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from ellips.distributed import close_process_group, world_size
from tests.processes import run_together


def threads() -> set[str]:
    return {task.name for task in Path("/proc/self/task").iterdir()}


def join_and_close(folder: Path) -> None:
    module = nn.Linear(3, 2)
    module(torch.ones(4, 3)).sum().backward()  # with a GPU, the first backward pass starts threads that stay
    own = threads()  # those of the group are told by their time: torch 2.5 gives them no names
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    # DDP holds the group as well, and this one is garbage that only a collection finds.
    model = nn.parallel.DistributedDataParallel(module)
    model.itself = [model]
    model(torch.ones(4, 3)).sum().backward()
    total = torch.full((1000,), float(rank + 1))
    dist.all_reduce(total, async_op=True)
    del model
    before = threads() - own
    close_process_group()
    after = threads() - own
    torch.save((list(before), list(after), total.unique().tolist(), world_size()), folder / f"{rank}.pt")


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="reads the threads from /proc")
def test_no_thread_of_the_group_is_left(tmp_path: Path) -> None:
    run_together(join_and_close, tmp_path)
    for rank in range(2):
        before, after, total, processes = torch.load(tmp_path / f"{rank}.pt")
        assert before
        assert after == []
        assert total == [3.0]  # the collective that was under way has been completed
        assert processes == 1


def test_without_a_group_nothing_happens() -> None:
    close_process_group()
    assert not dist.is_initialized()
