"""A 1-Lipschitz encoder trained in two processes: the same matrices as in one, and still orthogonal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, StackDataset

from ellips.encoders import LipNeXtArchitecture
from ellips.encoders.orthogonal import orthogonality_error
from ellips.losses import CertifiedRadius
from ellips.types import ImageBatch
from lightning_modules.lipschitz_encoder import LipschitzEncoderTraining
from tests.processes import run_together

GLOBAL_BATCH, IMAGES = 24, 120


class Images(L.LightningDataModule):
    """Noise with a class's own pattern, always in the same order."""

    def __init__(self, batch_size: int) -> None:
        super().__init__()
        self.batch_size = batch_size

    def train_dataloader(self) -> DataLoader[Any]:
        generator = torch.Generator().manual_seed(5)
        labels = torch.arange(IMAGES) % 3
        patterns = torch.rand(3, 1, 4, 4, generator=generator)
        images = (patterns[labels] + 0.2 * torch.randn(IMAGES, 1, 4, 4, generator=generator)).clamp(0, 1)
        rows = StackDataset(images, labels, torch.arange(IMAGES))
        sampler = DistributedSampler(rows, shuffle=False) if dist.is_initialized() else None
        return DataLoader(rows, self.batch_size, sampler=sampler, collate_fn=collate)


def collate(rows: list[tuple[Tensor, Tensor, Tensor]]) -> ImageBatch:
    return ImageBatch(*(torch.stack(column) for column in zip(*rows, strict=True)))


def train(folder: Path, world: int) -> None:
    """Two epochs of five steps; every process writes what it ends with."""
    torch.manual_seed(0)
    module = LipschitzEncoderTraining(
        3,
        LipNeXtArchitecture((1, 4, 4), (2,), (10,), (2,), 0.5, 4),
        objective="emma",
        latent_losses=[CertifiedRadius(0.5, weight=0.5)],
        shrinkage=0.4,
        noise=0.0,  # noise belongs to a process
        learning_rate=0.05,
    )
    before = [matrix.detach().clone() for matrix in module.architecture.manifold(module.encoder)]
    options = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = L.Trainer(
        accelerator="cpu", devices=world, strategy="ddp" if world > 1 else "auto", max_epochs=2, logger=False,
        default_root_dir=folder, use_distributed_sampler=False, **options,
    )  # fmt: skip
    trainer.fit(module, Images(GLOBAL_BATCH // world))
    assert trainer.global_step == 2 * IMAGES // GLOBAL_BATCH
    matrices = module.architecture.manifold(module.encoder)
    assert all((now - then).abs().max() > 0.05 for now, then in zip(matrices, before, strict=True))
    assert all(orthogonality_error(matrix) < 1e-4 for matrix in matrices)
    torch.save(module.state_dict(), folder / f"state-{world}-{trainer.global_rank}.pt")


def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    train(tmp_path, 1)
    run_together(train, tmp_path, 2)
    alone, *ranks = (torch.load(tmp_path / f"state-{name}.pt", weights_only=True) for name in ("1-0", "2-0", "2-1"))
    for name, expected in alone.items():
        torch.testing.assert_close(
            ranks[0][name], expected, rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
        )
        assert torch.equal(ranks[0][name], ranks[1][name]), name  # to the last bit: nothing drifts apart
