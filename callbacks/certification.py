"""Certified accuracy at validation and test: logged per radius, drawn, and laid out as a table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import lightning as L
import torch
from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger
from matplotlib.figure import Figure
from rich.console import Console
from torch import Tensor

from ellips.certificates import METHODS, Certificate, Method, by_weyl
from ellips.files import read_json, replace_file
from ellips.input_certifiers import Chain, InputCertifier, as_certifier, series_of
from ellips.lipschitz import ConstantSource
from ellips.metrics import CertifiedAccuracyCurve, CertifiedCurve, DistinctRows, average_certified_radius
from ellips.metrics.functional import check_radii, even_grid
from ellips.metrics.radii import radii_of_data
from ellips.pipeline import ImageClassifier
from ellips.precision import full_precision
from ellips.reporting import LabelledCurve, accuracy_table, plot_curves, save_figure
from ellips.reporting.curves import group_by_claim, radius_text
from ellips.reporting.summary import label_with
from ellips.types import DEFAULT_RADII, SOUNDNESS_ORDER, SPACES, HeadOutput, Series, Soundness, Space
from ellips.validation import fraction, one_of, positive

from .evaluation import EvaluationCallback, Stage, head_of

RADII_FILE = "certified_radii.json"
STAGES: tuple[Stage, ...] = get_args(Stage)
_CLEAN = 0.0  # the radius at which certified accuracy is clean accuracy


class CertificationCallback(EvaluationCallback):
    """Certifies every validation and test image, in latent space and, if asked, in input space.

    Each image counts once, in any number of processes and with any sampler. Logged per stage (``val``, ``test``), ready
    for ``ModelCheckpoint``: ``val/clean_accuracy``; for every method and radius
    ``val/certified_accuracy/latent-exact@0.5``; ``val/average_certified_radius/latent-exact``; and
    ``val/relative_radius/latent-exact``, the mean of min(R / s, 1) over right predictions (0 for wrong ones), with s
    the mixture's :attr:`~ellips.gaussians.Mixture.scale`: unlike the radii themselves it may choose between two heads.
    In input space the soundness class goes before the series, e.g.
    ``test/certified_accuracy/estimated/input-exact-clever@0.1``. Figures go to the logger and to the run folder, one
    per space and soundness class; a table is printed at the end of a test.

    Radii that are not given are those of the data (:func:`ellips.metrics.radii.radii_of_data`): decided at the first
    validation, or test, that certifies a space, for all its series, and kept from then on. They go into checkpoints
    and, for a fit that goes on from one made before that validation, into ``certified_radii.json`` beside the figures:
    a resumed fit, and a test of its checkpoint, show the same. Radii that another callback monitors
    (``val/certified_accuracy/latent-exact@0.5``) are added, to given ones, too. Names have six digits of a radius, and
    are never above it.

    Args:
        radii: Radii in latent space to log and tabulate; None: those of the data.
        methods: Latent certificates to show side by side.
        max_radius: Where the latent curve ends; None: the largest of `radii`.
        num_points: Grid points of the curves.
        confidence: Coverage of the Clopper–Pearson intervals.
        certifiers: Ways to a radius on the image, or sources of the Lipschitz constant of image → latent; none: latent
            space only. The datamodule must deliver the images; its ``keep_images`` is switched on.
        input_radii: Radii on [0, 1] pixels to log and tabulate in input space; None: those of the data.
        input_method: The latent certificate that the certifiers start from.
        input_stages: The stages at which input space is certified, ``"val"``, ``"test"`` or both; it is slow.
        directory: Where figures are written; None: the logger's folder, or the trainer's root.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        radii: Sequence[float] | None = None,
        methods: Sequence[Method] = ("theorem", "pairwise", "exact"),
        max_radius: float | None = None,
        num_points: int = 201,
        confidence: float = 0.95,
        certifiers: Sequence[InputCertifier | ConstantSource] = (),
        input_radii: Sequence[float] | None = None,
        input_method: Method = "exact",
        input_stages: Sequence[str] = ("test",),
        directory: str | None = None,
    ) -> None:
        super().__init__()
        for method in methods:
            one_of(METHODS, methods=method)
        one_of(METHODS, input_method=input_method)
        for stage in input_stages:
            one_of(STAGES, input_stages=stage)
        fraction(confidence=confidence, ends=False)
        positive(max_radius=max_radius)
        given: dict[Space, Sequence[float] | None] = {"latent": radii, "input": input_radii}
        self.given = {space: check_radii(found) for space, found in given.items() if found is not None}
        self.radii: dict[Space, tuple[float, ...]] = {s: _with_clean(found) for s, found in self.given.items()}
        self.max_radius: dict[Space, float | None] = {"latent": max_radius, "input": None}
        self.methods = tuple(methods)
        self.num_points = num_points
        self.confidence = confidence
        self.certifiers = [as_certifier(given) for given in certifiers]
        self.input_method: Method = input_method
        self.input_stages = tuple(input_stages)
        self.directory = directory
        self._rows: dict[Series, DistinctRows] = {}
        self._total = 0
        self._monitored: dict[Space, set[float]] = {}
        even_grid(max_radius or 1.0, num_points)  # fail on a bad grid here, not at the first validation

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Check that the module has a head and ask the datamodule for images if they are needed."""
        super().setup(trainer, pl_module, stage)
        datamodule = getattr(trainer, "datamodule", None)
        if self.certifiers and datamodule is not None and hasattr(datamodule, "keep_images"):
            datamodule.keep_images = True
        self._monitored = _monitored_radii(trainer)

    def state_dict(self) -> dict[str, Any]:
        """Return the radii that were decided, for the checkpoint."""
        return {"radii": {space: list(found) for space, found in self.radii.items() if space not in self.given}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the radii that a checkpoint was made with, unless others are given."""
        decided = {space: tuple(found) for space, found in state_dict.get("radii", {}).items()}
        self.radii = {**decided, **self.radii}

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Go on with the radii that were decided after the checkpoint was made."""
        path = self._folder(trainer) / RADII_FILE
        if trainer.ckpt_path is not None:
            found: Any = read_json(path) if trainer.is_global_zero and path.exists() else {}
            recorded: dict[Space, list[float]] = trainer.strategy.broadcast(found)
            self.load_state_dict({"radii": {s: r for s, r in recorded.items() if s not in self.radii}})

    # ------------------------------------------------------------------ counting

    def _grid(self, space: Space) -> list[float]:
        """The curve's radii: evenly spaced ones and those to tabulate."""
        even = even_grid(self.max_radius[space] or self.radii[space][-1], self.num_points)
        return sorted({*even, *self.radii[space]})

    def _wanted(self, stage: Stage) -> dict[Series, InputCertifier | None]:
        """The series of a stage, with what carries each to the image."""
        latent: dict[Series, InputCertifier | None] = {Series("latent", method): None for method in self.methods}
        if stage not in self.input_stages:
            return latent
        return latent | dict(zip(series_of(self.certifiers, self.input_method), self.certifiers, strict=True))

    def start(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: Stage) -> None:
        """Start counting."""
        empty = {name: torch.empty(0, dtype=torch.float64) for name in ("radius", "relative")}
        empty |= {name: torch.empty(0, dtype=torch.int64) for name in ("prediction", "label", "soundness")}
        self._rows = {series: DistinctRows(**empty).to(pl_module.device) for series in self._wanted(stage)}

    @full_precision()
    def count(self, trainer: L.Trainer, pl_module: L.LightningModule, output: HeadOutput, stage: Stage) -> None:
        """Certify a batch; each latent certificate once, whatever starts from it."""
        ellips = head_of(pl_module).ellips
        wanted = self._wanted(stage)
        needed: set[Method] = {*self.methods, *([self.input_method] if any(wanted.values()) else [])}
        latent: dict[str, Certificate] = {method: ellips.certify(output.latent, method=method) for method in needed}
        chain = self._chain(trainer, pl_module, output) if any(wanted.values()) else None
        for series, certifier in wanted.items():
            if certifier is None or chain is None:
                certificate = latent[series.method]
            else:
                certificate = _carry(certifier, chain, output, latent[self.input_method])
            rank = SOUNDNESS_ORDER.index(certificate.soundness)
            self._rows[series].update(
                output.index,
                radius=certificate.radius,
                relative=(certificate.radius / ellips.scale).clamp(max=1),
                soundness=torch.full_like(output.index, rank),
                prediction=certificate.prediction,
                label=output.label,
            )

    def _chain(self, trainer: L.Trainer, pl_module: L.LightningModule, output: HeadOutput) -> Chain:
        encoder = getattr(getattr(trainer, "datamodule", None), "encoder", None)
        if encoder is None or output.image is None:
            missing = "an `encoder` in the datamodule" if encoder is None else "the images in the step's output"
            raise ValueError(
                f"Expected {missing} to certify in input space but got none; pass a datamodule of this project with "
                "keep_images=True, or leave `certifiers` out."
            )
        return ImageClassifier(encoder, head_of(pl_module)).chain

    # ------------------------------------------------------------------ showing

    def finish(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: Stage) -> None:
        """Log and draw; after a test, print the tables."""
        curves: list[LabelledCurve] = []
        values: dict[str, float] = {}
        rows = {series: self._rows[series].rows() for series in self._wanted(stage)}  # of all processes
        self._decide_radii(trainer, rows)
        for series, certifier in self._wanted(stage).items():
            found = rows[series]
            self._total = len(found["index"])
            if certifier is not None:
                certifier.validate_run(self._total)
            if self._total:
                weyl = by_weyl(head_of(pl_module).ellips, series.method)
                curves.append(self._curve(series, found, label_with(series, weyl)))
                values |= self._values(stage, series, curves[-1], found)
        # Every process has the same numbers from the same gathered rows: their maximum is the number, to the last bit,
        # where Lightning would warn of numbers that are not reduced, or round a mean.
        pl_module.log_dict(values, sync_dist=True, reduce_fx="max", batch_size=1)
        self._draw(trainer, curves, stage)
        if stage == "test" and trainer.is_global_zero:
            self._print_tables(curves)

    def _decide_radii(self, trainer: L.Trainer, rows: Mapping[Series, Mapping[str, Tensor]]) -> None:
        """Take radii from the data where there are none yet; every process has the same rows, and decides the same."""
        before, folder = dict(self.radii), self._folder(trainer)
        for space in SPACES:
            found = [(r["radius"], r["prediction"], r["label"]) for series, r in rows.items() if series.space == space]
            if space not in self.radii and any(len(radius) for radius, *_ in found):
                self.radii[space] = _with_clean(radii_of_data(found, DEFAULT_RADII[space]))
            if space in self.radii:
                self.radii[space] = tuple(sorted({*self.radii[space], *self._monitored.get(space, ())}))
        if self.radii != before and trainer.state.fn == "fit" and trainer.is_global_zero and not _is_try(trainer):
            replace_file(folder / RADII_FILE, json.dumps(self.state_dict()["radii"]) + "\n")

    def _folder(self, trainer: L.Trainer) -> Path:
        return Path(self.directory or trainer.log_dir or trainer.default_root_dir)  # a collective call: on every rank

    def _curve(self, series: Series, found: Mapping[str, Tensor], label: str) -> LabelledCurve:
        metric = CertifiedAccuracyCurve(radii=self._grid(series.space), confidence=self.confidence)
        metric = metric.to(found["radius"].device)
        metric.sync_on_compute = False  # every process holds the rows of all
        metric.update(found["radius"], found["prediction"], found["label"])
        return LabelledCurve(label, metric.compute(), series.space, _claim(series, found["soundness"]))

    def _values(
        self, stage: Stage, series: Series, curve: LabelledCurve, found: Mapping[str, Tensor]
    ) -> dict[str, float]:
        """What is logged of a series, by name."""
        key = series.name if series.space == "latent" else f"{curve.soundness}/{series.name}"
        what = (found["prediction"], found["label"])
        values = {f"{stage}/average_certified_radius/{key}": float(average_certified_radius(found["radius"], *what))}
        for radius, accuracy in _at(curve.curve, self.radii[series.space]):
            if radius > _CLEAN:
                values[f"{stage}/certified_accuracy/{key}@{radius_text(radius, 6)}"] = accuracy
            elif series.space == "latent":
                values[f"{stage}/clean_accuracy"] = accuracy
        if series.space == "latent":
            values[f"{stage}/relative_radius/{key}"] = float(average_certified_radius(found["relative"], *what))
        return values

    def _draw(self, trainer: L.Trainer, curves: Sequence[LabelledCurve], stage: str) -> None:
        folder = self._folder(trainer)
        if not trainer.is_global_zero or _is_try(trainer):
            return
        for (space, soundness), group in group_by_claim(curves).items():
            figure = plot_curves(group, f"Certified accuracy, {stage} split", self.confidence)
            name = f"certified_accuracy_{stage}_{space}_{soundness}"
            save_figure(figure, folder / f"{name}.png")
            _log_figure(trainer, name, figure)

    def _print_tables(self, curves: Sequence[LabelledCurve]) -> None:
        console = Console()
        for (space, _), group in group_by_claim(curves).items():
            rows = [LabelledCurve(c.label, _select(c.curve, self.radii[space]), c.space, c.soundness) for c in group]
            console.print(accuracy_table(rows, f"Certified accuracy on {self._total} test images", self.confidence))


