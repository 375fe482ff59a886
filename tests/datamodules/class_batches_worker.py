"""One process of a run on batches by class: fits a mixture of 12 classes and writes down what it saw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch

from datamodules import GaussianMixtureDataModule
from ellips.losses import ClassMMD, CodingRateReduction, Isotropy
from lightning_modules import GenEllips, Optimization

GLOBAL_BATCH = 24


class Losses(L.Callback):
    """Keeps every step's losses."""

    def __init__(self) -> None:
        self.losses: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: L.Trainer, *rest: object) -> None:
        seen = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.losses.append({n.removeprefix("train/"): v for n, v in seen.items() if n.startswith("train/")})


def fit(
    world: int,
    folder: Path,
    *,
    images_per_class: int = 4,
    callbacks: list[L.Callback] | None = None,
    ckpt_path: Path | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Fit on global batches of 24: 6 classes with 4 images each, 6 an epoch; pooling and shrinkage are chosen."""
    torch.manual_seed(0)
    data = GaussianMixtureDataModule(
        12, train_size=115, val_size=60, batch_size=GLOBAL_BATCH // world, images_per_class=images_per_class
    )
    module = GenEllips(
        2,
        12,
        latent_dim=3,
        hidden_dim=16,
        objective=[CodingRateReduction(warmup_steps=2), Isotropy(weight=0.5), ClassMMD(2.0, weight=0.3)],
        optimization=Optimization("sgd", learning_rate=0.05),
    )
    losses = Losses()
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[losses, *(callbacks or [])],
        num_sanity_val_steps=0,
        precision="64-true",  # in float32 processors round sums over other batches apart by up to 2e-5
        **({"devices": 1} | options),
    )
    trainer.fit(module, data, ckpt_path=ckpt_path)
    state = {name: value.clone() for name, value in module.state_dict().items()}
    return {"losses": losses.losses, "state": state, "rank": trainer.global_rank, "world": trainer.world_size}


def fit_in_two(folder: Path) -> None:
    """Fit as one of two processes, and write down what this one saw."""
    result = fit(2, folder, devices=2, strategy="ddp")
    torch.save(result, folder / f"rank{result['rank']}.pt")
