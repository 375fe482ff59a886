"""Certified accuracy at validation and test: logged per radius, drawn, and laid out as a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger
from matplotlib.figure import Figure
from rich.console import Console

from ellips.certificates import METHODS, Certificate, Method
from ellips.lipschitz import ConstantSource
from ellips.metrics import AverageCertifiedRadius, CertifiedAccuracyCurve, CertifiedCurve
from ellips.metrics.functional import check_radii, even_grid
from ellips.pipeline import ImageClassifier
from ellips.reporting import LabelledCurve, accuracy_table, plot_curves, save_figure
from ellips.reporting.curves import group_by_claim
from ellips.types import HeadOutput, Soundness, Space

STAGES = ("val", "test")


class _Series(NamedTuple):
    """One row of the tables and one line of the figures."""

    name: str
    space: Space
    curve: CertifiedAccuracyCurve
    average: AverageCertifiedRadius


class CertificationCallback(L.Callback):
    """Certifies every validation and test image, in latent space and, if asked, in input space.

    It reads the :class:`ellips.types.HeadOutput` that the steps of a module with a ``head``
    (:class:`ellips.EllipsHead`) return. Logged per stage (``val``, ``test``), ready for ``ModelCheckpoint``:
    ``val/clean_accuracy``, ``val/certified_accuracy/exact@0.5`` for every method and radius,
    ``val/average_certified_radius/exact``; in input space the method's name is preceded by ``input_`` and the
    soundness class, e.g. ``test/certified_accuracy/input_estimated_exact@0.1``. Figures go to the logger and to the
    run folder, one per space and soundness class; a table is printed at the end of a test.

    Args:
        radii: Radii in latent space to log and tabulate.
        methods: Latent certificates to show side by side.
        max_radius: Where the latent curve ends; None: the largest of `radii`.
        num_points: Grid points of the curves.
        confidence: Coverage of the Clopper–Pearson intervals.
        source: Where the Lipschitz constant of image → latent comes from; None: latent space only. The datamodule
            must deliver the images; its ``keep_images`` is switched on.
        input_radii: Radii on [0, 1] pixels to log and tabulate in input space.
        input_method: The latent certificate that is carried to the input.
        input_stages: The stages at which input space is certified, ``"val"``, ``"test"`` or both; it is slow.
        directory: Where figures are written; None: the logger's folder, or the trainer's root.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        radii: Sequence[float] = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5),
        methods: Sequence[Method] = ("theorem", "pairwise", "exact"),
        max_radius: float | None = None,
        num_points: int = 201,
        confidence: float = 0.95,
        source: ConstantSource | None = None,
        input_radii: Sequence[float] = (0.1, 0.25, 0.5),
        input_method: Method = "exact",
        input_stages: Sequence[str] = ("test",),
        directory: str | None = None,
    ) -> None:
        super().__init__()
        for method in (*methods, input_method):
            if method not in METHODS:
                raise ValueError(f"Expected `methods` out of {METHODS} but got {method!r}.")
        if not set(input_stages) <= set(STAGES):
            raise ValueError(f"Expected `input_stages` out of {STAGES} but got {list(input_stages)}.")
        self.radii: dict[Space, tuple[float, ...]] = {
            "latent": _with_zero(check_radii(radii)),
            "input": _with_zero(check_radii(input_radii)),
        }
        self.max_radius: dict[Space, float | None] = {"latent": max_radius, "input": None}
        self.methods = tuple(methods)
        self.num_points = num_points
        self.confidence = confidence
        self.source = source
        self.input_method: Method = input_method
        self.input_stages = tuple(input_stages)
        self.directory = directory
        self._series: list[_Series] = []
        self._soundness: dict[str, Soundness] = {}
        self._total = 0
        # Fail on a bad grid or confidence here, not at the first validation.
        self._new_series("latent", "latent")

    # ------------------------------------------------------------------ hooks

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Check that the module has a head and ask the datamodule for images if they are needed."""
        if not hasattr(getattr(pl_module, "head", None), "ellips"):
            raise TypeError(
                f"Expected a module with a `head` (an EllipsHead) but got {type(pl_module).__name__} without one."
            )
        datamodule = getattr(trainer, "datamodule", None)
        if self.source is not None and hasattr(datamodule, "keep_images"):
            datamodule.keep_images = True

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start counting."""
        self._start(pl_module, "val")

    def on_test_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start counting."""
        self._start(pl_module, "test")

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,  # noqa: ANN401 - Lightning's signature; checked in _update
        batch: Any,  # noqa: ANN401
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Certify a batch."""
        if not trainer.sanity_checking:
            self._update(trainer, pl_module, outputs, "val")

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,  # noqa: ANN401 - Lightning's signature; checked in _update
        batch: Any,  # noqa: ANN401
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Certify a batch."""
        self._update(trainer, pl_module, outputs, "test")

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log and draw."""
        if not trainer.sanity_checking:
            self._finish(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log, draw and print the table."""
        curves = self._finish(trainer, pl_module, "test")
        if trainer.is_global_zero:
            self._print_tables(curves)

    # ------------------------------------------------------------------ counting

    def _new_series(self, name: str, space: Space) -> _Series:
        even = even_grid(self.max_radius[space] or self.radii[space][-1], self.num_points)
        grid = sorted({*even, *self.radii[space]})
        return _Series(
            name, space, CertifiedAccuracyCurve(radii=grid, confidence=self.confidence), AverageCertifiedRadius()
        )

    def _start(self, pl_module: L.LightningModule, stage: str) -> None:
        self._series = [self._new_series(method, "latent") for method in self.methods]
        if self.source is not None and stage in self.input_stages:
            self._series.append(self._new_series(f"{self.input_method}, {type(self.source).__name__}", "input"))
        for series in self._series:
            series.curve.to(pl_module.device)
            series.average.to(pl_module.device)
        self._soundness = {}

    def _update(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, stage: str) -> None:
        if not isinstance(outputs, HeadOutput):
            raise TypeError(f"Expected the step to return a HeadOutput but got {type(outputs).__name__}.")
        for series in self._series:
            if series.space == "latent":
                method: Any = series.name
                certificate = pl_module.head.ellips.certify(outputs.latent, method=method)
            else:
                certificate = self._certify_images(trainer, pl_module, outputs)
            # One claim per series: what it may claim as a whole is what each of its batches may.
            if self._soundness.setdefault(series.name, certificate.soundness) != certificate.soundness:
                raise ValueError(
                    f"Expected every batch of {series.name!r} to have soundness {self._soundness[series.name]!r} but "
                    f"got {certificate.soundness!r}."
                )
            series.curve.update(certificate.radius, certificate.prediction, outputs.label)
            series.average.update(certificate.radius, certificate.prediction, outputs.label)

    def _certify_images(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: HeadOutput) -> Certificate:
        encoder = getattr(getattr(trainer, "datamodule", None), "encoder", None)
        if encoder is None or outputs.image is None:
            missing = "an `encoder` in the datamodule" if encoder is None else "the images in the step's output"
            raise ValueError(
                f"Expected {missing} to certify in input space but got none; pass a datamodule of this project with "
                "keep_images=True, or leave `source` out."
            )
        # Lightning evaluates in inference mode, whose tensors cannot be differentiated.
        with torch.inference_mode(False), torch.no_grad():
            classifier = ImageClassifier(encoder, pl_module.head)
            return classifier.certify(outputs.image.clone(), self.source, self.input_method)

    # ------------------------------------------------------------------ showing

    def _finish(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> list[LabelledCurve]:
        curves, values = [], {}
        for series in self._series:
            soundness = self._soundness.get(series.name)
            if soundness is None:  # no batch came
                continue
            curve = series.curve.compute()
            with series.curve.sync_context():  # over all processes
                self._total = int(series.curve.total)
            curves.append(LabelledCurve(series.name, curve, series.space, soundness))
            key = series.name if series.space == "latent" else f"input_{soundness}_{self.input_method}"
            for radius, accuracy in _at(curve, self.radii[series.space]):
                if radius > 0:
                    values[f"{stage}/certified_accuracy/{key}@{radius:g}"] = accuracy
                elif series.space == "latent":
                    values[f"{stage}/clean_accuracy"] = accuracy
            values[f"{stage}/average_certified_radius/{key}"] = float(series.average.compute())
        # Reduced over the processes by torchmetrics already; Lightning must not average again, nor warn.
        pl_module.log_dict(values, rank_zero_only=False, sync_dist=False, batch_size=1)
        self._draw(trainer, curves, stage)
        return curves

    def _draw(self, trainer: L.Trainer, curves: Sequence[LabelledCurve], stage: str) -> None:
        folder = Path(self.directory or trainer.log_dir or trainer.default_root_dir)  # a collective call: on every rank
        if not trainer.is_global_zero or trainer.fast_dev_run:
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


def _with_zero(radii: tuple[float, ...]) -> tuple[float, ...]:
    return radii if radii[0] == 0 else (0.0, *radii)


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
