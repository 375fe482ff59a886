"""Watching a function while it runs: which operations touch what depends on the image, and whether Python looks at it.

Capture sees what a function does to tensors without values. One that finds out that it is being captured, or swallows
the error that refuses to let it look, shows another face there. Here it runs on ordinary images.
"""

# ruff: noqa: ANN401 - torch's operations and their arguments have no common type
from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from ellips.lipschitz.capture.graph import UnprovenOperationError, feed, is_random
from ellips.types import ImageMap
from ellips.validation import unchecked

aten = torch.ops.aten


@dataclass(frozen=True)
class Seen:
    """What a function did to one image.

    Attributes:
        key: SHA-256 of every operation that touched what depends on the image, constants included, and of which of
            their results is the function's.
        counts: How often each kind of operation did, with which constants; those that only move numbers left out.
    """

    key: str
    counts: Counter[str]


# They look at numbers, or hand them out, without an operation that torch would show.
_EXITS = {
    Tensor.numpy, Tensor.tolist, Tensor.data_ptr, Tensor.untyped_storage, Tensor.storage, Tensor.__array__,
    Tensor.__dlpack__, Tensor.__reduce_ex__, Tensor.__deepcopy__, Tensor.__repr__, Tensor.__format__,
    Tensor.share_memory_, Tensor.apply_, Tensor.map_, Tensor.map2_,
}  # fmt: skip
_SPLITS = {torch.tensor_split, Tensor.tensor_split}  # at places that they read off a tensor themselves
_READS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}

# One thing, several names: in place or not, by which library, whether or not autograd watches.
_MOVES = {
    "view", "_unsafe_view", "reshape", "_reshape_alias", "as_strided", "permute", "transpose", "t", "squeeze",
    "unsqueeze", "expand", "clone", "detach", "alias", "slice", "select", "split", "split_with_sizes", "unbind",
    "lift_fresh", "_to_copy", "copy", "contiguous", "unsafe_split", "unfold", "narrow", "view_copy", "diagonal",
    "_conj", "unsafe_chunk", "chunk", "slice_scatter", "select_scatter", "fill", "zero", "detach_copy", "expand_copy",
    "t_copy", "permute_copy", "_nested_view_from_buffer", "set",
}  # fmt: skip
_NORMALISATIONS = {
    "native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm", "_native_batch_norm_legit_no_training",
    "_native_batch_norm_legit", "_batch_norm_no_update", "_batch_norm_with_update",
}  # fmt: skip


def watch(function: ImageMap, image: Tensor) -> Seen:
    """Run a function on one image and note what it does.

    Args:
        function: Maps ``(1, C, H, W)`` to ``(1, d)``.
        image: Shape ``(1, C, H, W)``.

    Raises:
        UnprovenOperationError: If Python looks at a number that depends on the image, or starts a thread.
    """
    notes = _Notes()
    image = image.detach().clone()
    notes.mark(image)
    try:
        with torch.no_grad(), unchecked(), _no_other_ways(notes), _Exits(notes), _Operations(notes):
            result = function(image)
        notes.feed(result)
    except Exception as error:
        notes.break_off(f"fails while it is watched ({error})")
    notes.raise_if_broken()
    disguised = _Notes()  # once more on a tensor that takes the watching along into other threads
    with torch.no_grad(), unchecked():
        try:
            function(_Watched.around(image, disguised))
        except Exception as error:
            disguised.break_off(f"fails on a tensor that is watched ({error})")
    disguised.raise_if_broken()
    return Seen(notes.hashed.hexdigest(), notes.counts)


class _Notes:
    def __init__(self) -> None:
        self.hashed = hashlib.sha256()
        self.counts: Counter[str] = Counter()
        self.broken: str | None = None
        self._numbers: dict[int, int] = {}  # memory that depends on the image
        self._alive: list[Tensor] = []  # an address means nothing once its memory is free

    def mark(self, tensor: Tensor) -> None:
        self._numbers.setdefault(_memory(tensor), len(self._numbers))
        self._alive.append(tensor)

    def depends(self, tensor: Tensor) -> bool:
        return _memory(tensor) in self._numbers

    def break_off(self, what: str) -> None:
        self.broken = self.broken or what

    def take_out(self, tensor: object, by: str) -> None:
        """Note that numbers are taken out of a tensor, if it depends on the image."""
        with torch._C.DisableTorchFunction():
            if isinstance(tensor, Tensor) and self.depends(tensor):
                self.break_off(f"takes numbers out of a tensor (`{by}`)")

    def raise_if_broken(self) -> None:
        if self.broken is not None:
            raise UnprovenOperationError(
                f"Expected a function that treats all images alike but it {self.broken}; decide nothing by pixel "
                "values and do not leave torch, or use Clever (estimated) or SmoothedEncoder (probabilistic)."
            )

    def operation(self, func: Any, args: object) -> None:
        """Note an operation on what depends on the image."""
        name = func._schema.name.rpartition("::")[2].removesuffix("_")
        if not name.startswith("_nested") and name not in _MOVES:
            self.counts[_described(name, args, self.depends)] += 1
        masked = func is aten.index.Tensor and not _has_mask(args)
        if _READS & set(func.tags) and not masked:
            self.break_off(f"reads a value that depends on the image (`{func}`)")
        self.hashed.update(f"{func}:".encode())
        self.feed(args)

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


