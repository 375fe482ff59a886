"""``audit``: attack every claim of a certification run."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser
from rich.console import Console

from ellips.audit import (
    AttackSettings,
    AuditedImage,
    audit_series,
    audit_table,
    latent_target,
    verdict,
    write_audit,
)
from ellips.datamodules import SelectionDataModule
from ellips.files import Journal, ResultsFolder, read_table
from ellips.input_certifiers import as_certifier, series_of
from ellips.pipeline import ImageClassifier, check_fingerprint
from ellips.reporting.summary import records_by_series
from ellips.versions import versions

from .audit_tsv import main as audit_tsv
from .certify import certify_parser, instantiate
from .migration import current_config, current_series

_NEEDED = ("data", "certifiers", "input_method")  # of a saved configuration


def audit(folder: ResultsFolder, settings: AttackSettings, max_images: int | None = None) -> dict[str, Any]:
    """Attack the claims of a run, print what was found and write it to audit.json and audit.csv.

    Args:
        folder: Where :func:`ellips.commands.certify.certify` wrote its results.
        settings: How hard to attack.
        max_images: Attack at most so many images, spread evenly over the run; None: all.

    Returns:
        What was written to audit.json.

    Raises:
        FileNotFoundError: If the folder holds no results.
        ValueError: If checkpoint or encoder are not those of the run.
    """
    for path in (folder.config, folder.settings, folder.table):
        if not path.is_file():
            raise FileNotFoundError(f"Expected {path}, which `ellips certify` writes, but there is none.")
    parser = certify_parser()
    saved = current_config(yaml.safe_load(folder.config.read_text(encoding="utf-8")))
    chosen = instantiate(parser, parser.parse_object({key: saved[key] for key in _NEEDED if key in saved}))
    certifiers = [as_certifier(given) for given in chosen["certifiers"]]
    what = json.loads(folder.settings.read_text(encoding="utf-8"))
    classifier = ImageClassifier.from_checkpoint(what["checkpoint"], chosen["data"].encoder)
    fingerprint: dict[str, str] = getattr(classifier.encoder, "fingerprint", dict)()
    check_fingerprint(what.get("encoder", {**fingerprint, "precision": "32"}), fingerprint)  # 0.1 wrote none, used 32
    present = {f"{part}_digest": digest for part, digest in classifier.digests().items()}
    if any(what[name] != digest for name, digest in present.items()):
        raise ValueError(f"Expected the classifier that was certified, but encoder or head changed since: {present}.")
    images = SelectionDataModule(chosen["data"], what["split"], what["skip"], what["max"], what["batch_size"])
    by_series = records_by_series(read_table(folder.table))
    latents = Journal(folder, list(by_series), what).latents()
    names = current_series(series_of(certifiers, chosen["input_method"]), list(by_series))
    targets = {name: c.target(classifier.chain) for name, c in zip(names, certifiers, strict=True)}
    found: dict[str, list[AuditedImage]] = {}
    verdicts: dict[str, Any] = {}
    console = Console()
    for number, (series, rows) in enumerate(by_series.items(), start=1):
        rows = rows[:: max(1, -(-len(rows) // (max_images or len(rows))))]
        if series.space == "latent":
            target, points = latent_target(classifier.head.ellips), torch.stack([latents[row.index] for row in rows])
        else:
            target, points = targets[series], images.dataset[[row.index for row in rows]].image
        with console.status(f"Series {number} of {len(by_series)}, {series}: attacking {len(rows)} images"):
            found[series.name] = audit_series(rows, points, target, settings)
        if found[series.name]:
            verdicts[series.name] = verdict(found[series.name], target.alpha)
    result = {"series": verdicts, "attack": asdict(settings), "versions": versions()}
    write_audit(folder, result, [image for images in found.values() for image in images])
    console.print(audit_table(verdicts))
    return result


def main(args: Sequence[str] | None = None) -> int:
    """Attack a run's claims; the exit code is 1 if one that must hold does not.

    With ``--tsv`` it is about a table of another tool: see :mod:`ellips.commands.audit_tsv`.
    """
    given = list(sys.argv[1:] if args is None else args)
    if any(word.split("=")[0] == "--tsv" for word in given):
        return audit_tsv(given)
    parser = ArgumentParser(
        prog="ellips audit",
        description="Attack inside every claimed radius of a run. With --tsv FILE: of another tool's table.",
    )
    parser.add_argument("folder", type=Path, help="Where `ellips certify` wrote its results.")
    parser.add_argument("--max", type=int | None, default=None, help="Attack at most so many images, spread evenly.")
    parser.add_class_arguments(AttackSettings, "attack", help="How hard to attack.")
    config = parser.parse_args(given)
    settings = parser.instantiate(config).attack
    found = audit(ResultsFolder(config.folder), settings, config.max)
    return int(any(entry["passed"] is False for entry in found["series"].values()))
