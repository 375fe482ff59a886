"""``compare``: put several runs, and files of other tools, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ellips.files import RUNS
from ellips.reporting.compare import compare, read_entries
from ellips.reporting.summary import GivenRadii

from .messages import Parser


def main(args: Sequence[str] | None = None) -> int:
    """Put several runs side by side."""
    parser = Parser(prog="ellips compare", description="Several runs, and files of other tools, compared.")
    parser.add_argument(
        "runs", nargs="+", help="Folders of `ellips certify`, or FILE.tsv:SOUNDNESS for a file of another tool."
    )
    parser.add_argument("--series", type=list[str], default=[], help="Series to take from each folder; none: all.")
    kind: Any = list[float] | None
    parser.add_argument("--radii", type=kind, help="Latent radii; none: quantiles of those in all runs.")
    parser.add_argument("--input_radii", type=kind, help="On the image; none: likewise.")
    parser.add_argument("--confidence", type=float, default=0.95, help="Coverage of the intervals.")
    parser.add_argument("--together", type=bool, default=False, help="Insist on one table and one panel.")
    parser.add_argument("--out", type=Path, default=RUNS / "compare", help="Folder for figure and numbers.")
    config = parser.parse_args(None if args is None else list(args))
    entries = [entry for run in config.runs for entry in read_entries(run, config.series)]
    given: GivenRadii = {"latent": config.radii, "input": config.input_radii}
    compare(entries, config.out, given, confidence=config.confidence, together=config.together)
    return 0
