"""``certify``: certify the images of a split, one by one, and write everything about them into a folder."""

from __future__ import annotations

import math
from argparse import SUPPRESS
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace
from lightning.pytorch.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy
from rich.console import Console

from ellips.callbacks import CertificateWriter
from ellips.certificates import Method
from ellips.datamodules import SelectionDataModule
from ellips.datamodules.manifest import TIMES
from ellips.files import Journal, ResultsFolder, RunFolder, read_json, replace_file
from ellips.input_certifiers import InputCertifier
from ellips.lightning_modules import Certifier
from ellips.lipschitz import ConstantSource
from ellips.metrics.functional import check_radii
from ellips.pipeline import ImageClassifier, check_description
from ellips.reporting.audit import short_name
from ellips.reporting.html import ReportImage
from ellips.reporting.run import RunReport
from ellips.reporting.summary import GivenRadii
from ellips.settings import describe
from ellips.validation import at_least, fraction

from .limits import limit_configurations
from .messages import Parser
from .migration import refuse_sources
from .processes import PATIENCE, codes_of_signals

DESCRIPTION = """Certify the images of a split with the classifier of a checkpoint.

The configuration of the training run can be given as it is (its `model` and all but the hardware of its `trainer` are
not used), and further ones after it.
"""
TRAINING_ONLY = ("model", "weights_only")
HARDWARE = ("accelerator", "devices", "num_nodes", "strategy")


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
    certifiers: Sequence[InputCertifier | ConstantSource] = (),
    input_method: Method = "exact",
    batch_size: int = 32,
    radii: Sequence[float] | None = None,
    input_radii: Sequence[float] | None = None,
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
        ckpt_path: Checkpoint; None: best.ckpt of the run folder, or else its last.ckpt.
        out: Where results go; None: runs/<name>/certify/<split>.
        seed_everything: Seed of this run, recorded in every row; certifiers have their own.
        split: train, val or test.
        skip: Take every skip-th image.
        max: Take at most so many images, counted after skipping; None: all.
        methods: Latent certificates to show side by side.
        certifiers: Ways to a radius on the image; each adds a series in input space. A source of a Lipschitz constant
            of image to latent stands for the certifier that divides by it.
        input_method: The latent certificate that the certifiers start from.
        batch_size: Images per batch; rows are on disk when their batch is finished.
        radii: Radii in latent space to tabulate; None: quantiles of those found, rounded, the same for all series.
        input_radii: Radii in input space, on [0, 1] pixels, to tabulate; None: likewise.
        confidence: Coverage of the Clopper-Pearson intervals.
        overwrite: Start anew, deleting the files of the run that the folder holds, and no others.
        hardware: Arguments of the trainer: accelerator, devices, num_nodes, strategy.
        config: Text to keep as config.yaml beside the results; `audit` reads it.

    Returns:
        The summary that was written.

    Raises:
        TypeError: If the datamodule has no encoder.
    """
    _validate_radii(radii=radii, input_radii=input_radii)
    fraction(confidence=confidence, ends=False)
    encoder = getattr(data, "encoder", None)
    if encoder is None:
        raise TypeError(f"Expected a datamodule with an `encoder` but {type(data).__name__} has none.")
    L.seed_everything(seed_everything, workers=True, verbose=False)
    run = RunFolder.named(name)
    checkpoint = Path(ckpt_path).expanduser() if ckpt_path else run.checkpoint()
    classifier = ImageClassifier.from_checkpoint(checkpoint, encoder)
    if hasattr(data, "description"):
        check_description(classifier.description, data.description())
    images = SelectionDataModule(data, split, skip, max, batch_size)
    certifier = Certifier(classifier, methods, certifiers, input_method, seed_everything)
    certifier.validate_run(len(images.indices))
    folder = ResultsFolder(Path(out).expanduser()) if out else run.results(split)
    if overwrite:
        folder.remove()
    settings = {
        "checkpoint": str(checkpoint),
        "data": type(data).__name__,
        "images": _as_begun(folder, images_identity(data, images.indices, split)),
        "split": split,
        "skip": skip,
        "max": max,
        "batch_size": batch_size,
        "methods": describe(list(certifier.methods)),
        "certifiers": describe(certifier.certifiers),
        "input_method": input_method,
        "seed": seed_everything,
        "encoder": _fingerprint(classifier),
        **{f"{part}_digest": digest for part, digest in classifier.digests().items()},
        **_construction(folder, classifier),
        **files_identity(certifier.certifiers),
    }
    journal = Journal(folder, certifier.series, settings)
    images.done = journal.done()
    trainer = L.Trainer(
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        inference_mode=False,  # certifiers differentiate
        callbacks=[CertificateWriter(journal, images.done, len(images.indices))],
        plugins=_slurm(),
        **_patient(hardware or {}),
    )
    try:
        if images.batches():
            with codes_of_signals():
                trainer.predict(certifier, datamodule=images, return_predictions=False)
    finally:  # an interrupted run leaves what it has, and says what is missing
        summary: dict[str, Any] = {}
        if trainer.is_global_zero:
            if config is not None:
                replace_file(folder.config, config)
            grids: GivenRadii = {"latent": radii, "input": input_radii}
            summary = _report(folder, journal, classifier, images, data, grids, confidence)
    return summary


def images_identity(data: Any, rows: Sequence[int], split: str) -> dict[str, str]:  # noqa: ANN401 - any datamodule
    """Return what tells the selected images from others: not when their files were changed, but what is in them."""
    if not hasattr(data, "source"):
        return {}
    source = data.source(split)
    content: str = source.content(rows)
    known = {name: value for name, value in source.identity().items() if name != TIMES}
    return known | ({"content": content} if content else {})


def files_identity(certifiers: Sequence[InputCertifier]) -> dict[str, list[dict[str, str]]]:
    """Return what certifiers read from files, for a run's settings; nothing where none of them does."""
    files = [certifier.files for certifier in certifiers]
    return {"certifier_files": files} if any(files) else {}


