"""What is noted of a function while it runs: operations on what depends on the image, and looks at it."""

# ruff: noqa: ANN401 - torch's operations and their arguments have no common type
from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from ellips.lipschitz.capture.graph import UnprovenOperationError, feed

aten = torch.ops.aten


@dataclass(frozen=True)
class Seen:
    """What a function did to one image.

    Attributes:
        key: SHA-256 of every operation that touched what depends on the image, constants included, and of which of
            their results is the function's.
        counts: How often each kind of operation did, with which constants; those that only move numbers left out.
        kinds: The same operations without their number, and of constants no more than what the size of a batch leaves.
    """

    key: str
    counts: Counter[str]
    kinds: frozenset[str]


SOME = 11
"""A number of images in a batch that is no factor or size of anything else."""

# They look at numbers, or hand them out, without an operation that torch would show.
EXITS = {
    Tensor.numpy, Tensor.tolist, Tensor.data_ptr, Tensor.untyped_storage, Tensor.storage, Tensor.__array__,
    Tensor.__dlpack__, Tensor.__reduce_ex__, Tensor.__deepcopy__, Tensor.__repr__, Tensor.__format__,
    Tensor.share_memory_, Tensor.apply_, Tensor.map_, Tensor.map2_,
}  # fmt: skip
SPLITS = {torch.tensor_split, Tensor.tensor_split}  # at places that they read off a tensor themselves
READS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}

# One thing, several names: in place or not, by which library, whether or not autograd watches.
_MOVES = {
    "view", "_unsafe_view", "reshape", "_reshape_alias", "as_strided", "permute", "transpose", "t", "squeeze",
    "unsqueeze", "expand", "clone", "detach", "alias", "slice", "select", "split", "split_with_sizes", "unbind",
    "lift_fresh", "_to_copy", "copy", "contiguous", "unsafe_split", "unfold", "narrow", "view_copy", "diagonal",
    "_conj", "unsafe_chunk", "chunk", "slice_scatter", "select_scatter", "fill", "zero", "detach_copy", "expand_copy",
    "t_copy", "permute_copy", "_nested_view_from_buffer", "set",
    "new_empty",  # room for what is copied there next, as circular padding takes it; where that is seen, it is refused
}  # fmt: skip
NORMALISATIONS = {
    "native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm", "_native_batch_norm_legit_no_training",
    "_native_batch_norm_legit", "_batch_norm_no_update", "_batch_norm_with_update",
}  # fmt: skip


class Notes:
    """What is noted, and which memory depends on the image."""

    def __init__(self) -> None:
        self.hashed = hashlib.sha256()
        self.counts: Counter[str] = Counter()
        self.kinds: set[str] = set()
        self.broken: str | None = None
        self._numbers: dict[int, int] = {}  # memory that depends on the image
        self._alive: list[Tensor] = []  # an address means nothing once its memory is free

    def mark(self, tensor: Tensor) -> None:
        """Note that a tensor depends on the image."""
        self._numbers.setdefault(_memory(tensor), len(self._numbers))
        self._alive.append(tensor)

    def depends(self, tensor: Tensor) -> bool:
        """Whether a tensor does."""
        return _memory(tensor) in self._numbers

    def break_off(self, what: str) -> None:
        """Note what makes a function one that nothing is proven of."""
        self.broken = self.broken or what

    def take_out(self, tensor: object, by: str) -> None:
        """Note that numbers are taken out of a tensor, if it depends on the image."""
        with torch._C.DisableTorchFunction():
            if isinstance(tensor, Tensor) and self.depends(tensor):
                self.break_off(f"takes numbers out of a tensor (`{by}`)")

    def raise_if_broken(self) -> None:
        """Refuse such a function."""
        if self.broken is not None:
            raise UnprovenOperationError(
                f"Expected a function that treats all images alike but it {self.broken}; decide nothing by pixel "
                "values and do not leave torch, or use Clever (estimated) or SmoothedEncoder (probabilistic)."
            )

    def operation(self, func: Any, args: object) -> str | None:
        """Note an operation on what depends on the image; return what it does to numbers, if it does."""
        name = func._schema.name.rpartition("::")[2].removesuffix("_")
        described = None
        if not name.startswith("_nested") and name not in _MOVES:
            described = _described(name, args, self.depends)
            self.counts[described] += 1
            self.kinds.add(_described(name, args, self.depends, whole=False))
        masked = func is aten.index.Tensor and not has_mask(args)
        if READS & set(func.tags) and not masked:
            self.break_off(f"reads a value that depends on the image (`{func}`)")
        self.hashed.update(f"{func}:".encode())
        self.feed(args)
        return described

    def moved(self, given: list[Tensor], made: object) -> None:
        """Note a move that makes numbers of another type, other than wider ones."""
        if not isinstance(made, Tensor):
            return
        for one in given:
            kinds = (one.dtype, made.dtype)
            if self.depends(one) and kinds[0] != kinds[1] and kinds != (torch.float32, torch.float64):
                self.counts[f"conversion {kinds}"] += 1

    def feed(self, values: object) -> None:
        """Hash values: of tensors that depend on the image where they lie, of all others what they are."""
        flat, structure = tree_flatten(values)
        self.hashed.update(str(structure).encode())
        for value in flat:
            if isinstance(value, Tensor) and self.depends(value):
                place = (self._numbers[_memory(value)], value.shape, value.stride(), value.storage_offset())
                feed(self.hashed, place)
            else:
                feed(self.hashed, value)


def _described(name: str, args: object, depends: Callable[[Tensor], bool], *, whole: bool = True) -> str:
    """Return an operation's name and a digest of its constants."""
    normalises = name in NORMALISATIONS  # each has arguments of its own
    hashed = hashlib.sha256()
    for value in tree_flatten(args)[0]:
        constant = isinstance(value, Tensor) and not depends(value)
        if constant or (isinstance(value, int | float) and not isinstance(value, bool) and not normalises):
            if whole:
                feed(hashed, value if constant else float(value))
            elif constant and value.numel():  # copied for each image of a batch it has the same ends
                feed(hashed, f"{value.min()} {value.max()}")
            elif not constant and (isinstance(value, float) or value != SOME):
                feed(hashed, float(value))
    return f"{'batch_norm' if normalises else name} {hashed.hexdigest()}"


def _memory(tensor: Tensor) -> int:
    """Return where a tensor's numbers lie: two tensors that share them have this in common, however that came about."""
    place = torch._C.TensorBase.untyped_storage(tensor).data_ptr() if tensor.layout is torch.strided else 0
    return place or -id(tensor)


def has_mask(args: Any) -> bool:
    """Whether places are given by truth values."""
    return any(isinstance(x, Tensor) and x.dtype in (torch.bool, torch.uint8) for x in tree_flatten(args[0][1])[0])
