"""One process of a distributed run: fits `FeatureData`, tests it, and writes down what it saw.

Started as `python ddp_worker.py OUT --devices N` (Lightning starts the other processes) or by torchrun.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from torch import Tensor

from ellips.distributed import close_process_group, gather_with_gradient
from ellips.losses import CertifiedRadius, ClassMMD, CodingRateReduction, Isotropy
from lightning_modules import GenEllips, Optimization
from tests.lightning_modules.feature_data import FeatureData

GLOBAL_BATCH = 48


class Recorder(L.Callback):
    """Keeps every step's losses and the first step's gradients."""

    def __init__(self) -> None:
        self.losses: list[dict[str, Tensor]] = []
        self.gradients: dict[str, Tensor] = {}

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: object) -> None:
        if not self.gradients:
            self.gradients = {n: p.grad.clone() for n, p in pl_module.named_parameters() if p.grad is not None}

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *rest: object) -> None:
        seen = trainer.callback_metrics
        self.losses.append({k: v.clone() for k, v in seen.items() if k.startswith("train/")})


def fit(world: int, folder: Path, **trainer_options: Any) -> dict[str, Any]:
    """Fit and test on a global batch of 48, and return what must not depend on the number of processes."""
    torch.manual_seed(0)
    module = GenEllips(
        10,
        4,
        latent_dim=5,
        hidden_dim=16,
        shrinkage=0.1,
        objective=[
            CodingRateReduction(warmup_steps=2),
            Isotropy(weight=0.5),
            ClassMMD(2.0, weight=0.3),
            CertifiedRadius(0.5, weight=0.3),
        ],
        optimization=Optimization("sgd", learning_rate=0.05, schedule="cosine"),
    )
    recorder, data = Recorder(), FeatureData(batch_size=GLOBAL_BATCH // world)
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": 2,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
        "callbacks": [recorder],
        "num_sanity_val_steps": 0,
    }
    trainer = L.Trainer(**{**settings, **trainer_options})
    trainer.fit(module, data)
    metrics = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
    metrics.update(trainer.test(module, data, verbose=False)[0])
    return {
        "losses": recorder.losses,
        "gradients": recorder.gradients,
        "state": module.state_dict(),
        "count": module.head.moments.compute().count,
        "metrics": metrics,
        "rank": trainer.global_rank,
        "world": trainer.world_size,
    }


def uneven_gather() -> dict[str, Tensor]:
    """Rank r holds r + 1 rows of 1, 2, ...; the loss is that of all rows, its gradient that of the local ones."""
    rank = dist.get_rank()
    first = rank * (rank + 1) // 2 + 1
    rows = torch.arange(first, first + rank + 1, dtype=torch.float64).requires_grad_()
    gathered = gather_with_gradient(rows.unsqueeze(1)).squeeze(1)
    gathered.prod().backward()
    assert rows.grad is not None
    # What data-parallel training does to parameters' gradients: the mean over processes.
    return {"gathered": gathered.detach(), "gradient": rows.grad / dist.get_world_size()}


def main() -> None:
    """Run one process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--devices", type=int, required=True)
    parser.add_argument("--precision", default="32-true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result = fit(
        options.devices,
        options.out,
        devices=options.devices,
        strategy="ddp",
        use_distributed_sampler=True,
        precision=options.precision,
    )
    result["gather"] = uneven_gather()
    torch.save(result, options.out / f"rank{result['rank']}.pt")


if __name__ == "__main__":
    main()
    close_process_group()
