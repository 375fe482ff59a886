"""Checkpoints that are there whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from ellips.checkpoints import refuse_damage
from ellips.files import replacing


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes each checkpoint beside its target, flushes it and renames it; reads it as data, if it is whole.

    Lightning's own writes to another folder first and then copies: a kill or a full disk in that moment leaves a file
    that is cut off in the place of the one before. The commands of this project use this one; in a program of your own:
    ``Trainer(plugins=[AtomicCheckpointIO()])``. Addresses of remote storage are left to Lightning's.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:  # noqa: ANN401 - Lightning's
        """Write a checkpoint.

        Raises:
            OSError: If there is no room, or no permission; the file that was there before is still there.
        """
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with replacing(Path(path)) as partial:
            torch.save(checkpoint, partial)

    def load_checkpoint(
        self,
        path: Any,  # noqa: ANN401 - Lightning's
        map_location: Any | None = lambda storage, _: storage,  # noqa: ANN401
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a checkpoint as data only, unless ``weights_only`` is False.

        Raises:
            ValueError: If it is damaged; it is named, and so is an intact one.
        """
        if "://" not in str(path) and Path(path).is_file():
            refuse_damage(Path(path))
        only = True if weights_only is None else weights_only
        found: dict[str, Any] = super().load_checkpoint(path, map_location, only)
        return found
