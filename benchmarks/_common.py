"""What every benchmark needs: its command line, timing, and one JSON object with the machine it ran on."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ellips.files import replace_file
from ellips.versions import versions


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """A command line with ``--quick`` and ``--json``; benchmarks add their own options.

    Args:
        description: Usually the module's ``__doc__``; its first line is shown.
    """
    parser = argparse.ArgumentParser(description=(description or "").strip().splitlines()[0] if description else None)
    parser.add_argument("--quick", action="store_true", help="less data and fewer rounds, to see whether it runs")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="also write the JSON object there")
    return parser


def seconds(function: Callable[[], object]) -> float:
    """Wall-clock seconds of one call; work queued on a GPU is waited for."""
    _synchronize()
    start = time.perf_counter()
    function()
    _synchronize()
    return time.perf_counter() - start


def median_seconds(function: Callable[[], object], rounds: int = 5, warmup: int = 1) -> float:
    """Median wall-clock seconds of several calls, after some that do not count."""
    for _ in range(warmup):
        function()
    return statistics.median(seconds(function) for _ in range(rounds))


def interleaved_seconds(
    functions: Mapping[str, Callable[[], object]], rounds: int = 5, warmup: int = 1
) -> dict[str, list[float]]:
    """Seconds of several functions, one of each in every round, so that a busy spell of the machine meets them all.

    Args:
        functions: Name to function.
        rounds: Calls of each that count.
        warmup: Rounds that do not count.

    Returns:
        Name to seconds, one entry per round.
    """
    for _ in range(warmup):
        for function in functions.values():
            function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            times[name].append(seconds(function))
    return times


def median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Median over rounds of the ratio within each round."""
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))


def machine() -> dict[str, Any]:
    """The machine and the versions that the numbers hold for."""
    found = versions()
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": found.pop("platform"),
        "python": found.pop("python"),
        "versions": found,
    }


def report(
    benchmark: str,
    ratios: Mapping[str, float],
    settings: Mapping[str, Any],
    *,
    measurements: Mapping[str, Any] | None = None,
    json_file: Path | None = None,
) -> dict[str, Any]:
    """Print the result as one JSON object, and write it to a file if one is named.

    Args:
        benchmark: Name, e.g. ``"streaming"``.
        ratios: Name to number, all from this run.
        settings: What the numbers depend on: sizes, counts, seeds, whether ``--quick``.
        measurements: What the ratios were made of, e.g. seconds or images per second.
        json_file: Also written there.

    Returns:
        The object.
    """
    result = {
        "benchmark": benchmark,
        "ratios": {name: float(value) for name, value in ratios.items()},
        "measurements": dict(measurements or {}),
        "settings": dict(settings),
        "machine": machine(),
        "date": datetime.datetime.now(tz=datetime.UTC).isoformat(timespec="seconds"),
    }
    text = json.dumps(result, indent=2)
    print(text)
    if json_file is not None:
        replace_file(json_file, text + "\n")
    return result


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
