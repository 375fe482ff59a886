"""Certify images, check, attack and compare: ``python certify.py --config configs/digits.yaml``."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import torch
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace
from rich.console import Console

from callbacks import CertificateWriter
from datamodules.selection import SelectionDataModule
from ellips.audit import (
    AttackSettings,
    AuditedImage,
    audit_series,
    audit_table,
    input_target,
    latent_target,
    verdict,
    write_audit,
)
from ellips.certificates import Method, check
from ellips.distributed import close_process_group
from ellips.files.atomic import replace_file
from ellips.files.journal import Journal
from ellips.files.proofs import load_certificates
from ellips.files.table import read_table
from ellips.lipschitz import ConstantSource
from ellips.pipeline import ImageClassifier
from ellips.reporting.compare import compare, read_entries
from ellips.reporting.html import ReportImage
from ellips.reporting.run import RunReport
from ellips.reporting.summary import records_by_series, versions
from lightning_modules.certifier import Certifier, source_names

DESCRIPTION = """Certify the images of a split with the classifier of a checkpoint.

The configuration of the training run can be given as it is (its `model` and all but the hardware of its `trainer` are
not used), and further ones after it. Other commands: `certify.py check FILE` checks saved certificates without
trusting what made them; `certify.py audit DIR` attacks inside every claimed radius; `certify.py compare DIR|TSV ...`
puts several runs side by side.
"""
TRAINING_ONLY = ("model", "weights_only")
HARDWARE = ("accelerator", "devices", "num_nodes", "strategy")
RUNS = Path("runs")
LATENT_RADII = [0.25, 0.5, 0.75, 1.0, 1.25, 1.5]
INPUT_RADII = [0.1, 0.25, 0.5, 0.75, 1.0]


def certify(
    data: L.LightningDataModule,
    name: str = "default",
    ckpt_path: str | None = None,
    out: str | None = None,
    seed_everything: int = 0,
    split: str = "test",
    skip: int = 1,
    max: int | None = None,
    methods: Sequence[Method] = ("theorem", "pairwise", "exact"),
    sources: Sequence[ConstantSource] = (),
    input_method: Method = "exact",
    batch_size: int = 32,
    radii: Sequence[float] = LATENT_RADII,
    input_radii: Sequence[float] = INPUT_RADII,
    confidence: float = 0.95,
    overwrite: bool = False,
    hardware: dict[str, Any] | None = None,
    config: str | None = None,
) -> dict[str, Any]:
    """Certify the images of a split and write everything about them into a folder.

    A killed run goes on where it was when it is started again with the same settings.

    Args:
        data: Where the images and the encoder are.
        name: Run folder of the training: runs/<name>/.
        ckpt_path: Checkpoint; None: runs/<name>/checkpoints/last.ckpt.
        out: Where results go; None: runs/<name>/certify/<split>.
        seed_everything: Seed of this run, recorded in every row; sources have their own.
        split: train, val or test.
        skip: Take every skip-th image.
        max: Take at most so many images, counted after skipping; None: all.
        methods: Latent certificates to show side by side.
        sources: Where Lipschitz constants of image to latent come from; each adds a series in input space.
        input_method: The latent certificate that the sources carry to the input.
        batch_size: Images per batch; rows are on disk when their batch is finished.
        radii: Radii in latent space to tabulate.
        input_radii: Radii in input space, on [0, 1] pixels, to tabulate.
        confidence: Coverage of the Clopper-Pearson intervals.
        overwrite: Start anew, deleting the run that the folder holds.
        hardware: Arguments of the trainer: accelerator, devices, num_nodes, strategy.
        config: Text to keep as config.yaml beside the results; `certify.py audit` reads it.

    Returns:
        The summary that was written.
    """
    if getattr(data, "encoder", None) is None:
        raise TypeError(f"Expected a datamodule with an `encoder` but {type(data).__name__} has none.")
    L.seed_everything(seed_everything, workers=True, verbose=False)
    checkpoint = Path(ckpt_path) if ckpt_path else RUNS / name / "checkpoints" / "last.ckpt"
    classifier = ImageClassifier.from_checkpoint(checkpoint, data.encoder)
    images = SelectionDataModule(data, split, skip, max, batch_size)
    certifier = Certifier(classifier, methods, sources, input_method, seed_everything)
    folder = Path(out) if out else RUNS / name / "certify" / split
    if overwrite and (folder / "journal" / "settings.json").exists():
        shutil.rmtree(folder, ignore_errors=True)  # several processes may do it at once
    settings = {
        "checkpoint": str(checkpoint),
        "data": type(data).__name__,
        "images": data.source(split).identity() if hasattr(data, "source") else {},
        "split": split,
        "skip": skip,
        "max": max,
        "batch_size": batch_size,
        "methods": list(methods),
        "sources": [describe(source) for source in sources],
        "input_method": input_method,
        "seed": seed_everything,
        **{f"{part}_digest": digest for part, digest in classifier.digests().items()},
    }
    journal = Journal(folder, certifier.series, settings)
    images.done = journal.done()
    trainer = L.Trainer(
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        inference_mode=False,  # sources differentiate
        callbacks=[CertificateWriter(journal, images.done, len(images.indices))],
        **(hardware or {}),
    )
    try:
        if images.batches():
            trainer.predict(certifier, datamodule=images, return_predictions=False)
    finally:  # an interrupted run leaves what it has, and says what is missing
        summary: dict[str, Any] = {}
        if trainer.is_global_zero:
            if config is not None:
                replace_file(folder / "config.yaml", config)
            grids = {"latent": radii, "input": input_radii}
            summary = _report(folder, journal, classifier, images, data, grids, confidence)
    return summary


def _report(
    folder: Path,
    journal: Journal,
    classifier: ImageClassifier,
    images: SelectionDataModule,
    data: L.LightningDataModule,
    grids: dict[str, Sequence[float]],
    confidence: float,
) -> dict[str, Any]:
    records = journal.records()
    encoder = data.encoder.fingerprint() if hasattr(data.encoder, "fingerprint") else {}
    info = {"settings": journal.settings, "encoder": encoder, "digests": classifier.digests()}
    what = journal.settings
    title = f"Certified accuracy, {what['data']}, {what['split']} split ({len(images.indices)} images)"
    proofs = (classifier.head.ellips.cpu(), journal.latents())
    report = RunReport(folder, records, images.indices, grids, confidence, title, info, proofs)
    summary = report.write(_pictures(report, images, data))
    if records:
        report.show(Console(), summary)
    return summary


def _pictures(report: RunReport, images: SelectionDataModule, data: L.LightningDataModule) -> list[ReportImage]:
    """Read the images that the report shows."""
    names = [*getattr(data, "class_names", [str(k) for k in range(data.num_classes)]), "none (abstained)"]
    return [
        ReportImage(
            group, record, images.dataset[[record.index]].image[0], names[record.label], names[record.prediction]
        )
        for group, records in report.wanted_images().items()
        for record in records
    ]


def describe(source: ConstantSource) -> dict[str, Any]:
    """Return a source's class and settings, as JSON can hold them."""
    plain = {key: value for key, value in vars(source).items() if isinstance(value, str | int | float | bool | None)}
    return {"class_path": f"{type(source).__module__}.{type(source).__qualname__}", **plain}


