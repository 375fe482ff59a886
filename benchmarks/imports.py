"""How long a user waits before anything happens: imports and ``--help``, each in a process of its own, in turns.

- ``import_over_torch_and_torchmetrics``: ``import ellips`` over ``import torch, torchmetrics``, which it needs anyway.
- ``help_COMMAND_over_bare_lightning_cli``: ``ellips COMMAND --help`` over ``fit --help`` of a LightningCLI with
  Lightning's own demonstration model and data, and nothing else.

``measurements`` has the seconds of every round.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks._common import interleaved_seconds, make_parser, median_ratio, report

ROOT = Path(__file__).parents[1]
BARE = """
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringDataModule, DemoModel
LightningCLI(DemoModel, BoringDataModule)
"""
OURS = "import sys; from ellips.commands import main; sys.exit(main())"
COMMANDS = ("", "fit", "test", "train-encoder", "plan", "encode", "certify", "check", "audit", "compare", "collect")


def run(code: str, *arguments: str) -> None:
    """Run Python code in a new process, with one thread.

    Raises:
        RuntimeError: If it fails.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{code!r} with {arguments} failed:\n{done.stderr[-2000:]}")


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark.

    Args:
        arguments: Command line; None: that of this process.

    Returns:
        The JSON object that was printed.
    """
    parser = make_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="calls of each, in turns")
    parser.add_argument("--commands", nargs="*", default=list(COMMANDS), help="of those whose --help is timed")
    options = parser.parse_args(arguments)
    rounds, commands = (1, options.commands[:2]) if options.quick else (options.rounds, options.commands)
    calls = {
        "torch, torchmetrics": partial(run, "import torch, torchmetrics"),
        "ellips": partial(run, "import ellips"),
        "bare": partial(run, BARE, "fit", "--help"),
        **{f"help {name}".strip(): partial(run, OURS, *name.split(), "--help") for name in commands},
    }
    times = interleaved_seconds(calls, rounds, warmup=0 if options.quick else 1)
    ratios = {"import_over_torch_and_torchmetrics": median_ratio(times["ellips"], times["torch, torchmetrics"])}
    for name in commands:
        key = "_".join(["help", *name.replace("-", "_").split(), "over_bare_lightning_cli"])
        ratios[key] = median_ratio(times[f"help {name}".strip()], times["bare"])
    spread = {name: {"median": statistics.median(found), "seconds": found} for name, found in times.items()}
    settings = {"rounds": rounds, "quick": options.quick}
    return report("imports", ratios, settings, measurements=spread, json_file=options.json)


if __name__ == "__main__":
    main()