def _described(name: str, args: object, depends: Callable[[Tensor], bool]) -> str:
    """Return an operation's name and a digest of its constants."""
    normalises = name in _NORMALISATIONS  # each has arguments of its own
    hashed = hashlib.sha256()
    for value in tree_flatten(args)[0]:
        constant = isinstance(value, Tensor) and not depends(value)
        if constant or (isinstance(value, int | float) and not isinstance(value, bool) and not normalises):
            feed(hashed, value if constant else float(value))
    return f"{'batch_norm' if normalises else name} {hashed.hexdigest()}"


def _memory(tensor: Tensor) -> int:
    """Return where a tensor's numbers lie: two tensors that share them have this in common, however that came about."""
    place = tensor.untyped_storage().data_ptr() if tensor.layout is torch.strided else 0
    return place or -id(tensor)


def _has_mask(args: Any) -> bool:
    return any(isinstance(x, Tensor) and x.dtype in (torch.bool, torch.uint8) for x in tree_flatten(args[0][1])[0])


class _Operations(TorchDispatchMode):
    """Note every operation on ordinary tensors, in this thread."""

    def __init__(self, notes: _Notes) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's is untyped
        self.notes = notes

    def __torch_dispatch__(  # the name and the arguments are torch's
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        touched = any(self.notes.depends(tensor) for tensor in tensors)
        if touched:
            self.notes.operation(func, (args, kwargs))
        if is_random(func, args, kwargs):
            self.notes.break_off(f"draws random numbers (`{func}`)")
        result = func(*args, **kwargs)
        if touched:
            changed = [x for x in tensors if func._schema.is_mutable]
            for tensor in (*changed, *tree_flatten(result)[0]):
                if isinstance(tensor, Tensor):
                    self.notes.mark(tensor)
        return result


class _Exits(TorchFunctionMode):
    """Note when Python takes numbers out of a tensor that depends on the image."""

    def __init__(self, notes: _Notes) -> None:
        super().__init__()
        self.notes = notes

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Note a call and pass it on."""
        kwargs = kwargs or {}
        looked_at = args[:1] if func in _EXITS else (*args[1:], *kwargs.values()) if func in _SPLITS else ()
        for tensor in looked_at:
            self.notes.take_out(tensor, getattr(func, "__name__", str(func)))
        return func(*args, **kwargs)


class _Watched(Tensor):
    """A tensor that notes when it is looked at, in whichever thread."""

    value: Tensor
    notes: _Notes

    @staticmethod
    def around(value: Tensor, notes: _Notes) -> _Watched:
        """Wrap a tensor."""
        wrapped: _Watched = Tensor._make_wrapper_subclass(
            _Watched, value.shape, strides=value.stride(), storage_offset=value.storage_offset(),
            dtype=value.dtype, device=value.device, requires_grad=False,
        )  # fmt: skip
        wrapped.value, wrapped.notes = value, notes
        return wrapped

    @classmethod
    def __torch_function__(
        cls,
        func: Any,
        types: Any,
        args: Any = (),
        kwargs: Any = None,
    ) -> Any:
        """Note a call that takes numbers out, and pass it on."""
        if func in _EXITS:
            first = args[0]
            if isinstance(first, _Watched):
                first.notes.break_off(f"takes numbers out of a tensor (`{getattr(func, '__name__', func)}`)")
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch's own is a function
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Note an operation that looks, and run it on what is wrapped."""
        flat = [x for x in tree_flatten((args, kwargs or {}))[0] if isinstance(x, _Watched)]
        notes = flat[0].notes
        if _READS & set(func.tags) and not (func is aten.index.Tensor and not _has_mask((args, {}))):
            notes.break_off(f"reads a value that depends on the image (`{func}`)")
        plain = tree_map(lambda x: x.value if isinstance(x, _Watched) else x, (args, kwargs or {}))
        result = func(*plain[0], **plain[1])
        known = {id(x.value): x for x in flat}  # operations in place return what they were given

        def wrap(x: object) -> object:
            if not isinstance(x, Tensor):
                return x
            return known[id(x)] if id(x) in known else cls.around(x, notes)

        return tree_map(wrap, result)


# What Python calls to have something done by another thread, or to wait for it.
_HANDOVERS: list[tuple[Any, str]] = [
    (threading.Thread, "start"), (threading.Thread, "join"), (ThreadPoolExecutor, "submit"),
    (threading.Condition, "wait"), (threading.Condition, "notify"),
]  # fmt: skip


# What is called to make a number of a tensor, by torch.tensor([...]) and other threads where no mode of torch follows.
_CONVERSIONS = ("__bool__", "__int__", "__index__", "__float__", "__complex__", "item", "tolist", "numpy", "__array__")
_ALONE = threading.RLock()  # what is put into classes of all threads is taken out in the opposite order


@contextmanager
def _no_other_ways(notes: _Notes) -> Iterator[None]:
    """Note when work is handed to another thread, or a tensor made a number, where no mode of torch follows."""
    this = threading.get_ident()

    def handover(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() == this:
                notes.break_off(f"has to do with another thread (`{original.__qualname__}`)")
            return original(*args, **kwargs)

        return call

    def conversion(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            notes.take_out(tensor, original.__name__)
            return original(tensor, *args, **kwargs)

        return call

    with _ALONE, ExitStack() as stack:
        for owner, name in _HANDOVERS:
            stack.enter_context(patch.object(owner, name, handover(getattr(owner, name))))
        for name in _CONVERSIONS:
            stack.enter_context(patch.object(Tensor, name, conversion(getattr(Tensor, name))))
        yield
