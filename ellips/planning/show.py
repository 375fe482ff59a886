"""How a plan is shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ellips.planning.work import Cost

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def stage_entry(cost: Cost | None, flops: float, speed: float | None, rate: float | None, processes: int) -> Any:  # noqa: ANN401 - JSON
    """Return what is written of a stage.

    Args:
        cost: What goes through the encoder; None: not known.
        flops: Operations of projector and Gaussians.
        speed: Images through the encoder in a second, of one process; None: no hours are given.
        rate: 1e9 operations in a second, of one process; None: those of projector and Gaussians have no hours.
        processes: Processes.
    """
    if cost is None:
        return None
    entry: dict[str, float] = {"forward": cost.most.forward, "products": cost.most.products}
    entry |= {"passes": cost.most.passes, "expected_passes": cost.expected.passes, "flops": flops}
    if speed is not None:
        beside = 0.0 if rate is None else flops / (1e9 * rate) / processes / 3600
        entry["hours"] = cost.most.hours(speed, processes) + beside
        entry["expected_hours"] = cost.expected.hours(speed, processes) + beside
    return entry


def in_units(size: float) -> str:
    """Return bytes as a person reads them, in powers of 1,000: ``8.4 GB``."""
    unit = 0
    while size >= 1000 and unit + 1 < len(_UNITS):
        size, unit = size / 1000, unit + 1
    return f"{size:,.0f} B" if unit == 0 else f"{size:,.1f} {_UNITS[unit]}"


def show_plan(found: Mapping[str, Any], console: Console) -> None:
    """Print a plan as two tables.

    Args:
        found: ``"bytes"`` by what takes them, and ``"stages"`` as :func:`stage_entry` returns them, by name.
        console: Where to.
    """
    memory = Table(box=SIMPLE_HEAD, title="Memory and disk", title_justify="left")
    memory.add_column("GPU and host: of each process", no_wrap=True)
    memory.add_column("", justify="right", no_wrap=True)
    for name, size in found["bytes"].items():
        memory.add_row(name, in_units(size))
    work = Table(box=SIMPLE_HEAD, title="Forward passes of an image through the encoder*", title_justify="left")
    work.add_column("stage", no_wrap=True)
    for heading in ("at most", "expected", "hours", "expected"):
        work.add_column(heading, justify="right", no_wrap=True)
    for name, stage in found["stages"].items():
        work.add_row(name, *_cells(stage))
    console.print(memory, work)
    console.print("[dim]* a product with its Jacobian counts as two; activations are in no memory here[/dim]")


def _cells(stage: Mapping[str, float] | None) -> list[str]:
    if stage is None:
        return ["not known"]
    counts = [f"{stage[key]:,.0f}" for key in ("passes", "expected_passes")]
    return counts + [f"{stage[key]:,.2f}" for key in ("hours", "expected_hours") if key in stage]
