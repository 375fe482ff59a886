"""Which rows each process reads, in batches of nearly equal size."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import TypeVar

import lightning as L
import numpy as np
import torch.distributed
from numpy.typing import NDArray
from torch.utils.data import Dataset
from torch.utils.data.distributed import DistributedSampler

from ellips.validation import at_least

T_co = TypeVar("T_co", covariant=True)


class RowsDataset(Dataset[T_co]):
    """A data set that is read by lists of row numbers, a batch at a time, as a sampler names them."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of rows."""

    @abstractmethod
    def __getitem__(self, rows: Sequence[int]) -> T_co:
        """Read one batch."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """The class of each row, shape ``(N,)``; what batches by class are made from.

        Raises:
            TypeError: If this data set does not say.
        """
        raise TypeError(
            f"Expected a data set that knows the class of each row for batches by class but {type(self).__name__} has "
            "no `labels`; give it the property, or leave out `images_per_class`."
        )


class BalancedBatches(DistributedSampler[list[int]]):
    """Batches of row numbers for one of several processes, without padding.

    Unlike the parent, it repeats no row: in order, every row goes to exactly one process, so that a metric counts each
    image once whatever the number of processes. Shuffled, it leaves out up to ``num_replicas - 1`` rows, others in each
    epoch, so that every process trains on the same number.

    Every process gets the same number of batches, because under DDP each batch may be a collective operation, and the
    batches differ in size by at most one, so that no stray batch of one image meets a batch normalisation. Pass it as
    ``sampler`` with ``batch_size=None``; Lightning leaves a :class:`DistributedSampler` in place.

    Args:
        size: Number of rows, at least ``num_replicas``.
        batch_size: Largest batch.
        shuffle: New order in each epoch (see :meth:`set_epoch`).
        seed: Of the order.
        num_replicas: Number of processes.
        rank: This process.
        copies: Rows in a row that are of one image: they stay together, in one batch of one process, and what is said
            of rows holds of these groups.

    Raises:
        ValueError: If an argument is out of range, or a batch cannot hold all copies of an image.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
        copies: int = 1,
    ) -> None:
        at_least(1, batch_size=batch_size, copies=copies)
        if size < num_replicas * copies:
            raise ValueError(
                f"Expected at least one row for each of {num_replicas} processes, and {copies} rows a process, but got "
                f"{size} rows."
            )
        if batch_size < copies or size % copies:
            raise ValueError(
                f"Expected batches of at least {copies} rows, the copies of an image, and a multiple of that in all, "
                f"but got batch_size={batch_size} and {size} rows; raise `batch_size`."
            )
        super().__init__(SizedRows(size), num_replicas=num_replicas, rank=rank, shuffle=shuffle, seed=seed)
        self.size = size // copies
        self.batch_size = batch_size // copies
        self.copies = copies

    def groups(self) -> NDArray[np.int64]:
        """Which groups of copies, without copies which rows, this process has in this epoch."""
        if not self.shuffle:
            return np.arange(self.rank, self.size, self.num_replicas)
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.size)
        return order[self.rank :: self.num_replicas][: self.size // self.num_replicas]

    def __iter__(self) -> Iterator[list[int]]:
        """Yield one list of row numbers a batch."""
        for batch in np.array_split(self.groups(), len(self)):
            if len(batch):
                yield with_copies(batch, self.copies)

    def __len__(self) -> int:
        """Return the number of batches, the same in every process."""
        largest = self.size // self.num_replicas if self.shuffle else -(-self.size // self.num_replicas)
        # A process may hold one row less than the largest; with fewer rows than batches it would miss a turn.
        smallest = self.size // self.num_replicas
        return min(-(-largest // self.batch_size), smallest)


def with_copies(images: NDArray[np.int64], copies: int) -> list[int]:
    """Return the rows of images that have some rows each, one after the other."""
    rows: list[int] = (images[:, None] * copies + np.arange(copies)).ravel().tolist()
    return rows


class SizedRows(Dataset[int]):
    """What a :class:`DistributedSampler` asks for the number of rows."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __len__(self) -> int:
        return self._size


def process_rank(trainer: L.Trainer | None) -> tuple[int, int]:
    """``(number of processes, this process)`` from a Lightning trainer, or torch.distributed, or ``(1, 0)``."""
    if trainer is not None:
        return trainer.world_size, trainer.global_rank
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size(), torch.distributed.get_rank()
    return 1, 0
