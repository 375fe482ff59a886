"""Tables of a paper: rows that are run here beside published ones, each with its claim and its source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from ellips.files import ResultsFolder, read_configuration, read_json
from ellips.metrics.functional import check_radii
from ellips.reporting.curves import radius_text
from ellips.types import SOUNDNESS_ORDER, Soundness
from ellips.validation import one_of


@dataclass(frozen=True)
class TableRow:
    """A line of the table.

    Attributes:
        method: Its name.
        soundness: What its radii may claim; None where a row of ours was not run yet.
        source: Where the numbers come from.
        clean: Accuracy in per cent, or None.
        certified: Certified accuracy in per cent by radius.
        minutes: For an image, or None.
        images: Images that it was measured on, where that is known.
    """

    method: str
    soundness: Soundness | None
    source: str
    clean: float | None = None
    certified: Mapping[float, float] = field(default_factory=dict)
    minutes: float | None = None
    images: int | None = None

    def __post_init__(self) -> None:
        if self.soundness is not None:
            one_of(SOUNDNESS_ORDER, soundness=self.soundness)


@dataclass(frozen=True)
class RunRow:
    """A row that is run here.

    Attributes:
        label: Its name in the table.
        name: Run folder.
        fit: Configurations of ``ellips fit``, below the folder of configurations.
        certify: Those of ``ellips certify``.
        series: Which series of the results it is.
        arguments: Further arguments of ``ellips certify``.
    """

    label: str
    name: str
    fit: Sequence[str]
    certify: Sequence[str]
    series: str
    arguments: Sequence[str] = ()


@dataclass(frozen=True)
class PaperTable:
    """A table.

    Attributes:
        title: Heading.
        radii: Radii of its columns, on the image.
        rows: What is run here.
        published: What others published.
    """

    title: str
    radii: tuple[float, ...]
    rows: tuple[RunRow, ...]
    published: tuple[TableRow, ...]


def read_paper_table(path: Path) -> PaperTable:
    """Read a table's description.

    Args:
        path: A YAML file such as those of ``configs/paper/``.

    Raises:
        ValueError: If something in it is missing, unknown or out of range; the message names the file.
    """
    content = read_configuration(path)
    try:
        return PaperTable(
            title=str(content["title"]),
            radii=check_radii(content["radii"]),
            rows=tuple(RunRow(**row) for row in content.get("rows", [])),
            published=tuple(_published(row) for row in content.get("published", [])),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: expected `title`, `radii`, `rows` and `published` as in configs/paper/ but got something else: "
            f"{error}"
        ) from error


def _published(row: Mapping[str, Any]) -> TableRow:
    certified = {float(radius): float(value) for radius, value in row.get("certified", {}).items()}
    if row["soundness"] is None:
        raise ValueError(f"the row {row['method']} does not say what it may claim.")
    return TableRow(**{**row, "certified": certified})


def measured_row(row: RunRow, results: ResultsFolder) -> TableRow:
    """Return the line of a row that is run here, or one without numbers where nothing is there yet.

    Args:
        row: The row.
        results: What its certification wrote.

    Raises:
        ValueError: If the results lack the row's series.
    """
    if not results.summary.is_file():
        return TableRow(row.label, None, "not run here yet")
    summary = read_json(results.summary)
    found = summary["series"].get(row.series)
    if found is None:
        there = sorted(summary["series"])
        raise ValueError(f"Expected the series {row.series} in {results.summary} but it has {there}.")
    complete = "" if found["complete"] else f", {found['missing_count']} missing"
    return TableRow(
        method=row.label,
        soundness=found["soundness"],
        source=f"measured here{complete}",
        clean=100 * found["clean_accuracy"]["accuracy"],
        certified={point["radius"]: 100 * point["accuracy"] for point in found["certified_accuracy"]},
        minutes=found["seconds_per_image"]["median"] / 60,
        images=found["present"],
    )


def table_cells(table: PaperTable, rows: Sequence[TableRow]) -> list[list[str]]:
    """Return the heading and the lines as text: soundness has a column, and what is not known stays empty."""
    head = ["method", "claim", "clean", *(radius_text(r, 6) for r in table.radii), "min / image", "images", "source"]
    return [head] + [
        [
            row.method,
            row.soundness or "",
            _number(row.clean),
            *(_number(row.certified.get(radius)) for radius in table.radii),
            "" if row.minutes is None else f"{row.minutes:.3g}",
            "" if row.images is None else f"{row.images}",
            row.source,
        ]
        for row in rows
    ]


def as_markdown(table: PaperTable, rows: Sequence[TableRow]) -> str:
    """Return the table for a page."""
    head, *lines = table_cells(table, rows)
    text = "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *lines])
    return f"# {table.title}\n\nCertified accuracy in % by ℓ2 radius on [0, 1] pixels.\n\n{text}\n"


def as_table(table: PaperTable, rows: Sequence[TableRow]) -> Table:
    """Return the table for the terminal."""
    head, *lines = table_cells(table, rows)
    shown = Table(title=table.title, box=SIMPLE_HEAD, pad_edge=False)
    for name in head:
        shown.add_column(name, justify="left" if name in ("method", "claim", "source") else "right", overflow="fold")
    for line in lines:
        shown.add_row(*map(escape, line))
    return shown


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
