"""Training of 1-Lipschitz encoders from deel-torchlip's layers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from ellips.encoders.lipschitz import LipschitzArchitecture, LipschitzEncoder, export_encoder
from ellips.files import replacing
from ellips.metrics import CertifiedAccuracy
from ellips.types import FeatureBatch, ImageBatch
from ellips.validation import at_least, positive

from .encoder_training import EncoderTraining, images_of


class LipschitzEncoderTraining(EncoderTraining):
    """Trains a 1-Lipschitz encoder, and writes it in plain layers at the end of fit.

    Classes are told apart by fixed directions, the corners of a regular simplex: the cosine part of cross-entropy with
    a margin, on 1-Lipschitz features, so that the margin is a distance between images. The encoder that comes out is
    for :class:`ellips.encoders.LipschitzEncoder`, with Gaussians fitted to its features.

    Logged: ``train/loss``; ``val/accuracy`` and ``val/certified_accuracy/linear@<radius>`` of the simplex classifier.

    Args:
        num_classes: K (linked from the datamodule in ``train_encoder.py``).
        image_shape: Channels, height and width of the images.
        channels: Channels of the convolutions; empty: none.
        widths: Widths of the linear layers.
        feature_dim: Width of the features, at least ``num_classes - 1``.
        temperature: Factor of the scores before the softmax; the larger, the more the closest images count.
        margin: Distance by which a score is asked to lead; it sets accuracy against radius.
        noise: Standard deviation of Gaussian noise on the [0, 1] pixels of training images.
        learning_rate: Peak of Adam's one-cycle schedule.
        radii: Radii above 0, in ascending order, at which validation logs the certified accuracy.
        export_name: Stem of the two files written to the run folder at the end of fit.

    Raises:
        ValueError: If there are fewer features than a simplex needs, or an argument is out of its range.
    """

    packages: ClassVar[tuple[str, ...]] = ("torch", "lightning", "deel-torchlip")
    directions: Tensor

    def __init__(
        self,
        num_classes: int,
        image_shape: tuple[int, int, int] = (1, 8, 8),
        channels: Sequence[int] = (),
        widths: Sequence[int] = (256, 256),
        feature_dim: int = 16,
        temperature: float = 10.0,
        margin: float = 1.0,
        noise: float = 0.15,
        learning_rate: float = 5e-3,
        radii: Sequence[float] = (0.25, 0.5, 1.0),
        export_name: str = "encoder",
    ) -> None:
        super().__init__()
        if feature_dim < num_classes - 1:
            raise ValueError(
                f"Expected `feature_dim` to be at least {num_classes - 1}, which a simplex of {num_classes} corners "
                f"needs, but got {feature_dim}."
            )
        positive(temperature=temperature)
        at_least(0, noise=noise)
        self.recipe = {
            "image_shape": list(image_shape),
            "channels": list(channels),
            "widths": list(widths),
            "feature_dim": feature_dim,
            "temperature": temperature,
            "margin": margin,
            "noise": noise,
            "learning_rate": learning_rate,
        }
        self.save_hyperparameters()
        self.architecture = LipschitzArchitecture(image_shape, tuple(channels), tuple(widths), feature_dim)
        self.encoder = self.architecture.trainable()
        self.register_buffer("directions", simplex(num_classes, feature_dim))
        self.temperature = temperature
        self.margin = margin
        self.noise = noise
        self.learning_rate = learning_rate
        self.radii = tuple(radii)
        self.export_name = export_name
        self.certified = CertifiedAccuracy((0.0, *self.radii))

    def forward(self, images: Tensor) -> Tensor:
        """Return scores ``(N, K)`` of images ``(N, C, H, W)``."""
        scores: Tensor = self.encoder(images) @ self.directions.T
        return scores

    def training_step(self, batch: FeatureBatch | ImageBatch, batch_idx: int) -> Tensor:
        """Return the cross-entropy with margin of noisy images."""
        images = images_of(batch)
        scores = self(images + self.noise * torch.randn_like(images))
        lead = self.margin * functional.one_hot(batch.label, scores.shape[1])
        loss = functional.cross_entropy(self.temperature * (scores - lead), batch.label)
        self.log("train/loss", loss.detach(), prog_bar=True)
        return loss

    def validation_step(self, batch: FeatureBatch | ImageBatch, batch_idx: int) -> None:
        """Count what the simplex classifier gets right, and how far around."""
        best = self(images_of(batch)).topk(2, dim=1)
        # Scores are 1-Lipschitz along unit directions, their differences along those of the simplex's edges.
        radius = (best.values[:, 0] - best.values[:, 1]) / torch.dist(self.directions[0], self.directions[1])
        self.certified.update(radius, best.indices[:, 0], batch.label)

    def on_validation_epoch_end(self) -> None:
        """Log clean and certified accuracy of the simplex classifier."""
        names = ("accuracy", *(f"certified_accuracy/linear@{limit:g}" for limit in self.radii))
        for name, value in zip(names, self.certified.compute(), strict=True):  # of all processes
            self.log(f"val/{name}", value, prog_bar=name == "accuracy", rank_zero_only=False, sync_dist=False)
        self.certified.reset()

    def configure_optimizers(self) -> Any:  # noqa: ANN401 - one of the many types that Lightning takes
        """Return Adam with a one-cycle schedule."""
        optimizer = torch.optim.Adam(self.encoder.parameters(), lr=self.learning_rate)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.learning_rate, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def export(self, path: Path) -> dict[str, Any]:
        """Write the encoder in plain layers and prove it; the record has both constants."""
        self.encoder.eval()
        with replacing(path) as partial:
            before = export_encoder(self.encoder, self.architecture, partial)
        return {
            "architecture": "ellips.encoders.LipschitzEncoder",
            "proven_constant": LipschitzEncoder(path).constant,
            "proven_constant_before_division": before,
        }


def simplex(corners: int, dim: int) -> Tensor:
    """Return unit vectors with equal angles between them, the widest there are; shape ``(corners, dim)``."""
    centred = torch.eye(corners, dtype=torch.float64) - 1 / corners
    # The centred corners span corners - 1 dimensions; their coordinates in an orthonormal basis of that span.
    basis = torch.linalg.svd(centred).U[:, : corners - 1]
    coordinates = functional.normalize(centred @ basis, dim=1)
    return functional.pad(coordinates, (0, dim - corners + 1)).float()
