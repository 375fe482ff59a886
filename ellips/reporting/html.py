"""The report: one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.image import imsave
from torch import Tensor

from ellips.files.records import ImageRecord
from ellips.reporting.curves import AXES, CLAIMS
from ellips.types import Soundness, Space

TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


class ReportImage(NamedTuple):
    """An image to show.

    Attributes:
        group: Heading under which it stands.
        record: Its certificate.
        image: Shape ``(C, H, W)``, values in [0, 1].
        label: Name of its class.
        prediction: Name of the predicted class.
    """

    group: str
    record: ImageRecord
    image: Tensor
    label: str
    prediction: str


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


def render_report(
    title: str, summary: Mapping[str, Any], figures: Mapping[str, str], images: Sequence[ReportImage]
) -> str:
    """Return the page.

    Args:
        title: Heading.
        summary: What :meth:`ellips.reporting.run.RunReport.summary` gives.
        figures: SVG text of each figure by its heading, one figure per space and soundness class.
        images: Images to show.
    """
    series = summary["series"]
    return TEMPLATES.get_template("report.html.jinja").render(
        title=title,
        complete=summary["complete"],
        expected=summary["expected"],
        incomplete={name: entry for name, entry in series.items() if not entry["complete"]},
        claims=[_claim(entries, figures.get(heading, "")) for heading, entries in _by_claim(series).items()],
        images=_grouped(images),
        settings={k: v for k, v in summary.items() if k not in ("series", "complete", "expected")},
    )


def _by_claim(series: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    groups: dict[str, dict[str, Any]] = {}
    for name, entry in series.items():
        groups.setdefault(f"{entry['space']} space, {entry['soundness']}", {})[name] = entry
    return groups


def _claim(series: Mapping[str, Any], svg: str) -> dict[str, Any]:
    """Return what the template shows of the series that make one kind of claim."""
    first = next(iter(series.values()))
    space: Space = first["space"]
    soundness: Soundness = first["soundness"]
    return {
        "space": space,
        "soundness": soundness,
        "axis": AXES[space],
        "meaning": CLAIMS[soundness],
        "sources": sorted({entry["source"] for entry in series.values() if entry["source"]}),
        "radii": [point["radius"] for point in first["certified_accuracy"]],
        "series": series,
        # Drawn by matplotlib, which escapes the texts in it; without what only a file of its own may start with.
        "figure": Markup(svg[max(svg.find("<svg"), 0) :]),
    }


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
        "radius": "no limit" if math.isinf(radius) else f"{radius:.4g}",
    }


def _data_uri(image: Tensor) -> str:
    pixels = image.detach().cpu().float().clamp(0, 1).permute(1, 2, 0).numpy()
    rgb = np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels[:, :, :3]
    buffer = io.BytesIO()
    imsave(buffer, (rgb * 255).round().astype(np.uint8), format="png")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
