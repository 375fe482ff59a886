"""``audit``: attack every claim of a certification run."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import lightning as L
import torch
from rich.console import Console
from torch import Tensor

from ellips.audit import (
    AttackBatch,
    AttackSettings,
    AuditedImage,
    Course,
    attack_batches,
    audit_batch,
    audit_passes,
    audit_table,
    latent_target,
    verdict,
    write_audit,
)
from ellips.audit.origin import COMPARED, refuse_other_latents, refuse_other_rows, refuse_stronger_claims
from ellips.datamodules import SelectionDataModule
from ellips.datamodules.manifest import TIMES
from ellips.encoders.weights import file_digest
from ellips.files import ImageRecord, Journal, LineJournal, ResultsFolder, read_configuration, read_json, read_results
from ellips.files.lines import CHECKSUMS, as_stored
from ellips.input_certifiers import AuditTarget, InputCertifier, as_certifier, series_of
from ellips.pipeline import ImageClassifier, check_fingerprint
from ellips.progress import ImageProgress
from ellips.reporting.audit import TABLE_DIGEST, put_audit
from ellips.reporting.summary import records_by_series
from ellips.settings import describe
from ellips.types import ImageBatch, Series
from ellips.validation import at_least, positive
from ellips.versions import versions

from .audit_tsv import main as audit_tsv
from .certify import certify_parser, files_identity, images_identity, instantiate
from .messages import Parser
from .migration import current_config, current_series
from .processes import add_processes, launch
from .trust import build_run, leave_out_of_path

_NEEDED = ("data", "certifiers", "input_method")  # of a saved configuration
_RECORDED = ("checkpoint", "images", "split", "skip", "max", "batch_size", "encoder_digest", "head_digest")


class Claims(NamedTuple):
    """Everything that an audit of a run needs.

    Attributes:
        records: By series, the claims to attack.
        targets: By series, the function that the claims are about.
        latents: By position, what series in latent space are about.
        images: The images.
        settings: What the results depend on, beside the attack.
    """

    records: dict[Series, list[ImageRecord]]
    targets: dict[Series, AuditTarget]
    latents: dict[int, Tensor]
    images: SelectionDataModule
    settings: dict[str, Any]

    def points(self, series: Series, batch: AttackBatch) -> Tensor:
        """Return what a batch of claims is about: latents, or images."""
        rows = [record.index for record in batch.records]
        if series.space == "latent":
            return torch.stack([self.latents[row] for row in rows])
        read: ImageBatch = self.images.dataset[rows]
        return read.image


class Vouched(NamedTuple):
    """What says which data, encoder and certifiers a folder's claims are about.

    Attributes:
        configs: Configurations that the user gives; none: the folder's own.
        trust: Import what the folder's own configuration names, whatever it is.
    """

    configs: Sequence[Path] = ()
    trust: bool = False

    def build(self, folder: ResultsFolder) -> dict[str, Any]:
        """Build data and certifiers.

        Raises:
            ValueError: If the folder's own configuration names what is not this project's and it is not trusted.
        """
        if self.configs:
            parser = certify_parser()
            given = parser.parse_args([f"--config={path}" for path in self.configs])
            return instantiate(parser, given)
        saved = current_config(read_configuration(folder.config))
        recorded = {key: saved[key] for key in _NEEDED if key in saved}
        if self.trust:
            parser = certify_parser()
            return instantiate(parser, parser.parse_object(recorded))
        return build_run(recorded, folder.config)


_BY_FOLDER = Vouched()


def read_claims(
    folder: ResultsFolder, max_images: int | None, device: torch.device, vouched: Vouched = _BY_FOLDER
) -> Claims:
    """Read what a run claims, and of which function.

    Args:
        folder: Where :func:`ellips.commands.certify.certify` wrote its results.
        max_images: Take at most so many images of each series, spread evenly over the run; None: all.
        device: Where the classifier shall be.
        vouched: Where data, encoder and certifiers come from.

    Raises:
        FileNotFoundError: If the folder holds no results.
        ValueError: If checkpoint, encoder, images or certifiers are not those of the run, or its configuration names
            what is not this project's.
    """
    for path in (folder.config, folder.settings, folder.table):
        if not path.is_file():
            raise FileNotFoundError(f"Expected {path}, which `ellips certify` writes, but there is none.")
    what = _settings(folder)
    chosen = vouched.build(folder)
    certifiers = [as_certifier(given) for given in chosen["certifiers"]]
    _check_certifiers(what, certifiers)
    classifier = ImageClassifier.from_checkpoint(what["checkpoint"], chosen["data"].encoder)
    fingerprint: dict[str, str] = getattr(classifier.encoder, "fingerprint", dict)()
    check_fingerprint(what.get("encoder", {**fingerprint, "precision": "32"}), fingerprint)  # 0.1 wrote none, used 32
    present: dict[str, Any] = {f"{part}_digest": digest for part, digest in classifier.digests().items()}
    built = classifier.head.config  # of which the digest does not tell all
    present |= {"head": {name: built.get(name) for name in what["head"]}} if "head" in what else {}
    if any(what[name] != found for name, found in present.items()):
        raise ValueError(f"Expected the classifier that was certified, but encoder or head changed since: {present}.")
    images = SelectionDataModule(chosen["data"], what["split"], what["skip"], what["max"], what["batch_size"])
    _check_images(what, chosen["data"], images)
    classifier.to(device)
    by_series = records_by_series(read_results(folder))
    labels = getattr(images.dataset, "labels", None)
    refuse_other_rows([row for rows in by_series.values() for row in rows], images.indices, labels)
    latents = Journal(folder, list(by_series), what).latents()
    names = current_series(series_of(certifiers, chosen["input_method"]), list(by_series))
    by_name = dict(zip(names, certifiers, strict=True))
    refuse_stronger_claims(by_name, {series: rows[0].soundness for series, rows in by_series.items()})
    targets = {series: latent_target(classifier.head.ellips) for series in by_series if series.space == "latent"}
    targets |= {name: certifier.target(classifier.chain) for name, certifier in by_name.items()}
    some = {series: rows[:: max(1, -(-len(rows) // (max_images or len(rows))))] for series, rows in by_series.items()}
    about = {row.index for series, rows in some.items() if series.space == "latent" for row in rows}
    _check_latents(classifier, images, sorted(about), latents)
    return Claims(some, targets, latents, images, {"run": what, "table": file_digest(folder.table), "max": max_images})


def _settings(folder: ResultsFolder) -> dict[str, Any]:
    """Read what a run's rows depend on; only version 0.1, which said ``sources``, left some of it out."""
    what = read_json(folder.settings)
    what.pop(CHECKSUMS, None)
    needed = _RECORDED if "sources" in what else (*_RECORDED, "encoder", "certifiers")
    if missing := [name for name in needed if name not in what]:
        raise ValueError(
            f"{folder.settings}: expected the entries {missing} but they are missing; certify again (--overwrite true)."
        )
    return what