# ------------------------------------------------------------------ command line


def certify_parser() -> ArgumentParser:
    """Return the parser of the main command; it reads the configurations of train.py as they are."""
    parser = ArgumentParser(prog="certify.py", description=DESCRIPTION)
    parser.add_argument("--config", action=ActionConfigFile, help="A YAML file; several are read in turn.")
    parser.add_function_arguments(certify, skip={"hardware", "config"})
    parser.add_class_arguments(L.Trainer, "trainer", instantiate=False)
    for name in TRAINING_ONLY:
        parser.add_argument(f"--{name}", type=Any, help="Of training; not used.")
    return parser


def run_certify(args: Sequence[str]) -> int:
    """Certify; the exit code is 1 if images are missing."""
    parser = certify_parser()
    config = parser.parse_args(list(args))
    hardware = {key: config.trainer[key] for key in HARDWARE}
    summary = certify(**_instantiate(parser, config), hardware=hardware, config=parser.dump(config))
    return 0 if not summary or summary["complete"] else 1


def _instantiate(parser: ArgumentParser, config: Namespace) -> dict[str, Any]:
    """Return the arguments of :func:`certify`, with datamodule and sources built."""
    used = config.clone()
    for name in (*TRAINING_ONLY, "trainer", "config"):
        used.pop(name)
    arguments: dict[str, Any] = parser.instantiate(used).as_dict()
    return arguments


def run_check(args: Sequence[str]) -> int:
    """Check a file of certificates; the exit code is 1 if one of them does not hold."""
    parser = ArgumentParser(prog="certify.py check", description="Check saved certificates: the proof, not the solver.")
    parser.add_argument("file", type=Path, help="A file <series>.safetensors that certify.py wrote.")
    config = parser.parse_args(list(args))
    saved = load_certificates(config.file)
    passed = check(saved.ellips, saved.z, saved.certificate)
    print(f"{int(passed.sum())} of {len(passed)} certificates hold ({saved.certificate.method}, {saved.digest}).")
    failed = (~passed).nonzero().flatten()
    if len(failed):
        where = failed if saved.index is None else saved.index[failed]
        print(f"These do not: {where[:20].tolist()}{' and more' if len(where) > 20 else ''}")
    return int(len(failed) > 0)


