"""Processes that share a command's work by Lightning Fabric."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import lightning as L
from jsonargparse import ArgumentParser, Namespace
from lightning.fabric.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import SIGTERMException

from .ending import STARTED

PATIENCE = timedelta(days=30)
"""How long processes wait for each other: their shares may differ by hours, and torch gives up after 30 minutes."""


def add_processes(parser: ArgumentParser) -> None:
    """Add the options ``--accelerator``, ``--devices`` and ``--num_nodes``."""
    parser.add_argument("--accelerator", type=str, default="auto", help="as in Lightning: auto, cpu, cuda")
    parser.add_argument("--devices", type=int, default=1, help="processes per machine")
    parser.add_argument("--num_nodes", type=int, default=1, help="machines")


@contextmanager
def codes_of_signals() -> Iterator[None]:
    """Let a command that Lightning stops at a signal end with 128 + its number, as the shell has it.

    Lightning ends a program with 0 after SIGTERM, as if its work were done, and with 1 after SIGINT.
    """
    try:
        yield
    except SIGTERMException as stop:
        raise SystemExit(128 + signal.SIGTERM) from stop
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise SystemExit(128 + signal.SIGINT) from stop
        raise


def launch(options: Namespace) -> L.Fabric:
    """Start the processes that :func:`add_processes` asks for, or join those that srun or torchrun has started."""
    several = options.devices * options.num_nodes > 1
    fabric = L.Fabric(
        accelerator=options.accelerator,
        devices=options.devices,
        num_nodes=options.num_nodes,
        strategy=DDPStrategy(timeout=PATIENCE) if several else "auto",
    )
    fabric.launch()
    STARTED[:] = getattr(fabric.strategy.launcher, "procs", [])
    return fabric
