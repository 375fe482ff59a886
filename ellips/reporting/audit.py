"""The audit's section of the report: which claims were attacked, which were broken, by what."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from jinja2 import TemplateError

from ellips.encoders.weights import file_digest
from ellips.files import ResultsFolder, read_json, replace_file
from ellips.files.atomic import read_text
from ellips.reporting.templates import TEMPLATES
from ellips.types import SOUNDNESS_ORDER

FileOf = Callable[[int], Path | None]
"""The file of an image by its position, or None where it has none of its own."""

TABLE_DIGEST: Final = "certificates_sha256"
"""Entry of ``audit.json``: the table that was attacked."""

LISTED: Final = 20
"""At most so many broken claims of a series are listed."""

_BEGIN, _END = "<!-- audit -->", "<!-- end of audit -->"


def short_name(path: Path | None) -> str | None:
    """Return a file's name and that of its folder, which often is its class."""
    return None if path is None else str(Path(*path.parts[-2:]))


def audit_section(folder: ResultsFolder, file_of: FileOf) -> str:
    """Return the section as HTML, between two marks; empty where the results were not audited since they were made.

    Args:
        folder: Of the results.
        file_of: Names broken images.

    Raises:
        ValueError: If the audit's files are damaged.
    """
    per_series, per_image = folder.audit
    found: Mapping[str, Any] = read_json(per_series) if per_series.is_file() and per_image.is_file() else {}
    if TABLE_DIGEST not in found or found[TABLE_DIGEST] != file_digest(folder.table):
        return _BEGIN + _END
    try:
        entries = sorted(found["series"].items(), key=lambda item: SOUNDNESS_ORDER.index(item[1]["soundness"]))
        rows = [_series(name, entry, _broken(per_image, name), file_of) for name, entry in entries]
        return _BEGIN + TEMPLATES.get_template("audit.html.jinja").render(series=rows, listed=LISTED) + _END
    except (AttributeError, KeyError, TypeError, ValueError, TemplateError) as error:
        raise ValueError(f"{per_series}: expected what `ellips audit` writes but got {error!r}.") from error


def put_audit(folder: ResultsFolder, file_of: FileOf) -> bool:
    """Put the audit's section into the report that lies in a folder.

    Returns:
        Whether the report had a place for it; those of earlier versions have none.
    """
    if not folder.report.is_file():
        return False
    page = read_text(folder.report)
    before, begin, rest = page.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if begin and end:
        replace_file(folder.report, before + audit_section(folder, file_of) + after)
    return bool(begin and end)


def _broken(per_image: Path, series: str) -> list[dict[str, str]]:
    rows = csv.DictReader(read_text(per_image).splitlines())
    return [row for row in rows if row["series"] == series and row["violated_by"]]


def _series(
    name: str, entry: Mapping[str, Any], broken: Sequence[Mapping[str, str]], file_of: FileOf
) -> dict[str, Any]:
    images = [
        {
            "index": int(row["index"]),
            "file": short_name(file_of(int(row["index"]))),
            "attack": row["violated_by"],
            "distance": float(row["distance"]),
            "radius": float(row["radius"]),
        }
        for row in broken[:LISTED]
    ]
    return {"name": name, "broken": images, **entry}
