"""What :mod:`benchmarks.scale` gives to ``train.py``: synthetic features, and a callback that measures memory."""

from __future__ import annotations

import json
import time
from pathlib import Path

import lightning as L
import torch

from datamodules.base import Split, SplitDataModule
from datamodules.gaussian_mixture import Points
from datamodules.sampling import RowsDataset
from ellips.types import FeatureBatch


class SyntheticFeatures(SplitDataModule):
    """Features of K overlapping classes, as an encoder's cache would deliver them, drawn when they are first needed.

    Args:
        classes: K.
        dim: Width of the features.
        per_class: Training images of a class; there is one more of each for validation.
        batch_size: See :class:`SplitDataModule`.
        images_per_class: See :class:`SplitDataModule`.
    """

    def __init__(
        self,
        classes: int = 1000,
        dim: int = 1024,
        per_class: int = 64,
        batch_size: int = 256,
        images_per_class: int = 2,
    ) -> None:
        super().__init__(batch_size=batch_size, eval_batch_size=256, seed=0, images_per_class=images_per_class)
        self.classes, self.dim, self.per_class = classes, dim, per_class
        self._drawn: dict[Split, Points] = {}

    @property
    def class_names(self) -> list[str]:
        """``"0"`` to ``"K-1"``."""
        return [str(k) for k in range(self.classes)]

    @property
    def feature_dim(self) -> int:
        """``dim``."""
        return self.dim

    def dataset(self, split: Split) -> RowsDataset[FeatureBatch]:
        """Draw the features of a split, at the first call."""
        if split not in self._drawn:
            centers = torch.randn(self.classes, self.dim, generator=torch.Generator().manual_seed(0))
            labels = torch.arange(self.classes).repeat(self.per_class if split == "train" else 1)
            features = torch.randn(len(labels), self.dim, generator=torch.Generator().manual_seed(len(split)))
            for own in range(0, len(labels), self.classes):
                features[own : own + self.classes] += 0.2 * centers
            self._drawn[split] = Points(features, labels)
        return self._drawn[split]


class StagePeaks(L.Callback):
    """Writes how much memory each stage of a fit took at its peak in this process, and how long it was.

    Args:
        folder: A file for each process is written there.
    """

    def __init__(self, folder: str) -> None:
        self.folder, self.stages, self._stage = Path(folder), {}, ""  # type: dict[str, dict[str, float]]

    def _turn(self, stage: str) -> None:
        now = time.monotonic()
        if self._stage:
            old = self.stages.setdefault(self._stage, {"gigabytes": 0.0, "seconds": 0.0})
            old["gigabytes"] = max(old["gigabytes"], peak())
            old["seconds"] += now - self._since
        self._stage, self._since = stage, now
        forget_peak()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Training begins."""
        self._turn("train")

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The module fits its Gaussians next, and selects their regularisation."""
        self._turn("fit_and_select")

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Certificates are next."""
        self._turn("certify")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The checkpoint is next."""
        self._turn("checkpoint")

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write what was found."""
        self._turn("")
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"{trainer.global_rank}.json").write_text(json.dumps(self.stages), encoding="utf-8")


def peak() -> float:
    """Return the largest memory of this process so far, or since :func:`forget_peak`, in GB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e9


def forget_peak() -> None:
    """Start :func:`peak` anew from what is held now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
