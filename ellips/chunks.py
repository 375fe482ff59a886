"""Many samples through a network, as many at once as there is memory for; the result does not depend on how many."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from ellips.memory import AllocationWatch, free_memory, is_out_of_memory

ChunkSize = int | Literal["auto"]
"""Samples that go through a network at once: a number, or as many as the memory that is free takes."""

FIRST = 2
"""Samples of the first chunk, which is measured; where memory allows more, the second is measured, too."""

SHARE = 0.5
"""Of the free memory that is planned for: scratch space and gaps, which are not measured, take half as much again."""


def validate_chunk_size(chunk_size: ChunkSize) -> None:
    """Refuse what is neither a number of samples nor ``"auto"``.

    Raises:
        ValueError: If it is neither.
    """
    if chunk_size != "auto" and not (isinstance(chunk_size, int) and chunk_size >= 1):
        raise ValueError(f"Expected `chunk_size` to be at least 1, or 'auto', but got {chunk_size!r}.")


class Chunks:
    """Runs a function on many samples, some at a time.

    What one chunk took decides how large the next ones are, so one object serves one function on samples of one shape.
    A chunk that memory is not enough for is halved.

    Args:
        chunk_size: Samples at once; ``"auto"``: as many as fit into the free memory, measured on the first ones.
        most: ``"auto"`` takes no more than so many.
    """

    def __init__(self, chunk_size: ChunkSize, most: int) -> None:
        validate_chunk_size(chunk_size)
        self.most = most
        self.size = min(FIRST, most) if chunk_size == "auto" else int(chunk_size)
        self._to_measure = 2 if chunk_size == "auto" else 0
        self._free = 0.0

    def run(self, function: Callable[..., Sequence[Tensor]], *samples: Tensor) -> tuple[Tensor, ...]:
        """Return what a function gives of all samples.

        Args:
            function: Takes as many tensors as are given, with some of their rows, and returns tensors with one row for
                each; it treats every row by itself.
            *samples: Tensors with as many rows each.

        Raises:
            RuntimeError: Or another error that says so, if memory is not enough for one sample.
        """
        found: list[Sequence[Tensor]] = []
        start, total = 0, len(samples[0])
        while start < total or not found:  # of no samples the function tells the shape
            stop = min(start + self.size, total)
            part = [tensor[start:stop] for tensor in samples]
            result = self._attempt(function, part)
            if result is None:
                self._halve(stop - start)
                continue
            found.append(result)
            start = stop
        return tuple(torch.cat(column) for column in zip(*found, strict=True))

    def _attempt(self, function: Callable[..., Sequence[Tensor]], part: list[Tensor]) -> Sequence[Tensor] | None:
        """Run one chunk; None: memory was not enough. The error is gone by then, and with it all that it held."""
        count = len(part[0])
        try:
            return self._measured(function, part) if self._to_measure and count else function(*part)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if count <= 1:
                error.add_note("Not even one sample at a time fits; free memory, or take a smaller encoder.")
                raise
            return None

    def _measured(self, function: Callable[..., Sequence[Tensor]], part: list[Tensor]) -> Sequence[Tensor]:
        if not self._free:  # before anything was taken: an allocator gives little back
            self._free = free_memory(part[0].device)
        with AllocationWatch() as watch:
            result = function(*part)
        self._to_measure -= 1
        fitting = SHARE * self._free * len(part[0]) / max(1, watch.peak)
        self.size = max(1, min(int(fitting), self.most))
        return result

    def _halve(self, count: int) -> None:
        self._to_measure = 0
        self.size = max(1, count // 2)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        warnings.warn(
            f"There was not enough memory for {count} samples at once; going on with {self.size} (`chunk_size`).",
            stacklevel=4,
        )
