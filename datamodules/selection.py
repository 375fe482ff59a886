"""Some images of a split, in batches that do not depend on how many processes share them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from torch.utils.data import DataLoader, Dataset

from ellips.types import ImageBatch
from ellips.validation import at_least, one_of, validate_pixels

from .base import SPLITS, Split
from .encoded import EncodedDataModule
from .sampling import process_rank
from .sources import ImageDataset

_LOADERS = {"train": "fit_dataloader", "val": "val_dataloader", "test": "test_dataloader"}
_STAGES = {"train": "fit", "val": "validate", "test": "test"}


class SelectionDataModule(L.LightningDataModule):
    """Streams the images of one split of another datamodule, every ``skip``-th and at most ``max_images`` of them.

    The batches are fixed by the selection alone: a process takes every n-th *batch*, and a batch that was done before
    is left out as a whole. Floating-point results that depend on which images share a batch are therefore the same for
    any number of processes and after any interruption.

    Args:
        datamodule: Where the images are; prepared and set up here.
        split: ``"train"``, ``"val"`` or ``"test"``.
        skip: Take every ``skip``-th image: positions 0, skip, 2·skip and so on.
        max_images: Take at most so many, counted after skipping; None: all.
        batch_size: Images per batch.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        datamodule: L.LightningDataModule,
        split: Split = "test",
        skip: int = 1,
        max_images: int | None = None,
        batch_size: int = 32,
    ) -> None:
        super().__init__()
        one_of(SPLITS, split=split)
        at_least(1, skip=skip, max_images=max_images, batch_size=batch_size)
        datamodule.prepare_data()
        self.dataset: Dataset[ImageBatch]
        if isinstance(datamodule, EncodedDataModule):
            # The images themselves, also where a cache of features exists: certificates are about images.
            self.dataset = ImageDataset(datamodule.source(split))
            self.num_workers = datamodule.num_workers
        else:
            datamodule.setup(_STAGES[split])
            loader = getattr(datamodule, _LOADERS[split])()
            self.dataset = _ByRows(loader)
            self.num_workers = loader.num_workers
        self.batch_size = batch_size
        self.indices = list(range(0, len(self.dataset), skip))[:max_images]
        self.done: set[int] = set()

    def batches(self) -> list[list[int]]:
        """Return the positions of each batch that is not done yet, over all processes."""
        chunks = [self.indices[i : i + self.batch_size] for i in range(0, len(self.indices), self.batch_size)]
        return [chunk for chunk in chunks if not self.done.issuperset(chunk)]

    def file(self, row: int) -> Path | None:
        """Return the file of an image, or None where it has no file of its own."""
        return self.dataset.source.path(row) if isinstance(self.dataset, ImageDataset) else None

    def predict_dataloader(self) -> _Stream:
        """Return this process's share of the batches."""
        world, rank = process_rank(self.trainer)
        return _Stream(self.dataset, self.batches()[rank::world], self.num_workers)


class _ByRows(Dataset[ImageBatch]):
    """A loader's dataset, indexed by lists of positions; images that say that they have others are refused."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.dataset: Any = loader.dataset
        # A loader without a batch size hands whole lists of positions to its dataset.
        self.collate = None if loader.batch_size is None else loader.collate_fn

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, rows: Sequence[int]) -> ImageBatch:
        batch = self.dataset[rows] if self.collate is None else self.collate([self.dataset[row] for row in rows])
        found = ImageBatch(*batch)
        index = found.index.tolist()
        if index != [row for row in rows if row in index]:  # some may be left out
            raise ValueError(
                f"Expected the images at {list(rows)[:5]} of the split to have these positions as their `index` but "
                f"got {index[:5]}: rows would be of other images than they say."
            )
        validate_pixels(found.image, index)
        return found


class _Stream:
    """Batches in order. Not a DataLoader, so that Lightning does not put a sampler of its own into it.

    It has no length either: Lightning refuses a process without batches, or lets it skip the loop and the collectives
    in it, and with few images left after a resumption some processes have none.
    """

    def __init__(self, dataset: Dataset[ImageBatch], batches: list[list[int]], num_workers: int) -> None:
        self.loader = DataLoader(dataset, batch_size=None, sampler=batches, num_workers=num_workers)

    def __iter__(self) -> Iterator[ImageBatch]:
        return iter(self.loader)
