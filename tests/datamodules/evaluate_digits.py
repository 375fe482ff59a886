"""What each of one or more processes evaluates for `test_processes.py`."""

from __future__ import annotations

import json
from pathlib import Path

import lightning as L
import torch
from torch import nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from datamodules import DigitsDataModule
from ellips.encoders import FrozenEncoder
from ellips.types import FeatureBatch


class Recorder(L.LightningModule):
    """A fixed classifier that counts, and writes down which image had which features."""

    def __init__(self, output: Path) -> None:
        super().__init__()
        self.output = output
        self.accuracy = MulticlassAccuracy(10, average="micro")
        self.mean = MeanMetric()
        self.linear = nn.Linear(96, 10)
        self.norm = nn.BatchNorm1d(96)  # has buffers, which DDP would synchronise at every batch
        self.seen: list[FeatureBatch] = []

    def training_step(self, batch: FeatureBatch) -> torch.Tensor:
        return nn.functional.cross_entropy(self.linear(self.norm(batch.feature)), batch.label)

    def validation_step(self, batch: FeatureBatch) -> None:
        self.test_step(batch)

    def test_step(self, batch: FeatureBatch) -> None:
        self.seen.append(batch)
        self.accuracy.update(batch.feature[:, :10], batch.label)
        self.mean.update(batch.feature.double().mean(1))
        self.log("accuracy", self.accuracy)

    def on_test_epoch_end(self) -> None:
        self.write("cached" if self.trainer.datamodule.cache_dir else "test")

    def on_validation_epoch_end(self) -> None:
        self.write("val")

    def write(self, stage: str) -> None:
        batch = {name: torch.cat([getattr(part, name) for part in self.seen]) for name in ("feature", "label", "index")}
        torch.save(batch, self.output / f"{stage}-{self.trainer.world_size}-{self.global_rank}.pt")
        metrics = {"accuracy": float(self.accuracy.compute()), "mean": float(self.mean.compute())}
        (self.output / f"{stage}-{self.trainer.world_size}.json").write_text(json.dumps(metrics))
        self.seen = []
        self.mean.reset()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def evaluate(output: Path, processes: int) -> None:
    """Fit and test on streamed images, then test on cached features."""
    torch.manual_seed(0)
    encoder = FrozenEncoder("test_resnet", weights="digits")
    # 359 test and 270 validation images: an odd number of rows for two processes, and of batches.
    sizes = {"batch_size": 100, "eval_batch_size": 45, "shard_rows": 64}
    streamed = DigitsDataModule(encoder, **sizes)
    cached = DigitsDataModule(encoder, **sizes, cache_dir=output / "cache")
    trainer = L.Trainer(
        accelerator="cpu", devices=processes, strategy="ddp" if processes > 1 else "auto", logger=False, max_epochs=1,
        enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    model = Recorder(output)
    trainer.fit(model, datamodule=streamed)
    trainer.test(model, datamodule=streamed, verbose=False)
    trainer.test(model, datamodule=cached, verbose=False)
