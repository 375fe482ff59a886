"""Functions in processes of their own: forks of one that has imported what takes seconds, and has done nothing else."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock

import torch
from torch.multiprocessing import get_context, start_processes

from ellips.distributed import close_process_group

ROOT = Path(__file__).parents[1]
IMPORTED = ["ellips.commands.audit", "ellips.commands.certify", "ellips.commands.encode", "ellips.commands.training"]


def run_together(function: Callable[..., None], *arguments: object, processes: int = 2, timeout: float = 240) -> None:
    """Call ``function(*arguments)`` in several processes that know of each other as torchrun's do.

    Lightning starts no others then, and ``torch.distributed.init_process_group`` needs no address. What fails in one
    of them fails here, and so does a process that does not end.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    _start_server()
    started = start_processes(
        _run, (processes, port, function, arguments), processes, join=False, start_method="forkserver"
    )
    deadline = time.monotonic() + timeout
    try:
        while not started.join(timeout=max(0.0, deadline - time.monotonic())):
            assert time.monotonic() < deadline, f"{processes} processes did not end within {timeout} s"
    finally:
        for process in started.processes:
            process.kill()


def run_apart(function: Callable[..., None], *arguments: object) -> None:
    """Call ``function(*arguments)`` in a new process."""
    run_together(function, *arguments, processes=1)


def _start_server() -> None:
    """Start the process that is forked, unless it runs; this clone's modules are imported, wherever tests stand."""
    get_context("forkserver").set_forkserver_preload(IMPORTED)
    with mock.patch.dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1"):
        forkserver.ensure_running()


def _run(rank: int, world: int, port: int, function: Callable[..., None], arguments: tuple[object, ...]) -> None:
    for name in [name for name in os.environ if name.startswith(("SLURM_", "PYTEST_"))]:
        del os.environ[name]
    if world > 1:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test"}
        os.environ |= {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "GROUP_RANK": "0"}
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    torch.set_num_threads(1)
    function(*arguments)
    close_process_group()
