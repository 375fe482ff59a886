"""Several runs side by side, with files of other tools, each kind of claim by itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console

from ellips.files import ImageRecord, ResultsFolder, read_results, read_tsv, replace_file
from ellips.files.records import UNNAMED
from ellips.reporting.curves import LabelledCurve, group_by_claim
from ellips.reporting.figures import plot_panels, save_figure
from ellips.reporting.summary import GivenRadii, curve_of, label_of, records_by_series, tabulated_radii
from ellips.reporting.tables import accuracy_table
from ellips.types import SOUNDNESS_ORDER, SPACES, Series, Soundness, Space


@dataclass(frozen=True)
class Entry:
    """One line of the comparison.

    Attributes:
        label: Its name.
        records: The images.
    """

    label: str
    records: Sequence[ImageRecord]

    @property
    def space(self) -> Space:
        """Where the radii are measured."""
        return self.records[0].space

    @property
    def soundness(self) -> Soundness:
        """What they may claim."""
        return self.records[0].soundness


def read_entries(argument: str, series: Sequence[str] = ()) -> list[Entry]:
    """Read what one argument of the command line names.

    Args:
        argument: A folder that certify.py wrote, or ``FILE.tsv:SOUNDNESS`` for a file of another tool, which does not
            say itself what it may claim; ``FILE.tsv:SOUNDNESS:latent`` if its radii are not measured on the image.
        series: Of a folder, the series to take; none: all.

    Raises:
        FileNotFoundError: If there is no such file or folder.
        ValueError: If a file comes without its soundness, or a folder lacks a series.
    """
    path, _, claim = argument.partition(".tsv")
    if claim or argument.endswith(".tsv"):
        return [_read_other(Path(f"{path}.tsv"), claim.removeprefix(":"))]
    folder = Path(argument)
    found = records_by_series(read_results(ResultsFolder(folder)))
    names = [each.name for each in found]
    missing = sorted(set(series) - set(names))
    if missing:
        raise ValueError(f"Expected the series {missing} in {folder} but it has {names}.")
    return [
        Entry(f"{folder} {label_of(each, rows)}", rows)
        for each, rows in found.items()
        if not series or each.name in series
    ]


def _read_other(path: Path, claim: str) -> Entry:
    soundness, _, space = claim.partition(":")
    if soundness not in SOUNDNESS_ORDER or space not in ("", *SPACES):
        raise ValueError(
            f"Expected what {path} may claim, as {path}:SOUNDNESS with one of {SOUNDNESS_ORDER}, but got {claim!r}; "
            "the file itself does not say."
        )
    series = Series("latent", "") if space == "latent" else UNNAMED
    kind: dict[str, Any] = {"soundness": soundness, "series": series}
    return Entry(str(path), [replace(record, **kind) for record in read_tsv(path)])


def shorten(entries: Sequence[Entry]) -> list[Entry]:
    """Leave out of the labels the folders that all of them share."""
    parts = [Path(entry.label.partition(" ")[0]).parts for entry in entries]
    shared = 0
    while all(len(p) > shared + 1 for p in parts) and len({p[shared] for p in parts}) == 1:
        shared += 1
    return [
        replace(entry, label=" ".join([str(Path(*p[shared:])), *entry.label.split(" ")[1:]]))
        for entry, p in zip(entries, parts, strict=True)
    ]


def compare(
    entries: Sequence[Entry],
    out: Path,
    radii: GivenRadii,
    *,
    confidence: float = 0.95,
    together: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Lay several series side by side: a table and a panel for each space and soundness class.

    Args:
        entries: What to compare.
        out: Folder for ``compare.png``, ``compare.svg`` and ``compare.json``.
        radii: See :data:`ellips.reporting.summary.GivenRadii`; those of the data are of all entries together.
        confidence: Coverage of the intervals.
        together: Insist on one table and one panel.
        console: Where to print.

    Returns:
        What was written to ``compare.json``.

    Raises:
        ValueError: If there are no entries, or `together` and they differ in space or soundness.
    """
    if not entries:
        raise ValueError("Expected at least one run or file to compare but got none.")
    console = console or Console()
    grids = tabulated_radii([record for entry in entries for record in entry.records], radii)
    fine, coarse = [], []
    for entry in shorten(entries):
        grid = sorted({0.0, *grids[entry.space]})
        fine.append(curve_of(entry.records, entry.label, max_radius=grid[-1], confidence=confidence))
        coarse.append(curve_of(entry.records, entry.label, radii=grid, confidence=confidence))
    groups = [fine] if together else list(group_by_claim(fine).values())
    figure = plot_panels(groups, confidence)
    tables = [coarse] if together else list(group_by_claim(coarse).values())
    counts = {curve.label: str(len(entry.records)) for curve, entry in zip(coarse, entries, strict=True)}
    times = {curve.label: _seconds(entry.records) for curve, entry in zip(coarse, entries, strict=True)}
    for rows in tables:
        extra = [
            ("images", [counts[row.label] for row in rows]),
            ("s / image", [f"{times[row.label]:.2g}" for row in rows]),
        ]
        console.print(accuracy_table(rows, "Comparison", confidence, extra))
    _warn_of_other_images(entries, console)
    save_figure(figure, out / "compare.png", out / "compare.svg")
    result = {"confidence": confidence, "entries": [_describe(c, counts[c.label], times[c.label]) for c in coarse]}
    replace_file(out / "compare.json", json.dumps(result, indent=1) + "\n")
    console.print(f"The figure is {out / 'compare.png'}.", highlight=False, markup=False)
    return result


def _warn_of_other_images(entries: Sequence[Entry], console: Console) -> None:
    images = {frozenset((r.index, r.label) for r in entry.records) for entry in entries}
    if len(images) > 1:
        console.print("[yellow]These are not all the same images; differences may come from that.[/yellow]")


def _seconds(records: Sequence[ImageRecord]) -> float:
    """Return the median time of an image."""
    return median(record.seconds for record in records)


def _describe(curve: LabelledCurve, images: str, seconds: float) -> dict[str, Any]:
    columns = {name: values.tolist() for name, values in curve.curve._asdict().items()}
    about = {"label": curve.label, "space": curve.space, "soundness": curve.soundness, "images": int(images)}
    return {**about, "seconds_per_image": seconds, **columns}
