"""The runs of a sweep in one table: what they were set to, how they did on validation data, what was certified."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from ellips.files import RunFolder, read_configuration, read_json
from ellips.reporting.curves import radius_text

_OF_EVERY_RUN = ("name", "ckpt_path", "trainer.logger", "trainer.default_root_dir")
"""Settings that differ between any two runs and tell nothing of them."""


@dataclass(frozen=True)
class SweepRun:
    """One run.

    Attributes:
        name: Its name.
        settings: Of the fit, by dotted name.
        metrics: What its fit logged last of the validation split, by name.
        certified: Results of certification, by ``<folder> <series> <soundness>`` and radius.
        lacking: What is not there, in words.
    """

    name: str
    settings: dict[str, Any]
    metrics: dict[str, float] = field(default_factory=dict)
    certified: dict[str, float] = field(default_factory=dict)
    lacking: tuple[str, ...] = ()


def read_run(folder: RunFolder) -> SweepRun:
    """Read what a run left behind; nothing in it is executed.

    Args:
        folder: The run.

    Raises:
        FileNotFoundError: If there is no run.
    """
    if not folder.config.is_file():
        raise FileNotFoundError(f"Expected {folder.config}, which `ellips fit` writes, but there is none.")
    config = read_configuration(folder.config)
    settings = {name: value for name, value in _flat(config) if not name.startswith(_OF_EVERY_RUN)}
    metrics = _last_metrics(folder)
    summaries = sorted(folder.path.glob("certify/*/summary.json"))
    certified: dict[str, float] = {}
    lacking = [] if metrics else ["no metrics of the validation split"]
    for path in summaries:
        summary = read_json(path)
        try:
            certified |= _certified(path.parent.name, summary)
            complete = summary["complete"]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: expected a summary of `ellips certify` but got {error!r}.") from error
        if not complete:
            lacking.append(f"certify/{path.parent.name} is not complete")
    if not summaries:
        lacking.append("nothing certified")
    return SweepRun(folder.path.name, settings, metrics, certified, tuple(lacking))


def _flat(content: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:  # noqa: ANN401 - whatever YAML holds
    if isinstance(content, Mapping) and content:
        for key, value in content.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, content


def _last_metrics(folder: RunFolder) -> dict[str, float]:
    """Return the last value of each metric of the validation split; that of resumed fits counts for its whole run."""
    before = sorted(folder.metrics.parent.glob(f"{folder.metrics.stem}-*.csv"), key=lambda path: path.stat().st_mtime)
    found: dict[str, float] = {}
    for path in (*before, folder.metrics):
        if path.is_file():
            with path.open(encoding="utf-8", newline="") as file:
                try:
                    for row in csv.DictReader(file):
                        found |= {k: float(v) for k, v in row.items() if k and k.startswith("val/") and v}
                except (ValueError, TypeError, csv.Error) as error:
                    raise ValueError(f"{path}: expected a table of metrics but {error}.") from error
    return found


def _certified(folder: str, summary: Mapping[str, Any]) -> dict[str, float]:
    found: dict[str, float] = {}
    for series, entry in summary["series"].items():
        if "clean_accuracy" in entry:
            stem = f"{folder} {series} {entry['soundness']}"
            found[f"{stem} clean"] = entry["clean_accuracy"]["accuracy"]
            found |= {
                f"{stem} @{radius_text(point['radius'], 6)}": point["accuracy"] for point in entry["certified_accuracy"]
            }
    return found


def differing(runs: Sequence[SweepRun]) -> list[str]:
    """Return the settings in which runs differ, in the order of the first run that has them."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    return [name for name in names if len({repr(run.settings.get(name)) for run in runs}) > 1]


def order(runs: Sequence[SweepRun], best: str | None) -> list[SweepRun]:
    """Return the runs, the largest value of a metric first; without a metric as they are.

    Args:
        runs: The runs; those without the metric come last.
        best: A metric of the validation split; None: none.

    Raises:
        ValueError: If the metric is not of the validation split, or no run has it.
    """
    if best is None:
        return list(runs)
    known = sorted({name for run in runs for name in run.metrics})
    if best not in known:
        raise ValueError(f"Expected `best` to be a metric of the validation split, one of {known}, but got {best!r}.")
    return sorted(runs, key=lambda run: -run.metrics.get(best, float("-inf")))


def sweep_rows(runs: Sequence[SweepRun]) -> list[dict[str, Any]]:
    """Return a row for each run: its name, the settings that differ, all metrics, all results, what is lacking."""
    settings = differing(runs)
    metrics = dict.fromkeys(name for run in runs for name in run.metrics)
    results = dict.fromkeys(name for run in runs for name in run.certified)
    return [
        {
            "run": run.name,
            **{name: run.settings.get(name) for name in settings},
            **{name: run.metrics.get(name) for name in metrics},
            **{name: run.certified.get(name) for name in results},
            "lacking": "; ".join(run.lacking),
        }
        for run in runs
    ]


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as CSV text; cells that a run has not are empty."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def sweep_table(runs: Sequence[SweepRun], columns: Sequence[str]) -> Table:
    """Lay out a sweep: a row for each run, with the settings that differ, some columns and what is lacking.

    Args:
        runs: The runs.
        columns: Metrics and results to show.
    """
    settings = differing(runs)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("run", overflow="fold")
    for name in (*(name.rpartition(".")[2] for name in settings), *columns):
        table.add_column(name, justify="right", overflow="fold")
    table.add_column("lacking", overflow="fold")
    for run, row in zip(runs, sweep_rows(runs), strict=True):
        values = [row.get(name) for name in columns]
        shown = ["–" if value is None else f"{value:.4g}" for value in values]
        table.add_row(
            *map(escape, (run.name, *(str(row[name]) for name in settings), *shown, "; ".join(run.lacking) or "–"))
        )
    return table
