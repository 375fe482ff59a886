"""CIFAR-10 in its own format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torchvision.datasets import CIFAR10

from ellips.encoders import FrozenEncoder
from ellips.splits import stratified_split
from ellips.validation import fraction

from .base import Split
from .encoded import EncodedDataModule
from .sources import ArraySource


class CIFAR10DataModule(EncodedDataModule):
    """CIFAR-10: 50,000 training and 10,000 test images of 32x32, ten classes, read by torchvision.

    Args:
        encoder: The frozen encoder.
        root: Folder that holds, or will hold, ``cifar-10-batches-py``.
        download: Let torchvision fetch the data where they are missing.
        val_fraction: Share of the training images set apart for validation, stratified, by ``seed``.
        **base_args: Of :class:`EncodedDataModule`.

    Raises:
        FileNotFoundError: At setup, if the data are missing or damaged.
    """

    def __init__(
        self,
        encoder: FrozenEncoder,
        root: str | Path = "data",
        *,
        download: bool = False,
        val_fraction: float = 0.1,
        **base_args: Any,
    ) -> None:
        super().__init__(encoder, **base_args)
        fraction(val_fraction=val_fraction)
        self.root = Path(root).expanduser()
        self.download = download
        self.val_fraction = val_fraction

    @property
    def class_names(self) -> list[str]:
        """The ten classes in the order of the files' labels."""
        return ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]

    def prepare_data(self) -> None:
        """Fetch the data once, if asked to."""
        if not self.download:
            return
        try:
            CIFAR10(self.root, download=True)
        except (OSError, RuntimeError) as error:
            raise FileNotFoundError(f"CIFAR-10 could not be downloaded ({error}); {self._cure()}") from error

    def make_source(self, split: Split) -> ArraySource:
        """Read a split into memory (at most 138 MB)."""
        try:
            data = CIFAR10(self.root, train=split != "test")
        except RuntimeError as error:
            raise FileNotFoundError(
                f"Expected CIFAR-10 in {(self.root / CIFAR10.base_folder).absolute()} but its files are missing or "
                f"damaged; set download: true, or {self._cure()}"
            ) from error
        if list(data.classes) != self.class_names:
            raise ValueError(f"Expected the classes {self.class_names} but {self.root} has {data.classes}.")
        images = torch.from_numpy(data.data).permute(0, 3, 1, 2)
        labels = torch.tensor(data.targets)
        if split != "test":
            rows = torch.from_numpy(stratified_split(data.targets, {"val": self.val_fraction}, self.seed)[split])
            images, labels = images[rows], labels[rows]
        return ArraySource(f"cifar10/{split}", images, labels.numpy())

    def _cure(self) -> str:
        return f"fetch {CIFAR10.url} and unpack it into {self.root.absolute()}."
