"""``collect``: the runs of a sweep in one table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from ellips.files import RUNS, RunFolder, replace_file
from ellips.reporting.sweep import as_csv, order, read_run, sweep_rows, sweep_table

from .messages import Parser

DESCRIPTION = """Put the runs of a sweep into one table.

A row for each run: the settings in which the runs differ, the last metrics of the validation split, and certified
accuracies of what `ellips certify` left in the run folder. The CSV has all of them.
"""
_SHOWN = ["val/accuracy", "val/relative_radius/latent-exact"]


def main(args: Sequence[str] | None = None) -> int:
    """Collect; the exit code is 1 if a run lacks something."""
    parser = Parser(prog="ellips collect", description=DESCRIPTION)
    parser.add_argument("runs", nargs="+", type=Path, help="Run folders, such as runs/sweep-*.")
    parser.add_argument("--best", type=str | None, default=None, help="Sort by this metric of the validation split.")
    parser.add_argument("--show", type=list[str], default=_SHOWN, help="Metrics and results to print.")
    parser.add_argument("--out", type=Path, default=RUNS / "collect.csv", help="File for the whole table.")
    config = parser.parse_args(None if args is None else list(args))
    runs = order([read_run(RunFolder(path)) for path in config.runs], config.best)
    replace_file(config.out, as_csv(sweep_rows(runs)))
    console = Console()
    console.print(sweep_table(runs, config.show))
    console.print(f"The whole table is {config.out}.", highlight=False, markup=False)
    return int(any(run.lacking for run in runs))
