"""How an audit is shown and kept."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table

from ellips.audit.claims import AuditedImage
from ellips.files import ResultsFolder, replace_file
from ellips.types import SOUNDNESS_ORDER

_OUTCOMES = {True: "holds", False: "[red]DOES NOT HOLD[/red]", None: "none made"}


def audit_table(verdicts: Mapping[str, Mapping[str, Any]]) -> Group:
    """Lay out what an audit found: a row per series, grouped by soundness class, strongest first.

    Args:
        verdicts: By series, what :func:`ellips.audit.verdict` gives.
    """
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("soundness", no_wrap=True)
    table.add_column("series", overflow="fold")
    for heading in ("tried", "broken", "L refuted", "slope/L"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("promise", no_wrap=True)
    for name, entry in sorted(verdicts.items(), key=lambda item: SOUNDNESS_ORDER.index(item[1]["soundness"])):
        ratio = entry["largest_slope_over_constant"]
        slopes = f"{entry['constants_refuted']}/{entry['constants_attacked']}" if entry["constants_attacked"] else "–"
        table.add_row(
            entry["soundness"],
            name,
            str(entry["attacked"]),
            str(entry["violations"]),
            slopes,
            "–" if ratio is None else f"{ratio:.3f}",
            _OUTCOMES[entry["passed"]],
        )
    note = "broken: another class inside the radius; slope/L: steepest slope found over the claimed constant"
    if short := sum(entry.get("cut_short", 0) for entry in verdicts.values()):
        note += f"\nThe time was up: {short} claims did not get every attack."
    return Group("\n[b]Audit[/b]: attacks inside every claimed radius", table, f"[dim]{note}[/dim]")


def write_audit(folder: ResultsFolder, result: Mapping[str, Any], images: Sequence[AuditedImage]) -> None:
    """Write ``audit.json`` (per series) and ``audit.csv`` (per image)."""
    per_series, per_image = folder.audit
    replace_file(per_series, json.dumps(result, indent=1) + "\n")
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, [item.name for item in fields(AuditedImage)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(image) for image in images)
    replace_file(per_image, buffer.getvalue())
