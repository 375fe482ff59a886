"""``reproduce``: a table of the paper, run or resumed, with published rows beside ours."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from ellips.files import RUNS, ResultsFolder, RunFolder, replace_file
from ellips.reporting.published import PaperTable, RunRow, as_markdown, as_table, measured_row, read_paper_table

from .certify import main as certify
from .configs import shipped
from .messages import Parser
from .training import main as train

DESCRIPTION = """Run or resume a table of the paper, and write it with the published rows beside ours.

Each row of ours is a fit and a certification in its own run folder; both go on where they were stopped. The table goes
to runs/reproduce/, as Markdown and JSON; every line says what it may claim, and where its numbers come from.
"""
FITTED = "reproduced.json"
"""In a run folder: what was fitted for a table, once that is finished."""


def main(args: Sequence[str] | None = None) -> int:
    """Reproduce; the exit code is 1 if a row of ours is not complete."""
    parser = Parser(prog="ellips reproduce", description=DESCRIPTION)
    tables = sorted(path.stem for path in (shipped() / "paper").glob("*.yaml") if _is_table(path))
    parser.add_argument("table", type=str, help=f"One of {', '.join(tables)}, or a file like those of configs/paper/.")
    parser.add_argument("--run", type=bool, default=True, help="false: only the table, of what is there already.")
    parser.add_argument("--fit", type=str, default="", help='Further arguments of each fit: "--trainer.devices 4".')
    parser.add_argument("--certify", type=str, default="", help='Further arguments of each certification: "--max 2".')
    parser.add_argument("--out", type=Path, default=RUNS / "reproduce", help="Folder for the table.")
    config = parser.parse_args(None if args is None else list(args))
    path = _find(config.table, tables)
    table, codes = read_paper_table(path), [0]
    if config.run:
        for row in table.rows:
            fit(row, shlex.split(config.fit))
            codes.append(certify(certify_arguments(row, path.stem, shlex.split(config.certify))) or 0)
    write(table, path.stem, config.out)
    return max(codes)


def fit(row: RunRow, more: Sequence[str]) -> None:
    """Fit a row's classifier, go on with a fit that was stopped, or leave one that is finished as it is."""
    folder = RunFolder.named(row.name)
    finished = folder.path / FITTED
    if finished.is_file():
        return
    resumed = ["--ckpt_path", "last"] if folder.has_checkpoint() else []
    given = ["fit", *configurations(row.fit), "--name", row.name, *more, *resumed]
    train(given)
    replace_file(finished, json.dumps({"fit": list(row.fit), "arguments": list(more)}) + "\n")


def certify_arguments(row: RunRow, table: str, more: Sequence[str] = ()) -> list[str]:
    """Return the command line of a row's certification."""
    out = ["--name", row.name, "--out", str(results(row, table).path)]
    return [*configurations(row.certify), *out, *row.arguments, *more]


def results(row: RunRow, table: str) -> ResultsFolder:
    """Return where a row's certificates of a table lie: one run may serve several rows and tables."""
    return ResultsFolder(RunFolder.named(row.name).path / "certify" / f"{table}-{row.series}")


def configurations(names: Sequence[str]) -> list[str]:
    """Return the options that name shipped configurations, or files of one's own."""
    files = [shipped() / name if (shipped() / name).is_file() else Path(name) for name in names]
    return [word for file in files for word in ("--config", str(file))]


def write(table: PaperTable, name: str, out: Path) -> None:
    """Write the table of what is there, and print it."""
    rows = [*(measured_row(row, results(row, name)) for row in table.rows), *table.published]
    replace_file(out / f"{name}.md", as_markdown(table, rows))
    content = {"title": table.title, "radii": list(table.radii), "rows": [asdict(row) for row in rows]}
    replace_file(out / f"{name}.json", json.dumps(content, indent=1) + "\n")
    console = Console()
    console.print(as_table(table, rows))
    console.print(f"The table is {out / name}.md.", highlight=False, markup=False)


def _is_table(path: Path) -> bool:
    return "\npublished:" in path.read_text(encoding="utf-8")


def _find(given: str, tables: Sequence[str]) -> Path:
    path = shipped() / "paper" / f"{given}.yaml" if given in tables else Path(given)
    if not path.is_file():
        raise FileNotFoundError(f"Expected one of the tables {', '.join(tables)}, or a file, but got {given!r}.")
    return path
