from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms.v2 import RandAugment

from ellips.encoders.weights import file_digest
from ellips.types import FeatureBatch
from lightning_modules.encoder_training import EncoderTraining, images_of


class Plain(EncoderTraining):
    """A number that is trained for 20 steps."""

    def __init__(self, curved: bool = True) -> None:
        super().__init__()
        self.curved = curved
        self.weight = nn.Parameter(torch.zeros(()))
        self.rates: list[float] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])
        return (self.weight - batch[0]).square().mean()

    def configure_optimizers(self) -> object:
        optimizer = torch.optim.SGD(self.parameters(), lr=2.0)
        return (self.one_cycle if self.curved else self.linear_decay)(optimizer, warmup=0.5)

    def on_fit_end(self) -> None:
        """Nothing to write."""


def fitted(curved: bool = True) -> Plain:
    model = Plain(curved)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(max_epochs=2, accelerator="cpu", enable_model_summary=False, **quiet)
    trainer.fit(model, DataLoader(TensorDataset(torch.zeros(10))))
    return model


def test_the_rate_rises_along_half_a_cosine_and_falls_along_another_to_zero() -> None:
    model = fitted()
    rise = [2 * (0.04 + 0.96 * (1 - math.cos(math.pi * i / 10)) / 2) for i in range(10)]
    fall = [1 + math.cos(math.pi * i / 10) for i in range(10)]
    assert model.rates == pytest.approx(rise + fall)
    assert model.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0)


def test_the_rate_rises_along_a_line_and_falls_along_another_to_zero() -> None:
    model = fitted(curved=False)
    assert model.rates == pytest.approx([2 * (i + 0.02) / 10.02 for i in range(10)] + [2 - i / 5 for i in range(10)])
    assert model.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0)


class Written(Plain):
    """The same, with a file at the end."""

    export_name, recipe = "written", {"rate": 2.0}

    on_fit_end = EncoderTraining.on_fit_end

    def export(self, path: Path) -> dict[str, Any]:
        path.write_bytes(b"numbers")
        return {}


class Zeros(L.LightningDataModule):
    augment, more_train_dir = RandAugment(), "/somewhere/made"

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(TensorDataset(torch.zeros(2)))


def test_the_record_says_what_was_trained_on(tmp_path: Path) -> None:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", enable_model_summary=False, default_root_dir=tmp_path, **quiet)
    trainer.fit(Written(), Zeros())
    record = json.loads((tmp_path / "written.json").read_text())
    assert record["data"] == {
        "datamodule": f"{__name__}.Zeros",
        "part": "train",
        "augment": "torchvision.transforms.v2._auto_augment.RandAugment",
        "more_train_dir": "made",
    }
    assert record["sha256"] == file_digest(tmp_path / "written.safetensors")


def test_batches_without_images_are_refused() -> None:
    batch = FeatureBatch(torch.rand(2, 3), torch.zeros(2, dtype=torch.int64), torch.arange(2))
    with pytest.raises(ValueError, match="keep_images"):
        images_of(batch)
