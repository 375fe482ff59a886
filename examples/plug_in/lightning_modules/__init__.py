"""The model of this project: its own encoder, trained with its own loss, and an EllipsHead on top."""

import lightning as L
import torch
from torch import Tensor, nn

from ellips import EllipsHead
from ellips.head import keep_from_broadcasts
from ellips.types import HeadOutput


class MyClassifier(L.LightningModule):
    """Encoder and head are trained together; the Gaussians are fitted before each evaluation."""

    def __init__(self, num_classes: int, width: int = 64) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU())
        self.head = EllipsHead(width, num_classes, latent_dim=8, hidden_dim=32, shrinkage=0.1)
        self.linear = nn.Linear(8, num_classes)
        keep_from_broadcasts(self)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        image, label, _ = batch
        loss = nn.functional.cross_entropy(self.linear(self.head.latents(self.encoder(image))), label)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def fit_gaussians(self) -> None:
        """One pass over the training data. Several processes look at all of it here, which gives the same Gaussians."""
        self.head.reset()
        with torch.no_grad():
            for batch in self.trainer.datamodule.loader("train"):
                image, label, _ = self.transfer_batch_to_device(batch, self.device, 0)
                self.head.update(self.encoder(image), label)
        self.head.finalize()

    def on_validation_start(self) -> None:
        self.fit_gaussians()

    def evaluate(self, batch: list[Tensor], stage: str) -> HeadOutput:
        """What ellips' callbacks read; see the docstring of HeadOutput."""
        image, label, index = batch
        latent = self.head.latents(self.encoder(image))
        scores = self.head.ellips(latent)
        accuracy = (scores.argmax(1) == label).float().mean()
        self.log(f"{stage}/my_accuracy", accuracy, sync_dist=True, batch_size=len(label))
        return HeadOutput(latent, scores, label, index, image)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> HeadOutput:
        return self.evaluate(batch, "val")

    def test_step(self, batch: list[Tensor], batch_idx: int) -> HeadOutput:
        return self.evaluate(batch, "test")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)
