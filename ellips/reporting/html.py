"""The report: one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np
from matplotlib.image import imsave
from torch import Tensor

from ellips.files.records import ImageRecord
from ellips.reporting.curves import AXES, CLAIMS
from ellips.types import Soundness, Space

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; display: block; overflow-x: auto; }
th, td { padding: .3rem .8rem; border-bottom: 1px solid #ddd; text-align: right; font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; white-space: nowrap; }
td small { white-space: nowrap; }
td small { color: #666; display: block; }
.images { display: flex; flex-wrap: wrap; gap: 1rem; margin: .5rem 0 1.5rem; }
.images figure { margin: 0; width: 8.5rem; font-size: .8rem; line-height: 1.3; }
.images img { width: 100%; image-rendering: pixelated; border: 1px solid #ccc; }
.claim { font-size: 1rem; font-weight: normal; color: #555; }
.missing { color: #b00020; font-weight: bold; }
svg { max-width: 100%; height: auto; }
details td { text-align: left; overflow-wrap: anywhere; }
"""


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
    parts = [f"<h1>{escape(title)}</h1>", _state(summary)]
    for heading, entries in _by_claim(summary).items():
        parts += [_heading(entries), _table(entries), _inline(figures.get(heading, ""))]
    parts.append(_images(images))
    settings = {k: v for k, v in summary.items() if k not in ("series", "complete", "expected")}
    parts.append(
        f"<h2>Settings</h2>\n<details open><summary>What the numbers depend on</summary>{_rows(settings)}</details>"
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{STYLE}</style></head>\n<body>\n'
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def _by_claim(summary: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    groups: dict[str, dict[str, Any]] = {}
    for name, entry in summary["series"].items():
        groups.setdefault(f"{entry['space']} space, {entry['soundness']}", {})[name] = entry
    return groups


def _state(summary: Mapping[str, Any]) -> str:
    if summary["complete"]:
        return f"<p>Complete: every one of the {summary['expected']} images is there once.</p>"
    lines = [
        f"{escape(name)}: {entry['present']} of {entry['expected']} images; missing {entry['missing'][:20]}, "
        f"repeated {entry['repeated'][:20]}"
        for name, entry in summary["series"].items()
        if not entry["complete"]
    ]
    return f'<p class="missing">Not complete. {"; ".join(lines) or "Nothing was certified."}</p>'


def _heading(entries: Mapping[str, Any]) -> str:
    first = next(iter(entries.values()))
    space: Space = first["space"]
    soundness: Soundness = first["soundness"]
    sources = {entry["source"] for entry in entries.values() if entry["source"]}
    origin = f" Lipschitz constant: {escape('; '.join(sorted(sources)))}." if sources else ""
    return (
        f"<h2>{space.capitalize()} space, {soundness}</h2>\n"
        f'<p class="claim">{AXES[space]}. {soundness}: {CLAIMS[soundness]}.{origin}</p>'
    )


def _table(entries: Mapping[str, Any]) -> str:
    radii = [point["radius"] for point in next(iter(entries.values()))["certified_accuracy"]]
    head = "".join(
        f"<th>{name}</th>" for name in ("series", "clean", *(f"{r:g}" for r in radii), "mean radius", "ms/image")
    )
    rows = []
    for name, entry in entries.items():
        points = [entry["clean_accuracy"], *entry["certified_accuracy"]]
        cells = "".join(
            f"<td>{100 * p['accuracy']:.1f} %<small>{100 * p['lower']:.1f} to {100 * p['upper']:.1f}</small></td>"
            for p in points
        )
        times = entry["seconds_per_image"]
        rows.append(
            f"<tr><td>{escape(name)}</td>{cells}<td>{entry['average_certified_radius']:.3f}</td>"
            f"<td>{1000 * times['median']:.3g}<small>p95 {1000 * times['p95']:.3g}</small></td></tr>"
        )
    return f"<table><tr>{head}</tr>\n" + "\n".join(rows) + "</table>"


def _inline(svg: str) -> str:
    """Return an SVG file's text without what only a file of its own may start with."""
    return svg[max(svg.find("<svg"), 0) :]


def _images(images: Sequence[ReportImage]) -> str:
    groups: dict[str, list[ReportImage]] = {}
    for image in images:
        groups.setdefault(image.group, []).append(image)
    parts = []
    for name, members in groups.items():
        record = members[0].record
        parts.append(f'<h2>{escape(name)}</h2>\n<p class="claim">{escape(record.series.name)}, {record.soundness}</p>')
        parts.append('<div class="images">' + "".join(_figure(member) for member in members) + "</div>")
    return "\n".join(parts)


def _figure(item: ReportImage) -> str:
    radius = "no limit" if math.isinf(item.record.radius) else f"{item.record.radius:.4g}"
    return (
        f'<figure><img alt="image {item.record.index}" src="{_data_uri(item.image)}"><figcaption>image '
        f"{item.record.index}<br>is {escape(item.label)}, predicted {escape(item.prediction)}<br>radius {radius}"
        "</figcaption></figure>"
    )


def _data_uri(image: Tensor) -> str:
    pixels = image.detach().cpu().float().clamp(0, 1).permute(1, 2, 0).numpy()
    rgb = np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels[:, :, :3]
    buffer = io.BytesIO()
    imsave(buffer, (rgb * 255).round().astype(np.uint8), format="png")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _rows(values: Mapping[str, Any]) -> str:
    rows = []
    for key, value in values.items():
        shown = _rows(value) if isinstance(value, Mapping) else escape(str(value))
        rows.append(f"<tr><td>{escape(str(key))}</td><td>{shown}</td></tr>")
    return f"<table>{''.join(rows)}</table>"