def run_audit(args: Sequence[str]) -> int:
    """Attack a run's claims; the exit code is 1 if one that must hold does not."""
    parser = ArgumentParser(prog="certify.py audit", description="Attack inside every claimed radius of a run.")
    parser.add_argument("folder", type=Path, help="Where certify.py wrote its results.")
    parser.add_argument("--max", type=int | None, default=None, help="Attack at most so many images, spread evenly.")
    parser.add_class_arguments(AttackSettings, "attack", help="How hard to attack.")
    config = parser.parse_args(list(args))
    settings = parser.instantiate(config).attack
    found = audit(config.folder, settings, config.max)
    return int(any(entry["passed"] is False for entry in found["series"].values()))


def audit(folder: Path, settings: AttackSettings, max_images: int | None = None) -> dict[str, Any]:
    """Attack the claims of a run, print what was found and write it to audit.json and audit.csv.

    Args:
        folder: Where :func:`certify` wrote its results.
        settings: How hard to attack.
        max_images: Attack at most so many images, spread evenly over the run; None: all.

    Returns:
        What was written to audit.json.

    Raises:
        FileNotFoundError: If the folder holds no results.
        ValueError: If checkpoint or encoder are not those of the run.
    """
    parser = certify_parser()
    chosen = _instantiate(parser, parser.parse_args(["--config", str(folder / "config.yaml")]))
    data, sources = chosen["data"], chosen["sources"]
    what = json.loads((folder / "journal" / "settings.json").read_text(encoding="utf-8"))
    classifier = ImageClassifier.from_checkpoint(what["checkpoint"], data.encoder)
    present = {f"{part}_digest": digest for part, digest in classifier.digests().items()}
    if any(what[name] != digest for name, digest in present.items()):
        raise ValueError(f"Expected the classifier that was certified, but encoder or head changed since: {present}.")
    images = SelectionDataModule(data, what["split"], what["skip"], what["max"], what["batch_size"])
    series = records_by_series(read_table(folder / "certificates.csv"))
    journal = Journal(folder, list(series), what)
    targets = {
        name: input_target(classifier, source) for name, source in zip(source_names(sources), sources, strict=True)
    }
    found: dict[str, list[AuditedImage]] = {}
    verdicts: dict[str, Any] = {}
    latents = journal.latents()
    console = Console()
    for number, (name, rows) in enumerate(series.items(), start=1):
        rows = rows[:: max(1, -(-len(rows) // (max_images or len(rows))))]
        target = targets.get(name) or latent_target(classifier)
        points = (
            images.dataset[[row.index for row in rows]].image
            if name in targets
            else torch.stack([latents[row.index] for row in rows])
        )
        with console.status(f"Series {number} of {len(series)}, {name}: attacking {len(rows)} images"):
            found[name] = audit_series(rows, points, target.scores, target.judge, settings, function=target.function)
        if found[name]:
            verdicts[name] = verdict(found[name], target.alpha)
    result = {"series": verdicts, "attack": asdict(settings), "versions": versions()}
    write_audit(folder, result, [image for images in found.values() for image in images])
    console.print(audit_table(verdicts))
    return result


def run_compare(args: Sequence[str]) -> int:
    """Put several runs side by side."""
    parser = ArgumentParser(prog="certify.py compare", description="Several runs, and files of other tools, compared.")
    parser.add_argument(
        "runs", nargs="+", help="Folders of certify.py, or FILE.tsv:SOUNDNESS for a file of another tool."
    )
    parser.add_argument("--series", type=list[str], default=[], help="Series to take from each folder; none: all.")
    parser.add_argument("--radii", type=list[float], default=LATENT_RADII, help="Latent radii to tabulate.")
    parser.add_argument("--input_radii", type=list[float], default=INPUT_RADII, help="Radii on the image.")
    parser.add_argument("--confidence", type=float, default=0.95, help="Coverage of the intervals.")
    parser.add_argument("--together", type=bool, default=False, help="Insist on one table and one panel.")
    parser.add_argument("--out", type=Path, default=RUNS / "compare", help="Folder for figure and numbers.")
    config = parser.parse_args(list(args))
    entries = [entry for run in config.runs for entry in read_entries(run, config.series)]
    radii = {"latent": config.radii, "input": config.input_radii}
    compare(entries, config.out, radii, confidence=config.confidence, together=config.together)
    return 0


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "check": run_check,
    "audit": run_audit,
    "compare": run_compare,
}


def main(args: Sequence[str] | None = None) -> int:
    """Run a command; the first argument names it, none of them means to certify.

    Args:
        args: The command line without the program's name; None: that of this process.

    Returns:
        The exit code.
    """
    given = list(sys.argv[1:] if args is None else args)
    if given and given[0] in COMMANDS:
        return COMMANDS[given[0]](given[1:])
    return run_certify(given)


if __name__ == "__main__":
    code = main()
    close_process_group()
    sys.exit(code)