def _is_try(trainer: L.Trainer) -> bool:
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]  # set without a declaration


def _monitored_radii(trainer: L.Trainer) -> dict[Space, set[float]]:
    """Return the radii in the names of certified accuracies that callbacks monitor."""
    radii: dict[Space, set[float]] = {space: set() for space in SPACES}
    for monitor in [getattr(callback, "monitor", None) or "" for callback in trainer.callbacks]:  # type: ignore[attr-defined]
        name, _, radius = monitor.rpartition("@")
        for space in SPACES:
            if "/certified_accuracy/" in name and f"/{space}-" in name:
                radii[space].add(float(radius))
    return radii


def _with_clean(radii: tuple[float, ...]) -> tuple[float, ...]:
    return radii if radii[0] == _CLEAN else (_CLEAN, *radii)


def _claim(series: Series, soundness: Tensor) -> Soundness:
    """Return what a series may claim as a whole: what each of its images may."""
    found: list[Soundness] = [SOUNDNESS_ORDER[rank] for rank in soundness.unique().tolist()]
    if len(found) != 1:
        raise ValueError(f"Expected every batch of {series} to have one soundness class but got {found}.")
    return found[0]


def _carry(certifier: InputCertifier, chain: Chain, output: HeadOutput, certificate: Certificate) -> Certificate:
    if output.image is None:
        raise ValueError("Expected the images in the step's output but got none.")
    # Lightning evaluates in inference mode, whose tensors cannot be differentiated.
    with torch.inference_mode(False), torch.no_grad():
        plain = certificate.map(Tensor.clone)
        return certifier.certify(chain, output.image.clone(), output.latent.clone(), plain)


def _select(curve: CertifiedCurve, radii: Sequence[float]) -> CertifiedCurve:
    """Return the curve at some of its grid's radii."""
    places = [curve.radii.tolist().index(radius) for radius in radii]
    return CertifiedCurve(*(values[places] for values in curve))


def _at(curve: CertifiedCurve, radii: Sequence[float]) -> list[tuple[float, float]]:
    return list(zip(radii, _select(curve, radii).accuracy.tolist(), strict=True))


def _log_figure(trainer: L.Trainer, name: str, figure: Figure) -> None:
    """Hand a figure to every logger that takes figures."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_figure(name, figure, global_step=trainer.global_step)
        elif isinstance(logger, WandbLogger):
            logger.log_image(name, [figure], step=trainer.global_step)
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_figure(logger.run_id, figure, f"{name}.png")
