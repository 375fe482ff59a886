"""``audit --tsv FILE``: look into a table of another tool, and attack the classifier that it is about."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from time import monotonic
from typing import Any

import lightning as L
import torch
from jsonargparse import ActionConfigFile
from rich.console import Console
from torch import nn

from ellips.audit import (
    AttackSettings,
    Course,
    attack_batches,
    audit_passes,
    audit_series,
    audit_table,
    verdict,
)
from ellips.audit.foreign import (
    Finding,
    Voting,
    as_records,
    normalisation_finding,
    read_rows,
    rounding_finding,
    table_findings,
)
from ellips.audit.votes import voted_target
from ellips.datamodules import SelectionDataModule
from ellips.files import replace_file
from ellips.input_certifiers import AuditTarget
from ellips.input_certifiers.base import predict
from ellips.lipschitz.base import in_float64
from ellips.progress import ImageProgress
from ellips.types import Soundness
from ellips.validation import at_least, positive
from ellips.versions import versions

from .limits import limit_configurations
from .messages import Parser

_COLOURS = {"fine": "green", "doubt": "yellow", "wrong": "red"}
_COMPARED = 200  # images whose predictions tell where the normalisation lies


def audit_tsv(
    tsv: Path,
    model: nn.Module,
    data: L.LightningDataModule,
    soundness: Soundness,
    split: str = "test",
    skip: int = 1,
    max: int | None = None,
    voting: Voting = Voting(),  # noqa: B008 - frozen
    attack: AttackSettings = AttackSettings(),  # noqa: B008 - frozen
    attacked: int | None = None,
    budget: float | None = None,
    out: Path | None = None,
) -> dict[str, Any]:
    """Audit a table in the format of Cohen et al. 2019, whatever classifier it is about.

    Args:
        tsv: The table: idx, label, predict, radius, correct, time.
        model: The classifier, mapping images with values in [0, 1] to scores; normalisation lies inside.
        data: Where the images are.
        soundness: What the radii claim.
        split: train, val or test.
        skip: The table has every skip-th image.
        max: It has at most so many, counted after skipping.
        voting: If the radii are those of a smoothed classifier: its noise, votes and alpha.
        attack: How hard to attack.
        attacked: Attack at most so many images, spread evenly; None: all.
        budget: Seconds, after which expensive attacks are left out; None: every attack.
        out: File for what was found, JSON; None: beside the table, <name>.audit.json.

    Returns:
        What was written.

    Raises:
        ValueError: If the file is of another format, or radii are probabilistic and no noise is given.
    """
    if soundness == "probabilistic" and voting.sigma is None:
        raise ValueError(
            "Expected `--voting.sigma`, the noise of the smoothed classifier, with probabilistic radii but got none."
        )
    at_least(1, attacked=attacked)
    positive(budget=budget)
    end = math.inf if budget is None else monotonic() + budget
    images = SelectionDataModule(data, split, skip, max, 32)
    labels = {index: int(images.dataset[[index]].label[0]) for index in images.indices}
    rows, findings = read_rows(tsv)
    findings += table_findings(rows, images.indices, labels)
    findings.append(rounding_finding(rows, voting))
    model = model.eval().requires_grad_(False)
    precise = in_float64(model)
    plain = AuditTarget(scores=model, predict=lambda points: predict(precise, points))
    target = plain if voting.sigma is None else voted_target(model, voting)
    known = list({row.index: row for row in rows if row.index in labels}.values())
    compared = known[:: -(-len(known) // _COMPARED) or 1]
    if compared:
        pictures = images.dataset[[row.index for row in compared]].image
        findings.append(normalisation_finding(compared, pictures, target.predict))
    chosen = known[:: -(-len(known) // (attacked or len(known) or 1)) or 1]
    verdicts: dict[str, Any] = {}
    if chosen:
        points, records = images.dataset[[row.index for row in chosen]].image, as_records(chosen, soundness)
        passes = sum(audit_passes(batch, target) for batch in attack_batches(records, attack))
        with ImageProgress("Attacking", passes, unit="passes") as progress:
            found = audit_series(records, points, target, attack, Course(progress.advance, end))
        if found:
            verdicts[tsv.name] = verdict(found, target.alpha)
    console = Console()
    result = {
        "findings": [asdict(finding) for finding in findings],
        "attacks": verdicts,
        "attack": asdict(attack),
        "voting": asdict(voting),
        "versions": versions(),
    }
    replace_file(out or tsv.with_suffix(".audit.json"), json.dumps(result, indent=1) + "\n")
    _show(console, findings)
    if verdicts:
        console.print(audit_table(verdicts))
    return result


def _show(console: Console, findings: Sequence[Finding]) -> None:
    for finding in findings:
        colour = _COLOURS[finding.verdict]
        console.print(f"[{colour}]{finding.verdict:>5}[/{colour}]  {finding.question} ", end="")
        console.print(finding.detail, markup=False, highlight=False)


def main(args: Sequence[str] | None = None) -> int:
    """Audit; the exit code is 1 if something is wrong with the table or a claim that must hold does not."""
    limit_configurations()
    parser = Parser(prog="ellips audit", description="Audit a table of another tool.")
    parser.add_argument("--config", action=ActionConfigFile, help="A YAML file, e.g. with the data section.")
    parser.add_function_arguments(audit_tsv)
    config = parser.parse_args(None if args is None else list(args))
    arguments = parser.instantiate(config).as_dict()
    arguments.pop("config", None)
    torch.manual_seed(0)
    found = audit_tsv(**arguments)
    wrong = any(finding["verdict"] == "wrong" for finding in found["findings"])
    return int(wrong or any(entry["passed"] is False for entry in found["attacks"].values()))