def _check_certifiers(what: dict[str, Any], certifiers: Sequence[InputCertifier]) -> None:
    """Refuse certifiers that are not the run's; version 0.1 recorded what it called sources, in another form."""
    present = as_stored({"certifiers": describe(list(certifiers))})["certifiers"]
    if "certifiers" in what and what["certifiers"] != present:
        raise ValueError(f"Expected the certifiers of the run, {what['certifiers']}, but got {present}.")
    recorded, files = what.get("certifier_files"), files_identity(certifiers).get("certifier_files")
    if recorded is not None and recorded != files:
        raise ValueError(f"Expected the certifiers' files of the run, {recorded}, but got {files}.")


def _check_images(what: dict[str, Any], data: Any, images: SelectionDataModule) -> None:  # noqa: ANN401 - any datamodule
    """Refuse images that are not those that were certified."""
    present = images_identity(data, images.indices, what["split"])
    if differing := {name for name in what["images"] if what["images"][name] != present.get(name)} - {TIMES}:
        raise ValueError(
            f"Expected the images that were certified but they differ in {sorted(differing)}: {what['images']} then, "
            f"{present} now. Put them back, or certify again."
        )


def _check_latents(
    classifier: ImageClassifier, images: SelectionDataModule, rows: Sequence[int], latents: dict[int, Tensor]
) -> None:
    """Encode some images anew, spread evenly over those to attack."""
    if rows:
        read: ImageBatch = images.dataset[rows[:: -(-len(rows) // COMPARED)]]
        index, device = read.index.tolist(), classifier.head.ellips.means.device
        refuse_other_latents(classifier.chain, read.image.to(device), torch.stack([latents[i] for i in index]), index)


def attack(
    claims: Claims, settings: AttackSettings, journal: LineJournal, fabric: L.Fabric, budget: float | None = None
) -> None:
    """Attack the claims batch by batch, each in one process, and write down what is found; every process calls it.

    A budget is shared by the batches that are left: one that needs less leaves more to those after it.
    """
    batches = {
        f"{series.name}/{number}": (series, batch)
        for series, rows in claims.records.items()
        for number, batch in enumerate(attack_batches(rows, settings))
    }
    done = journal.results()
    fabric.barrier()  # every process has read it before any writes
    left = [name for name in batches if name not in done]
    passes = sum(audit_passes(batches[name][1], claims.targets[batches[name][0]]) for name in left)
    world, rank = fabric.world_size, fabric.global_rank
    mine, end = left[rank::world], math.inf if budget is None else monotonic() + budget
    with (
        journal.open(rank),
        ImageProgress("Attacking", passes, processes=world, show=rank == 0, unit="passes") as progress,
    ):
        for place, name in enumerate(mine):
            series, batch = batches[name]
            points, now = claims.points(series, batch).to(fabric.device), monotonic()
            course = Course(progress.advance, now + (end - now) / (len(mine) - place))
            found = audit_batch(batch, points, claims.targets[series], course)
            journal.append(name, [asdict(image) for image in found])
    fabric.barrier()


def audit(
    folder: ResultsFolder,
    settings: AttackSettings,
    max_images: int | None = None,
    *,
    overwrite: bool = False,
    budget: float | None = None,
    fabric: L.Fabric | None = None,
    vouched: Vouched = _BY_FOLDER,
) -> dict[str, Any]:
    """Attack the claims of a run, print what was found and write it to audit.json and audit.csv.

    A killed audit goes on where it was when it is started again with the same settings; a finished one starts anew.

    Args:
        folder: Where :func:`ellips.commands.certify.certify` wrote its results.
        settings: How hard to attack.
        max_images: Attack at most so many images, spread evenly over the run; None: all.
        overwrite: Start anew, whatever an unfinished audit has found.
        budget: Seconds after which only the first, cheapest attack is still made; what that leaves out is counted as
            ``cut_short``. None: every attack on every claim that is not broken before.
        fabric: The processes that share the work, launched; None: this one, on the CPU.
        vouched: Where data, encoder and certifiers come from; by default the folder, if it names this project's alone.

    Returns:
        What was written to audit.json, in every process.

    Raises:
        FileNotFoundError: If the folder holds no results.
        ValueError: If checkpoint or encoder are not those of the run, or an unfinished audit had other settings.
    """
    at_least(1, max=max_images)
    positive(budget=budget)
    fabric = fabric or L.Fabric(accelerator="cpu", devices=1)
    if overwrite and fabric.is_global_zero:
        LineJournal.delete_from(folder.audit_journal)
    fabric.barrier()
    claims = read_claims(folder, max_images, fabric.device, vouched)
    depends = {**claims.settings, "attack": asdict(settings), "device": fabric.device.type}
    depends |= {} if budget is None else {"budget": budget}
    journal = LineJournal(folder.audit_journal, depends)
    attack(claims, settings, journal, fabric, budget)
    results = journal.results()
    found = {
        series: [
            AuditedImage(**image)
            for number, _ in enumerate(attack_batches(rows, settings))
            for image in results[f"{series.name}/{number}"]
        ]
        for series, rows in claims.records.items()
    }
    verdicts = {s.name: verdict(images, claims.targets[s].alpha) for s, images in found.items() if images}
    result = {
        "series": verdicts,
        "attack": asdict(settings),
        TABLE_DIGEST: claims.settings["table"],
        "versions": versions(),
    }
    fabric.barrier()  # every process has read the journal
    if fabric.is_global_zero:
        write_audit(folder, result, [image for images in found.values() for image in images])
        put_audit(folder, claims.images.file)
        journal.delete()
        Console().print(audit_table(verdicts))
    return result


def main(args: Sequence[str] | None = None) -> int:
    """Attack a run's claims; the exit code is 1 if one that must hold does not.

    With ``--tsv`` it is about a table of another tool: see :mod:`ellips.commands.audit_tsv`.
    """
    given = list(sys.argv[1:] if args is None else args)
    if any(word.split("=")[0] == "--tsv" for word in given):
        return audit_tsv(given)
    parser = Parser(
        prog="ellips audit",
        description="Attack inside every claimed radius of a run. With --tsv FILE: of another tool's table.",
    )
    parser.add_argument("folder", type=Path, help="Where `ellips certify` wrote its results.")
    parser.add_argument("--max", type=int | None, default=None, help="Attack at most so many images, spread evenly.")
    parser.add_argument("--overwrite", type=bool, default=False, help="Start anew, whatever a killed audit has found.")
    parser.add_argument(
        "--config",
        type=Path,
        action="append",
        help="Configuration that the run was made with, in place of the folder's.",
    )
    parser.add_argument(
        "--trust", action="store_true", help="Import whatever the folder's configuration names; that can run any code."
    )
    parser.add_argument(
        "--budget", type=float | None, default=None, help="Seconds, after which expensive attacks are left out."
    )
    add_processes(parser)
    parser.add_class_arguments(AttackSettings, "attack", help="How hard to attack.")
    config = parser.parse_args(given)
    leave_out_of_path(config.folder)
    settings = parser.instantiate(config).attack
    fabric = launch(config)
    vouched = Vouched(config.config or (), config.trust)
    found = audit(
        ResultsFolder(config.folder),
        settings,
        config.max,
        overwrite=config.overwrite,
        budget=config.budget,
        fabric=fabric,
        vouched=vouched,
    )
    return int(any(entry["passed"] is False for entry in found["series"].values()))
