"""A datamodule of ready-made features, for tests of the Lightning shell: no images, no encoder, nothing to wait for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler

from ellips.head import EllipsHead
from ellips.types import FeatureBatch


class Rows(Dataset[FeatureBatch]):
    """Gaussian classes in feature space."""

    def __init__(self, size: int, width: int, classes: int, seed: int) -> None:
        centers = 1.5 * torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
        generator = torch.Generator().manual_seed(seed)
        self.label = torch.randint(classes, (size,), generator=generator)
        self.feature = centers[self.label] + torch.randn(size, width, generator=generator)

    def __len__(self) -> int:
        return len(self.label)

    def __getitem__(self, index: int) -> FeatureBatch:
        return FeatureBatch(self.feature[index], self.label[index], torch.tensor(index))


class Share(DistributedSampler):  # type: ignore[type-arg]
    """Every row in exactly one process, unlike its base class, which pads; another order each epoch if shuffled."""

    def __init__(self, dataset: Dataset[FeatureBatch], shuffle: bool = False) -> None:
        active = dist.is_available() and dist.is_initialized()
        rank, world = (dist.get_rank(), dist.get_world_size()) if active else (0, 1)
        super().__init__(dataset, world, rank, shuffle=shuffle)

    def __iter__(self) -> Iterator[int]:
        order = torch.arange(len(self.dataset))
        if self.shuffle:
            order = torch.randperm(len(order), generator=torch.Generator().manual_seed(self.epoch))
        return iter(order[self.rank :: self.num_replicas].tolist())

    def __len__(self) -> int:
        return len(range(self.rank, len(self.dataset), self.num_replicas))


def stack(rows: list[FeatureBatch]) -> FeatureBatch:
    """Stack rows into a batch."""
    columns = list(zip(*[row[:3] for row in rows], strict=True))
    return FeatureBatch(*(torch.stack(column) for column in columns))


class FeatureData(L.LightningDataModule):
    """Train, validation and test splits of `Rows`, with what a real datamodule offers to GenEllips."""

    def __init__(
        self,
        width: int = 10,
        classes: int = 4,
        sizes: tuple[int, int, int] = (240, 90, 110),
        batch_size: int = 48,
        encoder: str = "one",
        shuffle: bool = False,
    ) -> None:
        super().__init__()
        self.num_classes, self.feature_dim, self.batch_size = classes, width, batch_size
        self.class_names = [str(k) for k in range(classes)]
        self.encoder_name = encoder
        self.shuffle = shuffle
        self.train, self.val, self.test = (Rows(n, width, classes, seed) for seed, n in enumerate(sizes))

    def encoder_fingerprint(self) -> dict[str, Any]:
        return {"architecture": self.encoder_name, "weights": "none"}

    def _loader(self, rows: Rows, sampler: Sampler[int]) -> DataLoader[FeatureBatch]:
        return DataLoader(rows, batch_size=self.batch_size, sampler=sampler, collate_fn=stack)

    def train_dataloader(self) -> DataLoader[FeatureBatch]:
        return self._loader(self.train, Share(self.train, self.shuffle))

    def fit_dataloader(self) -> DataLoader[FeatureBatch]:
        return self._loader(self.train, Share(self.train))

    def val_dataloader(self) -> DataLoader[FeatureBatch]:
        return self._loader(self.val, Share(self.val))

    def test_dataloader(self) -> DataLoader[FeatureBatch]:
        return self._loader(self.test, Share(self.test))

    def predict_dataloader(self) -> DataLoader[FeatureBatch]:
        return self.test_dataloader()


def latents_of(head: EllipsHead, rows: Rows) -> Tensor:
    """Eval-mode latents of a split."""
    with torch.no_grad():
        return head.eval().latents(rows.feature)
