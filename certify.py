"""Certify images, check, attack and compare: ``python certify.py --config configs/digits.yaml``."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from jsonargparse import ActionConfigFile, ArgumentParser
from rich.console import Console

from callbacks.certificate_writer import CertificateWriter
from datamodules.selection import SelectionDataModule
from ellips.certificates import Method, check, load_certificates
from ellips.journal import Journal
from ellips.lipschitz import LipschitzSource
from ellips.pipeline import ImageClassifier
from ellips.reporting.html import ReportImage
from ellips.reporting.run import RunReport
from lightning_modules.certifier import Certifier

DESCRIPTION = """Certify the images of a split with the classifier of a checkpoint.

The configuration of the training run can be given as it is (its `model` and all but the hardware of its `trainer` are
not used), and further ones after it. Other commands: `certify.py check FILE` checks saved certificates without
trusting what made them; `certify.py audit DIR` attacks inside every claimed radius; `certify.py compare DIR|TSV ...`
puts several runs side by side.
"""
TRAINING_ONLY = ("model", "weights_only")
HARDWARE = ("accelerator", "devices", "num_nodes", "strategy")
RUNS = Path("runs")


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
    sources: Sequence[LipschitzSource] = (),
    input_method: Method = "exact",
    batch_size: int = 32,
    radii: Sequence[float] = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5),
    input_radii: Sequence[float] = (0.1, 0.25, 0.5),
    confidence: float = 0.95,
    overwrite: bool = False,
    hardware: dict[str, Any] | None = None,
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

    Returns:
        The summary that was written.
    """
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
        summary = _report(trainer, classifier, images, data, journal, radii, input_radii, confidence, folder)
    return summary


def _report(
    trainer: L.Trainer,
    classifier: ImageClassifier,
    images: SelectionDataModule,
    data: L.LightningDataModule,
    journal: Journal,
    radii: Sequence[float],
    input_radii: Sequence[float],
    confidence: float,
    folder: Path,
) -> dict[str, Any]:
    if not trainer.is_global_zero:
        return {}
    records = journal.records()
    encoder = data.encoder.fingerprint() if hasattr(data.encoder, "fingerprint") else {}
    info = {"settings": journal.settings, "encoder": encoder, "digests": classifier.digests()}
    what = journal.settings
    title = f"Certified accuracy, {what['data']}, {what['split']} split ({len(images.indices)} images)"
    grids = {"latent": radii, "input": input_radii}
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


def describe(source: LipschitzSource) -> dict[str, Any]:
    """Return a source's class and settings, as JSON can hold them."""
    plain = {key: value for key, value in vars(source).items() if isinstance(value, str | int | float | bool | None)}
    return {"class_path": f"{type(source).__module__}.{type(source).__qualname__}", **plain}


# ------------------------------------------------------------------ command line


def certify_parser() -> ArgumentParser:
    """Return the parser of the main command; it reads the configurations of train.py as they are."""
    parser = ArgumentParser(prog="certify.py", description=DESCRIPTION)
    parser.add_argument("--config", action=ActionConfigFile, help="A YAML file; several are read in turn.")
    parser.add_function_arguments(certify, skip={"hardware"})
    parser.add_class_arguments(L.Trainer, "trainer", instantiate=False)
    for name in TRAINING_ONLY:
        parser.add_argument(f"--{name}", type=Any, help="Of training; not used.")
    return parser


def run_certify(args: Sequence[str] | None) -> int:
    """Certify; the exit code is 1 if images are missing."""
    parser = certify_parser()
    config = parser.parse_args(args)
    hardware = {key: config.trainer[key] for key in HARDWARE}
    for name in TRAINING_ONLY:
        config.pop(name)
    config.pop("trainer")
    config.pop("config")
    chosen = parser.instantiate(config)
    summary = certify(**chosen.as_dict(), hardware=hardware)
    return 0 if not summary or summary["complete"] else 1


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


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {"check": run_check}


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
    sys.exit(main())
