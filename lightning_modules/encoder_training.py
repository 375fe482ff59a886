"""What trainings of encoders share: images, schedule, and the files at the end of fit."""

from __future__ import annotations

import datetime
import json
import math
import os
import shlex
import sys
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor

from ellips.encoders.weights import file_digest
from ellips.files import replace_file
from ellips.types import FeatureBatch, ImageBatch
from ellips.versions import made_with


class EncoderTraining(L.LightningModule):
    """What ``ellips train-encoder`` trains; at the end of fit it writes weights and a record to the run folder.

    A subclass sets :attr:`recipe` and :attr:`export_name`, and has :meth:`export`.

    Attributes:
        recipe: What the training depends on, for the record.
        export_name: Stem of the files.
        packages: Distributions whose versions the record states.
    """

    packages: ClassVar[tuple[str, ...]] = ("torch", "lightning")
    recipe: dict[str, Any]
    export_name: str

    @abstractmethod
    def export(self, path: Path) -> dict[str, Any]:
        """Write the weights, and whatever lies beside them.

        Args:
            path: The weights' file.

        Returns:
            What is special to it, for the record.
        """

    def on_fit_end(self) -> None:
        """Write the weights and the record beside them."""
        self._export(Path(self.trainer.default_root_dir) / f"{self.export_name}.safetensors")

    @rank_zero_only
    def _export(self, path: Path) -> None:
        own = self.export(path)
        metrics = {name: float(value) for name, value in self.trainer.callback_metrics.items() if "val/" in name}
        record = {
            "name": self.export_name,
            "sha256": file_digest(path),
            **own,
            "command": f"python {shlex.join(sys.argv)}",
            "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
            "recipe": {
                "seed": int(os.environ.get("PL_GLOBAL_SEED", -1)),
                "epochs": self.trainer.max_epochs,
                "precision": str(self.trainer.precision),
                **self.recipe,
            },
            "data": _described_data(getattr(self.trainer, "datamodule", None)),
            "validation": metrics,
            "made_with": made_with(*self.packages),
        }
        replace_file(path.with_suffix(".json"), json.dumps(record, indent=2) + "\n")

    def one_cycle(self, optimizer: torch.optim.Optimizer, warmup: float = 0.3) -> Any:  # noqa: ANN401 - Lightning's
        """Return an optimiser with a one-cycle schedule for ``configure_optimizers``.

        The learning rate goes up from 1/25 of its peak, along half a cosine, and down to zero along another.

        Args:
            optimizer: Its learning rate is the peak.
            warmup: Share of the fit that the rate rises for.
        """

        def shape(part: float) -> float:
            if part < warmup:
                return 0.04 + 0.96 * (1 - math.cos(math.pi * part / warmup)) / 2
            return (1 + math.cos(math.pi * (part - warmup) / (1 - warmup))) / 2

        return self._scheduled(optimizer, shape)

    def linear_decay(self, optimizer: torch.optim.Optimizer, warmup: float = 0.03) -> Any:  # noqa: ANN401 - Lightning's
        """Return an optimiser whose learning rate goes up along a line and down to zero along another.

        Args:
            optimizer: Its learning rate is the peak.
            warmup: Share of the fit that the rate rises for.
        """
        return self._scheduled(optimizer, lambda part: min((part + 1e-3) / (warmup + 1e-3), (1 - part) / (1 - warmup)))

    def _scheduled(self, optimizer: torch.optim.Optimizer, shape: Callable[[float], float]) -> Any:  # noqa: ANN401
        def factor(step: int) -> float:
            # At step 0 not asked: to know, the trainer opens its training data and would not restore their position.
            return shape(min(step / self.trainer.estimated_stepping_batches, 1.0) if step else 0.0)

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def images_of(batch: FeatureBatch | ImageBatch) -> Tensor:
    """Return the images of a batch.

    Raises:
        ValueError: If the datamodule did not keep them.
    """
    if batch.image is None:
        raise ValueError("Expected batches with images but got features alone; set keep_images=True on the datamodule.")
    return batch.image


def _described_data(data: object) -> dict[str, Any]:
    """Return what an encoder was trained on, for the record."""
    described = {"datamodule": _name_of(data), "part": "train"}
    augment, more = (getattr(data, name, None) for name in ("augment", "more_train_dir"))
    if augment is not None:
        described["augment"] = _name_of(augment)
    if more is not None:
        described["more_train_dir"] = Path(more).name
    return described


def _name_of(value: object) -> str | None:
    return None if value is None else f"{type(value).__module__}.{type(value).__qualname__}"
