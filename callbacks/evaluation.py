"""What the callbacks on evaluated latents have in common: which module they need, when they start, count and end."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Literal

import lightning as L

from ellips.head import EllipsHead
from ellips.types import HeadOutput

Stage = Literal["val", "test"]


class EvaluationCallback(L.Callback):
    """Reads the :class:`ellips.types.HeadOutput` that the evaluation steps of a module with a ``head`` return.

    The head is an :class:`ellips.EllipsHead`. Validations as a sanity check before a fit are passed over.
    """

    @abstractmethod
    def start(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: Stage) -> None:
        """Begin an evaluation."""

    @abstractmethod
    def count(self, trainer: L.Trainer, pl_module: L.LightningModule, output: HeadOutput, stage: Stage) -> None:
        """Take in a batch."""

    @abstractmethod
    def finish(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: Stage) -> None:
        """End an evaluation; every process calls it."""

    def due(self, trainer: L.Trainer) -> bool:
        """Whether this validation counts."""
        return not trainer.sanity_checking

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Check that the module has a head."""
        head_of(pl_module)

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin."""
        if self.due(trainer):
            self.start(trainer, pl_module, "val")

    def on_test_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin."""
        self.start(trainer, pl_module, "test")

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,  # noqa: ANN401 - Lightning's signature
        batch: Any,  # noqa: ANN401
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Take in a batch."""
        if self.due(trainer):
            self.count(trainer, pl_module, head_output(outputs), "val")

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,  # noqa: ANN401 - Lightning's signature
        batch: Any,  # noqa: ANN401
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Take in a batch."""
        self.count(trainer, pl_module, head_output(outputs), "test")

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """End."""
        if self.due(trainer):
            self.finish(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """End."""
        self.finish(trainer, pl_module, "test")


def head_of(pl_module: L.LightningModule) -> EllipsHead:
    """Return a module's head.

    Raises:
        TypeError: If it has none.
    """
    head = getattr(pl_module, "head", None)
    if not isinstance(head, EllipsHead):
        raise TypeError(
            f"Expected a module with a `head` (an EllipsHead) but got {type(pl_module).__name__} without one."
        )
    return head


def head_output(outputs: object) -> HeadOutput:
    """Return what a step returned.

    Raises:
        TypeError: If it is no :class:`ellips.types.HeadOutput`.
    """
    if not isinstance(outputs, HeadOutput):
        raise TypeError(f"Expected the step to return a HeadOutput but got {type(outputs).__name__}.")
    return outputs
