"""What all datamodules share: splits, and loaders that count every row once over all processes."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Literal, get_args

import lightning as L
import torch
from torch.utils.data import DataLoader

from ellips.validation import at_least

from .class_batches import ClassBatches
from .resuming import ResumableLoader
from .sampling import BalancedBatches, RowsDataset, process_rank

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

Part = Literal["train", "val", "test", "votes"]
"""What is encoded: the splits, and ``"votes"``, noisy copies of the validation images."""

PARTS: tuple[Part, ...] = get_args(Part)


class SplitDataModule(L.LightningDataModule):
    """Three splits, with loaders for training, for the exact fit of the Gaussians and for evaluation.

    A data set is a subclass with :attr:`class_names`, :attr:`feature_dim` and :meth:`dataset`; one that encodes images
    derives from :class:`EncodedDataModule`. The test split takes part in no choice.

    Args:
        batch_size: Largest training batch of one process.
        eval_batch_size: Largest batch of the other loaders; None: like ``batch_size``.
        num_workers: Processes that read; 0 reads in the main process.
        seed: Of the training order, and of the split where there is one to make.
        images_per_class: Make each global training batch of fewer classes, with so many images of each: for more
            classes than a batch can hold several images of (:class:`~datamodules.class_batches.ClassBatches`). None:
            shuffled batches.

    Raises:
        ValueError: If a size or a count is out of range.
    """

    def __init__(
        self,
        *,
        batch_size: int = 128,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        images_per_class: int | None = None,
    ) -> None:
        super().__init__()
        at_least(1, batch_size=batch_size, eval_batch_size=eval_batch_size, images_per_class=images_per_class)
        at_least(0, num_workers=num_workers)
        self.batch_size = batch_size
        self.eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.images_per_class = images_per_class

    @property
    @abstractmethod
    def class_names(self) -> list[str]:
        """Names of the classes, in the order of their labels; known before :meth:`setup`."""

    @property
    @abstractmethod
    def feature_dim(self) -> int:
        """Width of the features; known before :meth:`setup`."""

    @abstractmethod
    def dataset(self, split: Split) -> RowsDataset[Any]:
        """Open a split, without augmentation; what is wrong with it is said here."""

    @property
    def num_classes(self) -> int:
        """Number of classes; known before :meth:`setup`."""
        return len(self.class_names)

    def description(self) -> dict[str, Any]:
        """What a classifier must know of its images, as plain values, for its checkpoint: the names of the classes."""
        return {"class_names": list(self.class_names)}

    def training_dataset(self) -> RowsDataset[Any]:
        """Open the training split as it is trained on: with augmentation if there is one."""
        return self.dataset("train")

    def workers_for(self, dataset: RowsDataset[Any]) -> int:
        """How many processes read a data set."""
        del dataset
        return self.num_workers

    def setup(self, stage: str) -> None:
        """Open the splits that a stage reads, so that what is wrong is said before anything runs."""
        for split in splits_of(stage):
            self.dataset(split)

    def train_dataloader(self) -> DataLoader[Any]:
        """Training split, shuffled or in batches by class, with augmentation if there is one."""
        return self._loader(self.training_dataset(), self.batch_size, shuffle=True)

    def fit_dataloader(self) -> DataLoader[Any]:
        """Training split in order, without augmentation, every row once: what Gaussians are fitted to."""
        return self._loader(self.dataset("train"), self.eval_batch_size)

    def val_dataloader(self) -> DataLoader[Any]:
        """Validation split in order, every row once over all processes."""
        return self._loader(self.dataset("val"), self.eval_batch_size)

    def test_dataloader(self) -> DataLoader[Any]:
        """Test split in order, every row once over all processes."""
        return self._loader(self.dataset("test"), self.eval_batch_size)

    def predict_dataloader(self) -> DataLoader[Any]:
        """Return the same as :meth:`test_dataloader`."""
        return self.test_dataloader()

    def _loader(
        self, dataset: RowsDataset[Any], batch_size: int, *, shuffle: bool = False, copies: int = 1
    ) -> DataLoader[Any]:
        world, rank = process_rank(self.trainer)
        where = {"seed": self.seed, "num_replicas": world, "rank": rank, "copies": copies}
        order: BalancedBatches | ClassBatches
        if shuffle and self.images_per_class is not None:
            order = ClassBatches(dataset.labels, batch_size, self.images_per_class, **where)
        else:
            order = BalancedBatches(len(dataset), batch_size, shuffle=shuffle, **where)
        workers = self.workers_for(dataset)
        return ResumableLoader(
            dataset,
            sampler=order,
            batch_size=None,  # the sampler yields whole batches
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
        )


def splits_of(stage: str | None) -> tuple[Split, ...]:
    """Return the splits that a Lightning stage reads; None: all of them.

    Raises:
        ValueError: If there is no such stage.
    """
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
