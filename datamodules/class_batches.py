"""Batches for many classes: some classes at a time, several images of each."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch.utils.data.distributed import DistributedSampler

from ellips.validation import at_least

from .sampling import SizedRows, with_copies

Ints = NDArray[np.int64]


class ClassBatches(DistributedSampler[list[int]]):
    """Global batches of P classes with M images each, cut over processes; every image exactly once in an epoch.

    With 1,000 classes a shuffled batch of 1,024 lacks a third of them and has one image of another third, so that
    losses on a class's latents see nothing. Here a global batch holds few classes, each with M images, and P is what
    fits: global batch size // M.

    - Each epoch cuts the images of a class, in a new order, into ⌈n / M⌉ groups whose sizes differ by at most one: of
      M images or fewer, and of at least M / 2, or of all there are. Nothing is repeated or left out.
    - No batch has two groups of a class, and the numbers of groups in any two batches differ by at most one.
    - The groups of a class are spread evenly over the epoch; between equal classes each comes once before any comes
      again, and which ones meet in a batch is drawn anew each time.
    - A class with so many images that it would need more batches than there are (unequal classes) is in every batch,
      with more than M images. All the others have at most M.
    - No global batch is larger than ``batch_size`` times the number of processes; the number of batches is the smallest
      with which all this is possible.

    A global batch depends on seed, epoch, labels and its size alone: one process and several see the same ones, each
    process a contiguous part of nearly equal size, so that gathered in rank order they are the batches of one process.
    It is passed to a loader as :class:`~datamodules.sampling.BalancedBatches` is, and resumed within an epoch as that.

    Args:
        labels: Shape ``(N,)``, the class of each row.
        batch_size: Largest batch of one process.
        images_per_class: M.
        seed: Of the order.
        num_replicas: Number of processes.
        rank: This process.
        copies: Rows in a row that are of one image: they stay together, count as one image, and share a class.

    Raises:
        ValueError: If an argument is out of range, all classes with M images each do not fill a batch, or a batch would
            be too small to give every process an image.
    """

    def __init__(
        self,
        labels: ArrayLike,
        batch_size: int,
        images_per_class: int,
        *,
        seed: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
        copies: int = 1,
    ) -> None:
        at_least(1, batch_size=batch_size, images_per_class=images_per_class, copies=copies)
        rows = np.asarray(labels, dtype=np.int64)
        if len(rows) % copies or batch_size < copies:
            raise ValueError(
                f"Expected batches of at least {copies} rows, the copies of an image, and a multiple of that in all, "
                f"but got batch_size={batch_size} and {len(rows)} rows; raise `batch_size`."
            )
        super().__init__(SizedRows(len(rows)), num_replicas=num_replicas, rank=rank, seed=seed)
        self.copies = copies
        # Images by class: those of class c, in order, are members[starts[c] : starts[c + 1]].
        classes, self._sizes = np.unique(rows[::copies], return_counts=True)
        self._members = np.argsort(rows[::copies], kind="stable")
        self._starts = np.concatenate([[0], self._sizes.cumsum()])
        self._batch = batch_size // copies * num_replicas
        self._check(len(classes), images_per_class)
        self._length, self._groups = _count_groups(self._sizes, images_per_class, self._batch)
        smallest = _smallest_batch(self._sizes, self._groups, self._length)
        if smallest < num_replicas:
            raise ValueError(
                f"Expected an image for each of {num_replicas} processes in every batch but one may have {smallest}; "
                "raise `batch_size`, or leave out `images_per_class`."
            )

    def _check(self, classes: int, images: int) -> None:
        """Refuse M for which class batches make no sense."""
        if images > self._batch:
            raise ValueError(
                f"Expected `images_per_class` of at most the {self._batch} images of a global batch but got {images}; "
                "lower it, or raise `batch_size`."
            )
        if classes * images < self._batch:
            raise ValueError(
                f"Expected {classes} classes with `images_per_class` each to fill a global batch of {self._batch} but "
                f"got images_per_class={images}; leave it out, a shuffled batch has more of each class, or raise it to "
                f"{-(-self._batch // classes)} or more."
            )

    def __len__(self) -> int:
        """Return the number of batches, the same in every process and epoch."""
        return self._length

    def __iter__(self) -> Iterator[list[int]]:
        """Yield one list of row numbers a batch: this process's part of the global one."""
        for batch in self.global_batches():
            yield with_copies(np.array_split(batch, self.num_replicas)[self.rank], self.copies)

    def global_batches(self) -> Iterator[Ints]:
        """Yield the images of each global batch of this epoch, class by class."""
        generator = np.random.default_rng((self.seed, self.epoch))
        groups = [
            np.array_split(generator.permutation(self._members[start:stop]), count)
            for start, stop, count in zip(self._starts[:-1], self._starts[1:], self._groups, strict=True)
        ]
        used = np.zeros(len(groups), dtype=np.int64)
        for chosen in _schedule(self._groups, self._length, generator):
            yield np.concatenate([groups[c][used[c]] for c in chosen])
            used[chosen] += 1


def _count_groups(sizes: Ints, images: int, batch: int) -> tuple[int, Ints]:
    """Return the number of batches of an epoch and of every class's groups, the fewest that keep batches small enough.

    In T batches a class has min(⌈n / M⌉, T) groups. Those with T are in each batch, with at most ⌈n / T⌉ images; of the
    others a batch has its share of groups, rounded up, with at most M images each.
    """
    wanted = -(-sizes // images)
    length = max(1, -(-int(sizes.sum()) // batch))
    while True:  # ends: from max(wanted) on no class is in all batches, and from then on their load falls to one group
        everywhere = wanted >= length
        load = -(-int(wanted[~everywhere].sum()) // length)
        if int((-(-sizes[everywhere] // length)).sum()) + images * load <= batch:
            return length, np.minimum(wanted, length)
        length += 1


def _smallest_batch(sizes: Ints, groups: Ints, length: int) -> int:
    """Return a lower bound of the number of images in a batch."""
    everywhere = groups >= length
    smallest = sizes // groups
    load = int(groups[~everywhere].sum()) // length
    return int(smallest[everywhere].sum()) + (load * int(smallest[~everywhere].min()) if load else 0)


def _schedule(groups: Ints, length: int, generator: np.random.Generator) -> Iterator[Ints]:
    """Yield the classes of each batch: class c in ``groups[c]`` of ``length`` batches, as evenly as can be.

    With S groups left for L batches, the next gets ⌈S / L⌉ of different classes: those with L groups left, which have
    to be in all that follow (at most S / L of them), then those that are due first. Group j of a class with q is due at
    a random time within [j / q, (j + 1) / q). No class then has more than L − 1 groups left, hence at least
    ⌈S' / (L − 1)⌉ classes have some, and the next batch can be filled likewise.
    """
    left = groups.copy()
    due = generator.random(len(groups)) / groups
    for remaining in range(length, 0, -1):
        load = -(-int(left.sum()) // remaining)
        urgency = np.where(left == remaining, -1.0, np.where(left > 0, due, np.inf))
        chosen = np.sort(np.argpartition(urgency, load - 1)[:load])
        yield chosen
        left[chosen] -= 1
        done = groups[chosen] - left[chosen]
        due[chosen] = (done + generator.random(load)) / groups[chosen]
