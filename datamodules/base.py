"""What all datamodules share: splits, loaders, and encoding on the device."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Literal, get_args

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ellips.encoders import FrozenEncoder
from ellips.types import FeatureBatch, ImageBatch

from .sampling import BalancedBatches, process_rank
from .sources import ImageDataset, ImageSource

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


class EncodedDataModule(L.LightningDataModule):
    """Images stream in, features come out.

    Loaders yield :class:`~ellips.types.ImageBatch` (values in [0, 1] at dataset resolution);
    :meth:`on_after_batch_transfer` turns it, on the device, into a :class:`~ellips.types.FeatureBatch`. A data set is a
    subclass with :attr:`class_names` and :meth:`make_source`. The test split takes part in no choice.

    Args:
        encoder: The frozen encoder; the datamodule owns it.
        batch_size: Largest training batch of one process.
        eval_batch_size: Largest batch of the other loaders; None: like ``batch_size``.
        num_workers: Processes that read images; 0 reads in the main process.
        seed: Of the training order.
        keep_images: Hand the images on beside the features, which certificates in input space need.
        augment: Called with each training image ``(C, H, W)`` in [0, 1]; None: no augmentation. The Gaussians are
            fitted, and everything is evaluated, without it.

    Raises:
        ValueError: If a size or a count is out of range.
    """

    def __init__(
        self,
        encoder: FrozenEncoder,
        *,
        batch_size: int = 128,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        keep_images: bool = False,
        augment: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        sizes = {"batch_size": batch_size, "eval_batch_size": eval_batch_size}
        if wrong := {name: size for name, size in sizes.items() if size is not None and size < 1}:
            raise ValueError(f"Expected batch sizes to be at least 1 but got {wrong}.")
        if num_workers < 0:
            raise ValueError(f"Expected `num_workers` to be at least 0 but got {num_workers}.")
        self.encoder = encoder
        self.batch_size = batch_size
        self.eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.keep_images = keep_images
        self.augment = augment
        self._sources: dict[Split, ImageSource] = {}

    @property
    @abstractmethod
    def class_names(self) -> list[str]:
        """Names of the classes, in the order of their labels; known before :meth:`setup`."""

    @abstractmethod
    def make_source(self, split: Split) -> ImageSource:
        """Open the images of a split; called once."""

    @property
    def num_classes(self) -> int:
        """Number of classes; known before :meth:`setup`."""
        return len(self.class_names)

    @property
    def feature_dim(self) -> int:
        """Width of the features; known before :meth:`setup`."""
        return self.encoder.feature_dim

    def encoder_fingerprint(self) -> dict[str, str]:
        """What the features depend on: architecture, weights digest, preprocessing."""
        return self.encoder.fingerprint()

    def source(self, split: Split) -> ImageSource:
        """The images of a split, opened at the first call.

        Raises:
            ValueError: If there is no such split.
        """
        if split not in SPLITS:
            raise ValueError(f"Expected `split` to be one of {SPLITS} but got {split!r}.")
        if split not in self._sources:
            self._sources[split] = self.make_source(split)
        return self._sources[split]

    def setup(self, stage: str) -> None:
        """Open the splits that a stage reads, so that what is wrong with them is said before anything runs."""
        for split in splits_of(stage):
            self.source(split)

    def train_dataloader(self) -> DataLoader[ImageBatch]:
        """Training split, shuffled, with augmentation if there is one."""
        return self._loader("train", self.batch_size, shuffle=True, augment=self.augment)

    def fit_dataloader(self) -> DataLoader[ImageBatch]:
        """Training split in order, without augmentation, every image once: what Gaussians are fitted to."""
        return self._loader("train", self.eval_batch_size)

    def val_dataloader(self) -> DataLoader[ImageBatch]:
        """Validation split in order, every image once over all processes."""
        return self._loader("val", self.eval_batch_size)

    def test_dataloader(self) -> DataLoader[ImageBatch]:
        """Test split in order, every image once over all processes."""
        return self._loader("test", self.eval_batch_size)

    def predict_dataloader(self) -> DataLoader[ImageBatch]:
        """Return the same as :meth:`test_dataloader`."""
        return self.test_dataloader()

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:  # noqa: ANN401  (Lightning's signature)
        """Encode images on the device they are on; anything but an :class:`ImageBatch` passes unchanged."""
        del dataloader_idx
        return self.encode(batch) if isinstance(batch, ImageBatch) else batch

    def encode(self, batch: ImageBatch) -> FeatureBatch:
        """Encode a batch where it is, under the trainer's precision."""
        device = batch.image.device
        self.encoder.to(device)
        if len(batch.image) == 0:
            features = torch.zeros(0, self.feature_dim, device=device)
        else:
            with torch.autocast(device.type, dtype=self._half_type(), enabled=self._half_type() is not None):
                features = self.encoder.encode(batch.image)
        return FeatureBatch(features, batch.label, batch.index, batch.image if self.keep_images else None)

    def _half_type(self) -> torch.dtype | None:
        # The encoder's weights stay float32 under "16-true" and "bf16-true" too: its fingerprint must not change.
        precision = str(self.trainer.precision) if self.trainer is not None else "32-true"
        return {"16": torch.float16, "bf16": torch.bfloat16}.get(precision.partition("-")[0])

    def _loader(
        self,
        split: Split,
        batch_size: int,
        *,
        shuffle: bool = False,
        augment: Callable[[Tensor], Tensor] | None = None,
    ) -> DataLoader[ImageBatch]:
        source = self.source(split)
        world, rank = process_rank(self.trainer)
        sampler = BalancedBatches(
            len(source), batch_size, shuffle=shuffle, seed=self.seed, num_replicas=world, rank=rank
        )
        return DataLoader(
            ImageDataset(source, augment),
            sampler=sampler,
            batch_size=None,  # the sampler yields whole batches
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )


def splits_of(stage: str | None) -> tuple[Split, ...]:
    """The splits that a Lightning stage reads; None: all of them."""
    match stage:
        case "fit":
            return ("train", "val")
        case "validate":
            return ("val",)
        case "test" | "predict":
            return ("test",)
        case None:
            return SPLITS
        case _:
            raise ValueError(f"Expected a Lightning stage but got {stage!r}.")
