"""Another project's data and module: images of two kinds, and a head that certifies them."""

from __future__ import annotations

from collections.abc import Iterator

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from ellips.encoders import FrozenEncoder
from ellips.head import EllipsHead
from ellips.types import FeatureBatch, HeadOutput, ImageBatch

SIZE = 24


class Stream(IterableDataset[ImageBatch]):
    """Rows without a length."""

    def __init__(self, rows: list[ImageBatch]) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[ImageBatch]:
        return iter(self.rows)


class Blobs(L.LightningDataModule):
    """Images of two kinds through a linear encoder, in ordinary DataLoaders.

    Args:
        size: How many images there are.
        here: Whether this process has any of them to evaluate, in a loader whose length nobody knows; None: Lightning
            shares them out.
    """

    def __init__(self, size: int = SIZE, here: bool | None = None) -> None:
        super().__init__()
        self.here = here
        g = torch.Generator().manual_seed(0)
        self.label = torch.arange(size) % 2
        self.image = (0.35 * torch.rand(size, 1, 2, 2, generator=g) + 0.45 * self.label[:, None, None, None]).clamp(
            0, 1
        )
        self.label[:2] = 1 - self.label[:2]  # two that are classified wrongly
        self.encoder = FrozenEncoder(nn.Flatten(), in_channels=1, input_size=2)
        self.keep_images = False

    def loader(self) -> DataLoader:
        rows = [ImageBatch(*row) for row in zip(self.image, self.label, torch.arange(len(self.label)), strict=True)]
        return DataLoader(rows if self.here is None else Stream(rows if self.here else []), batch_size=3)

    train_dataloader = val_dataloader = test_dataloader = fit_dataloader = loader

    def on_after_batch_transfer(self, batch: ImageBatch, dataloader_idx: int) -> FeatureBatch:
        image = batch.image if self.keep_images else None
        return FeatureBatch(self.encoder(batch.image), batch.label, batch.index, image)


class Module(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        data = Blobs()
        self.head = EllipsHead(4, 2, latent_dim=None, shrinkage=0.3).fit(data.encoder(data.image), data.label)
        self.weight = nn.Parameter(torch.zeros(()))

    def training_step(self, batch: FeatureBatch, batch_idx: int) -> dict[str, Tensor]:
        return {"loss": self.weight**2}

    def validation_step(self, batch: FeatureBatch, batch_idx: int) -> HeadOutput:
        latent = self.head.latents(batch.feature)
        return HeadOutput(latent, self.head.ellips(latent), batch.label, batch.index, batch.image)

    test_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)
