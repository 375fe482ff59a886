"""The report: one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup
from matplotlib.image import imsave
from torch import Tensor

from ellips.files.records import ImageRecord, records_to_tensors
from ellips.files.tsv import round_down_text
from ellips.metrics.functional import average_certified_radius, certified_accuracy
from ellips.reporting.curves import AXES, CLAIMS
from ellips.reporting.templates import TEMPLATES
from ellips.types import Soundness, Space


class ReportImage(NamedTuple):
    """An image to show.

    Attributes:
        group: Heading under which it stands.
        record: Its certificate.
        image: Shape ``(C, H, W)``, values in [0, 1].
        label: Name of its class.
        prediction: Name of the predicted class.
        file: Name of its file; None: it has none of its own.
    """

    group: str
    record: ImageRecord
    image: Tensor
    label: str
    prediction: str
    file: str | None = None


class Figures(NamedTuple):
    """SVG texts.

    Attributes:
        curves: Of each space and soundness class, by its heading.
        radii: Radii by class, likewise.
        latents: Latents with the ellipses of their Gaussians; empty: none.
        spectra: Spectra of the covariances; empty: none.
    """

    curves: Mapping[str, str]
    radii: Mapping[str, str] = {}
    latents: str = ""
    spectra: str = ""


class ClassRow(NamedTuple):
    """One class in one series.

    Attributes:
        name: Of the class.
        images: How many there are.
        accuracies: Clean, and certified at each radius of the table.
        mean_radius: Wrong predictions counting as 0.
    """

    name: str
    images: int
    accuracies: list[float]
    mean_radius: float


class ClassTable(NamedTuple):
    """A series class by class.

    Attributes:
        series: Its name.
        radii: Of the columns.
        rows: The classes that have images.
    """

    series: str
    radii: list[float]
    rows: list[ClassRow]


def choose_images(records: Sequence[ImageRecord], count: int = 8) -> dict[str, list[ImageRecord]]:
    """Choose the images worth a look: wrong with the largest radius, right with the smallest, right with the largest.

    A wrong prediction with a large radius is the worst there is: it is provably stable, and wrong.
    """
    right = sorted((r for r in records if r.correct), key=lambda r: (r.radius, r.index))
    wrong = sorted((r for r in records if not r.correct), key=lambda r: (-r.radius, r.index))
    return {
        "Worst: wrong, with the largest radius": wrong[:count],
        "Weakest: right, with the smallest radius": right[:count],
        "Best: right, with the largest radius": right[::-1][:count],
    }


def class_table(records: Sequence[ImageRecord], radii: Sequence[float], names: Sequence[str] = ()) -> ClassTable:
    """Count each class by itself.

    Args:
        records: Of one series.
        radii: Of the run's tables; the first, the middle and the last are shown, which fit on a telephone.
        names: Of the classes; none: their numbers.
    """
    radius, prediction, label = records_to_tensors(records)
    positive = [value for value in radii if value > 0]
    chosen = sorted({positive[0], positive[len(positive) // 2], positive[-1]}) if positive else []
    rows = []
    for k in label.unique().tolist():
        own = (radius[label == k], prediction[label == k], label[label == k])
        accuracies = certified_accuracy(*own, [0.0, *chosen]).tolist()
        name = names[k] if k < len(names) else str(k)
        rows.append(ClassRow(name, len(own[0]), accuracies, average_certified_radius(*own).item()))
    return ClassTable(records[0].series.name, chosen, rows)


def render_report(
    title: str,
    summary: Mapping[str, Any],
    figures: Figures,
    images: Sequence[ReportImage],
    classes: Mapping[str, ClassTable] | None = None,
    audit: str = "",
) -> str:
    """Return the page.

    Args:
        title: Heading.
        summary: What :meth:`ellips.reporting.run.RunReport.summary` gives.
        figures: What to draw.
        images: Images to show.
        classes: A table by class for each space and soundness class, by its heading.
        audit: What :func:`ellips.reporting.audit.audit_section` gives: HTML.
    """
    series = summary["series"]
    tables = classes or {}
    return TEMPLATES.get_template("report.html.jinja").render(
        title=title,
        complete=summary["complete"],
        expected=summary["expected"],
        incomplete={name: entry for name, entry in series.items() if not entry["complete"]},
        claims=[_claim(heading, entries, figures, tables) for heading, entries in _by_claim(series).items()],
        audit=Markup(audit),  # rendered by its own template, which escapes
        latents=_inline(figures.latents),
        spectra=_inline(figures.spectra),
        images=_grouped(images),
        settings={k: v for k, v in summary.items() if k not in ("series", "complete", "expected")},
    )


def _by_claim(series: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    groups: dict[str, dict[str, Any]] = {}
    for name, entry in series.items():
        groups.setdefault(f"{entry['space']} space, {entry['soundness']}", {})[name] = entry
    return groups


def _claim(
    heading: str, series: Mapping[str, Any], figures: Figures, tables: Mapping[str, ClassTable]
) -> dict[str, Any]:
    """Return what the template shows of the series that make one kind of claim."""
    first = next(iter(series.values()))
    space: Space = first["space"]
    soundness: Soundness = first["soundness"]
    table = tables.get(heading, ClassTable("", [], []))
    return {
        "space": space,
        "soundness": soundness,
        "axis": AXES[space],
        "meaning": CLAIMS[soundness],
        "sources": sorted({entry["source"] for entry in series.values() if entry["source"]}),
        "radii": [point["radius"] for point in first["certified_accuracy"]],
        "series": series,
        "figure": _inline(figures.curves.get(heading, "")),
        "by_class_of": table.series,
        "class_radii": table.radii,
        "classes": table.rows,
        "class_figure": _inline(figures.radii.get(heading, "")),
    }


def _inline(svg: str) -> Markup:
    """Return a drawing without what only a file of its own may start with; matplotlib escapes the texts in it."""
    return Markup(svg[max(svg.find("<svg"), 0) :])


def _grouped(images: Sequence[ReportImage]) -> list[dict[str, Any]]:
    """Return what the template shows of the images, by their heading."""
    groups: dict[str, list[ReportImage]] = {}
    for image in images:
        groups.setdefault(image.group, []).append(image)
    return [
        {
            "name": name,
            "series": members[0].record.series.name,
            "soundness": members[0].record.soundness,
            "images": [_shown(member) for member in members],
        }
        for name, members in groups.items()
    ]


def _shown(item: ReportImage) -> dict[str, Any]:
    radius = item.record.radius
    return {
        "index": item.record.index,
        "data_uri": _data_uri(item.image),
        "label": item.label,
        "prediction": item.prediction,
        "file": item.file,
        "radius": "no limit" if math.isinf(radius) else round_down_text(radius, 4),
    }


def _data_uri(image: Tensor) -> str:
    pixels = image.detach().cpu().float().clamp(0, 1).permute(1, 2, 0).numpy()
    rgb = np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels[:, :, :3]
    buffer = io.BytesIO()
    imsave(buffer, (rgb * 255).round().astype(np.uint8), format="png")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
