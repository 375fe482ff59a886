"""A loader that goes on within an epoch where a checkpoint was made."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader


class ResumableLoader(DataLoader[Any]):
    """A DataLoader whose position is saved in Lightning's checkpoints and restored by them.

    Lightning asks a loader that has ``state_dict`` and ``load_state_dict`` for its position; one that has not starts
    its epoch anew, so that some batches would be seen twice and others never. Batches count as seen once they were
    handed out. Skipped ones are read but not encoded. The order of an epoch must be that of a sampler with
    ``set_epoch``, as those of this package have: it is not part of the state.

    Nothing is read before the first batch is asked for: Lightning makes the iterator before it sets the epoch.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        """Take what DataLoader takes."""
        super().__init__(*args, **options)
        self._seen = 0
        self._skip = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # an iterator is enough
        """Yield the batches of an epoch, after a restored position those that are left."""
        skip, self._skip = self._skip, 0
        self._seen = 0
        for batch in super().__iter__():
            self._seen += 1
            if self._seen > skip:
                yield batch

    def state_dict(self) -> dict[str, int]:
        """Return how many batches of the epoch were handed out; all of them count as none of the next."""
        return {"batches": self._seen % max(len(self), 1)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Skip what was handed out before, in the next epoch that is begun."""
        self._skip = int(state["batches"])