def _as_begun(folder: ResultsFolder, images: dict[str, str]) -> dict[str, str]:
    """Leave the content out where a run goes on that was begun before it was recorded."""
    begun = read_json(folder.settings).get("images") if folder.settings.exists() else None
    if isinstance(begun, dict) and begun and "content" not in begun:
        return {name: value for name, value in images.items() if name != "content"}
    return images


def _construction(folder: ResultsFolder, classifier: ImageClassifier) -> dict[str, Any]:
    """Return how the head is built, of which its digest does not tell all; nothing where a run goes on without it."""
    begun = not folder.settings.exists() or "head" in read_json(folder.settings)
    return {"head": classifier.head.config} if begun else {}


def _validate_radii(**grids: Sequence[float] | None) -> None:
    for name, grid in grids.items():
        if grid is not None:
            at_least(0, **{name: min(grid, default=0.0)})
            if not all(map(math.isfinite, check_radii(grid))):
                raise ValueError(f"Expected `{name}` to be finite but got {list(grid)}.")


def _slurm() -> SLURMEnvironment | None:
    """Under SLURM, keep Lightning from saving and requeueing at a signal: the journal is what a run goes on from."""
    started_by_srun = SLURMEnvironment.detect() and not TorchElasticEnvironment.detect()
    return SLURMEnvironment(auto_requeue=False) if started_by_srun else None


def _patient(hardware: dict[str, Any]) -> dict[str, Any]:
    """Let processes wait for each other as long as it takes."""
    return hardware | {"strategy": DDPStrategy(timeout=PATIENCE)} if hardware.get("strategy") == "ddp" else hardware


def _report(
    folder: ResultsFolder,
    journal: Journal,
    classifier: ImageClassifier,
    images: SelectionDataModule,
    data: L.LightningDataModule,
    grids: GivenRadii,
    confidence: float,
) -> dict[str, Any]:
    records = journal.records()
    info = {"settings": journal.settings, "encoder": _fingerprint(classifier), "digests": classifier.digests()}
    what = journal.settings
    title = f"Certified accuracy, {what['data']}, {what['split']} split ({len(images.indices)} images)"
    proofs = (classifier.head.ellips.cpu(), journal.latents())
    names = _class_names(data)
    report = RunReport(
        folder, records, images.indices, grids, confidence, title, info, proofs, journal.kept(), names, images.file
    )
    summary = report.write(_pictures(report, images))
    if records:
        report.show(Console(), summary)
    elif images.indices:
        reasons = list(getattr(data, "skipped", dict)().values())
        Console(soft_wrap=True).print(
            f"Nothing was certified: none of the {len(images.indices)} images was finished."
            + (f" {len(reasons)} could not be read, the first: {reasons[0]}" if reasons else ""),
            markup=False,
        )
    return summary


def _fingerprint(classifier: ImageClassifier) -> dict[str, str]:
    found: dict[str, str] = getattr(classifier.encoder, "fingerprint", dict)()
    return found


def _class_names(data: Any) -> list[str]:  # noqa: ANN401 - any datamodule
    return list(getattr(data, "class_names", map(str, range(data.num_classes))))


def _pictures(report: RunReport, images: SelectionDataModule) -> list[ReportImage]:
    """Read the images that the report shows."""
    names = [*report.class_names, "none (abstained)"]
    return [
        ReportImage(
            group,
            record,
            images.dataset[[record.index]].image[0],
            names[record.label],
            names[record.prediction],
            short_name(images.file(record.index)),
        )
        for group, records in report.wanted_images().items()
        for record in records
    ]


# ------------------------------------------------------------------ command line


def certify_parser() -> ArgumentParser:
    """Return the command's parser; it reads the configurations of a training run as they are."""
    limit_configurations()
    parser = Parser(prog="ellips certify", description=DESCRIPTION)
    parser.add_argument("--config", action=ActionConfigFile, help="A YAML file; several are read in turn.")
    parser.add_function_arguments(certify, skip={"hardware", "config"})
    parser.add_class_arguments(L.Trainer, "trainer", instantiate=False)
    for name in TRAINING_ONLY:
        parser.add_argument(f"--{name}", type=Any, help="Of training; not used.")
    parser.add_argument("--sources", type=refuse_sources, help=SUPPRESS)
    return parser


def instantiate(parser: ArgumentParser, config: Namespace) -> dict[str, Any]:
    """Return the arguments of :func:`certify`, with datamodule and certifiers built."""
    used = config.clone()
    for name in (*TRAINING_ONLY, "sources", "trainer", "config"):
        used.pop(name)
    arguments: dict[str, Any] = parser.instantiate(used).as_dict()
    return arguments


def main(args: Sequence[str] | None = None) -> int:
    """Certify; the exit code is 1 if images are missing."""
    parser = certify_parser()
    config = parser.parse_args(None if args is None else list(args))
    hardware = {key: config.trainer[key] for key in HARDWARE}
    summary = certify(**instantiate(parser, config), hardware=hardware, config=parser.dump(config))
    return 0 if not summary or summary["complete"] else 1
