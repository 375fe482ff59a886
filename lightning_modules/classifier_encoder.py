"""Training of encoders with a linear classifier, on images that are changed in some way."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch.utilities.types import STEP_OUTPUT
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics.classification import MulticlassAccuracy

from ellips.encoders import FrozenEncoder
from ellips.encoders.augmentation import flip_and_shift, step_generator
from ellips.encoders.weights import file_digest
from ellips.files import replacing
from ellips.types import FeatureBatch, ImageBatch
from ellips.validation import at_least, fraction, one_of, positive

from .encoder_training import EncoderTraining, images_of


class ClassifierEncoderTraining(EncoderTraining):
    """Trains an encoder with a linear classifier by cross-entropy on images that a subclass changes.

    At the end of fit ``<export_name>.safetensors`` holds the backbone, for :class:`ellips.FrozenEncoder` with the same
    ``model``; ``<export_name>-head.safetensors`` the linear classifier, for :class:`ellips.encoders.LinearHead`.

    Logged: ``train/loss``; ``val/accuracy`` of images as they are and ``val/<change>_accuracy`` of changed ones.

    Args:
        num_classes: K (linked from the datamodule in ``train_encoder.py``).
        encoder: The encoder as it will be used, frozen; training starts from its weights (``weights: random``, or
            pretrained ones) and goes through its own resizing and normalisation.
        optimizer: ``"sgd"`` (with Nesterov's momentum 0.9) or ``"adamw"``.
        learning_rate: Peak of the one-cycle schedule.
        weight_decay: Of all weights but biases and normalisations.
        label_smoothing: Share of the label that is spread over all classes.
        flip: Mirror training images left to right at random.
        shift: Move training images by up to so many pixels.
        compile: Let torch.compile translate the backbone.
        export_name: Stem of the files written to the run folder at the end of fit.

    Attributes:
        change: What a subclass does to images, as an adjective, for the metric's name.

    Raises:
        ValueError: If an argument is out of its range.
    """

    packages: ClassVar[tuple[str, ...]] = ("torch", "lightning", "timm")
    change: ClassVar[str]

    def __init__(
        self,
        num_classes: int,
        encoder: FrozenEncoder,
        optimizer: Literal["sgd", "adamw"] = "sgd",
        learning_rate: float = 0.1,
        weight_decay: float = 5e-4,
        label_smoothing: float = 0.0,
        flip: bool = True,
        shift: int = 4,
        compile: bool = False,
        export_name: str = "encoder",
    ) -> None:
        super().__init__()
        at_least(0, weight_decay=weight_decay, shift=shift)
        positive(learning_rate=learning_rate)
        fraction(label_smoothing=label_smoothing)
        one_of(("sgd", "adamw"), optimizer=optimizer)
        self.recipe = {
            "optimizer": optimizer,
            "learning_rate": learning_rate,
            "weight_decay": weight_decay,
            "label_smoothing": label_smoothing,
            "flip": flip,
            "shift": shift,
            **getattr(encoder.backbone, "settings", {}),
        }
        self.start = encoder.fingerprint()
        # Its parts, not itself: a FrozenEncoder stays in eval mode whatever happens.
        self.preprocess = encoder.preprocess.train()
        self.backbone = encoder.backbone.requires_grad_(True).train()
        self.backbone.to(memory_format=torch.channels_last)
        self.head = nn.Linear(encoder.feature_dim, num_classes)
        self.flip = flip
        self.shift = shift
        self.label_smoothing = label_smoothing
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.export_name = export_name
        self.accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.changed_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        if compile:
            self.backbone.compile()

    def forward(self, images: Tensor) -> Tensor:
        """Return scores ``(N, K)`` of images ``(N, C, H, W)`` with values in [0, 1]."""
        scores: Tensor = self.head(self.backbone(self.preprocess(images)))
        return scores.float()

    @abstractmethod
    def changed(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Return images ``(N, C, H, W)`` as the network shall see them in training.

        Args:
            images: Shape ``(N, C, H, W)``, values in [0, 1].
            labels: Shape ``(N,)``.
            generator: On the images' device, of this step alone.
        """

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the cross-entropy of images with their labels."""
        return functional.cross_entropy(self(images), labels, label_smoothing=self.label_smoothing)

    def training_step(self, batch: FeatureBatch | ImageBatch, batch_idx: int) -> STEP_OUTPUT:
        """Return the cross-entropy of moved, mirrored and changed images."""
        generator = step_generator(self.device, self.seed, self.global_step, self.global_rank)
        images = flip_and_shift(images_of(batch), self.flip, self.shift, generator)
        loss = self.loss(self.changed(images, batch.label, generator), batch.label)
        self.log("train/loss", loss.detach(), prog_bar=True)
        return loss

    def validation_step(self, batch: FeatureBatch | ImageBatch, batch_idx: int) -> None:
        """Count what is right of images as they are and of changed ones; draws are those of every validation."""
        images = images_of(batch)
        generator = step_generator(self.device, batch_idx, self.global_rank)
        self.accuracy.update(self(images), batch.label)
        self.changed_accuracy.update(self(self.changed(images, batch.label, generator)), batch.label)
        self.log("val/accuracy", self.accuracy, prog_bar=True)
        self.log(f"val/{self.change}_accuracy", self.changed_accuracy, prog_bar=True)

    def configure_optimizers(self) -> Any:  # noqa: ANN401 - one of the many types that Lightning takes
        """Return the optimiser with a one-cycle schedule."""
        return self.one_cycle(self._optimizer())

    def _optimizer(self) -> torch.optim.Optimizer:
        parameters = [*self.backbone.parameters(), *self.head.parameters()]
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        if self.optimizer == "sgd":
            return torch.optim.SGD(groups, lr=self.learning_rate, momentum=0.9, nesterov=True)
        return torch.optim.AdamW(groups, lr=self.learning_rate)

    def export(self, path: Path) -> dict[str, Any]:
        """Write the backbone, and the linear classifier beside it."""
        head = path.with_stem(f"{path.stem}-head")
        _save(self.backbone.state_dict(), path)
        _save(self.head.state_dict(), head)
        return {
            "architecture": self.start["architecture"],
            "preprocessing": self.start["preprocessing"],
            "feature_dim": self.head.in_features,
            "started_from": self.start["weights"],
            "head": {"file": head.name, "sha256": file_digest(head), "num_classes": self.head.out_features},
        }


def _save(state: Mapping[str, Tensor], path: Path) -> None:
    with replacing(path) as partial:
        # save_file would let nobody but the owner read it.
        partial.write_bytes(save({name: value.detach().cpu().contiguous() for name, value in state.items()}))
