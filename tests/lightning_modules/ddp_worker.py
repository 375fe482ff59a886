"""One process of a distributed run: fits `FeatureData`, tests it, and writes down what it saw.

Started as `python ddp_worker.py OUT --devices N` (Lightning starts the other processes) or by torchrun.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Literal, get_args
from unittest import mock

import lightning as L
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ellips import ClassMoments, Ellips, EllipsHead
from ellips.distributed import close_process_group, gather_with_gradient
from ellips.gaussians import ClassSketch, CovarianceType, cut, mixture, sketch
from ellips.gaussians.covariance import precision_factor
from ellips.head import keep_from_broadcasts
from ellips.losses import CertifiedRadius, ClassMMD, CodingRateReduction, Isotropy
from lightning_modules import GenEllips, Optimization
from tests.lightning_modules.feature_data import FeatureData

GLOBAL_BATCH = 48


class Recorder(L.Callback):
    """Keeps every step's losses, the first step's gradients and the names of what is sent besides."""

    def __init__(self) -> None:
        self.losses: list[dict[str, Tensor]] = []
        self.gradients: dict[str, Tensor] = {}
        self.buffers: list[str] = []

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: object) -> None:
        if not self.gradients:
            self.gradients = {n: p.grad.clone() for n, p in pl_module.named_parameters() if p.grad is not None}

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *rest: object) -> None:
        seen = trainer.callback_metrics
        self.buffers = list(getattr(trainer.strategy.model, "named_module_buffers", ()))  # what DDP sends at each step
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
        "buffers": recorder.buffers,
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


def rows_and_labels() -> tuple[Tensor, Tensor]:
    """300 points of four classes, far from the origin, where means and scatters are easily lost to rounding."""
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(300, 3, generator=generator, dtype=torch.float64) * 3 + 100
    return z, torch.randint(4, (300,), generator=generator)


def wide_rows_and_labels() -> tuple[Tensor, Tensor]:
    """600 points of four classes that differ in three directions, so that what else is looked at is rounding alone."""
    generator = torch.Generator().manual_seed(2)
    z, labels = torch.randn(600, 30, generator=generator, dtype=torch.float64), torch.arange(600) % 4
    return z * (1 + labels.unsqueeze(1) * (torch.arange(30) < 3)), labels


def merged_moments() -> dict[str, list[list[Tensor]]]:
    """Collect and merge; merge again; go on in one process alone and merge; start anew in one alone and merge.

    The first process lacks a class, and in the end has nothing at all.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    z, labels = rows_and_labels()
    rows = torch.arange(len(z))
    first = (rows < 200) & (rows % world == 0) & (labels != 3)
    mine = {0: first, 1: (rows < 200) & ~first}.get(rank, rows < 0)
    found: dict[str, list[list[Tensor]]] = {}
    kinds: tuple[Literal["full", "diagonal"], ...] = ("full", "diagonal")
    for kind in kinds:
        moments = ClassMoments(4, 3, kind)
        moments.update(z[mine], labels[mine])
        stages = [[*moments.compute()], [*moments.compute()]]
        if rank == 1:  # the others have to notice
            moments.update(z[200:], labels[200:])
        stages.append([*moments.compute()])
        moments.reset()
        if rank == 1:
            moments.update(z, labels)
        stages.append([*moments.compute()])
        found[kind] = stages
    return found


def differing_fit(kind: CovarianceType) -> dict[str, Tensor]:
    """What a head holds after a fit in processes whose arithmetic differs in the last places."""
    head = EllipsHead(3, 4, None, covariance_type=kind, rank=2 if kind == "low_rank" else None, pooling=0.5)
    head.update(*rows_and_labels())

    def differing(covariances: Tensor, first: int = 0) -> Tensor:
        return precision_factor(covariances, first) * (1 + dist.get_rank() * 2.0**-50)

    with (
        mock.patch.object(mixture, "precision_factor", differing),
        mock.patch.object(cut, "precision_factor", differing),
    ):
        head.finalize()
    return head.ellips.state_dict()


def mixture_at_the_start() -> dict[str, Tensor]:
    """What a module holds when training starts where only the first process had a mixture, and each had numbers."""
    rank = float(dist.get_rank())
    model = GenEllips(4, 3, latent_dim=None)
    means, covariance = torch.arange(12.0).double().view(3, 4), torch.eye(4).double()
    priors = torch.full((3,), 1 / 3).double()
    own = Ellips.from_parameters(means + rank, (1 + rank) * covariance.expand(3, 4, 4), priors)
    model.head.ellips.load_state_dict(own.state_dict())
    model.head.ellips.fitted.fill_(rank == 0)
    with mock.patch.object(GenEllips, "_check_encoder"):  # there is no trainer
        model.on_fit_start()
    return model.head.ellips.state_dict()


def differing_sketch() -> dict[str, Tensor]:
    """Moments that are sketched in such processes, of which each has every other point."""
    z, labels = wide_rows_and_labels()
    mine = torch.arange(len(z)) % dist.get_world_size() == dist.get_rank()
    collected = ClassSketch(4, 30, 3)

    def differing(covariances: Tensor, first: int = 0) -> Tensor:
        return precision_factor(covariances, first) * (1 + dist.get_rank() * 2.0**-50)

    with mock.patch.object(sketch, "precision_factor", differing):
        for _ in range(collected.passes):
            collected.update(z[mine], labels[mine])
            collected.end_pass()
    return collected.compute()._asdict()


class Own(nn.Module):
    """Somebody's own module with a head in it."""

    def __init__(self, kind: CovarianceType) -> None:
        super().__init__()
        rank = 3 if kind == "low_rank" else None
        head = EllipsHead(3, 4, 4, 8, covariance_type=kind, rank=rank, sync_batchnorm=False)
        self.part = nn.ModuleDict({"head": head})
        keep_from_broadcasts(self)


def broadcast_at_each_step(kind: CovarianceType) -> list[str]:
    """Names of what data-parallel training sends besides gradients."""
    return list(nn.parallel.DistributedDataParallel(Own(kind)).named_module_buffers)


def mean_gradient() -> Tensor:
    """The gradient of a mixture made trainable after its module was built, where process r has r + 1 as its own."""
    module = Own("full")
    ellips = module.part["head"].ellips
    ellips.fitted.fill_(True)
    ellips.trainable_()
    module.forward = lambda: ellips.means.sum() + sum(0 * p.sum() for p in module.parameters())
    wrapped = nn.parallel.DistributedDataParallel(module)  # has to outlive the backward pass
    (wrapped() * (dist.get_rank() + 1)).backward()
    return ellips.means.grad


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
    result |= {
        "gather": uneven_gather(),
        "moments": merged_moments(),
        "differing_fit": {kind: differing_fit(kind) for kind in get_args(CovarianceType)},
        "started": mixture_at_the_start(),
        "own_buffers": {kind: broadcast_at_each_step(kind) for kind in get_args(CovarianceType)},
        "differing_sketch": differing_sketch(),
        "mean_gradient": mean_gradient(),
    }
    torch.save(result, options.out / f"rank{result['rank']}.pt")


if __name__ == "__main__":
    main()
    close_process_group()
