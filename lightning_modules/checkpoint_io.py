"""Checkpoints that go straight into their file."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from ellips.files import replacing


class StreamedCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint as Lightning does, but not into memory first: a mixture of many classes is as large as that.

    The file is there whole or not at all. Where a path is no local one, Lightning's own way is taken.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:  # noqa: ANN401 - as Lightning's
        """See :class:`lightning.pytorch.plugins.CheckpointIO`."""
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with replacing(path) as partial:
            torch.save(checkpoint, partial)


def stream_checkpoints(trainer: L.Trainer) -> None:
    """Let a trainer write checkpoints in this way, unless somebody chose another."""
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = StreamedCheckpointIO()
