"""Watching a function while it runs: which operations touch what depends on the image, and whether Python looks at it.

Capture sees what a function does to tensors without values. One that finds out that it is being captured, or swallows
the error that refuses to let it look, shows another face there. Here it runs on ordinary images.
"""

# ruff: noqa: ANN401 - torch's operations and their arguments have no common type
from __future__ import annotations

import hashlib
import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from ellips.lipschitz.capture.graph import by_name, feed, is_random
from ellips.lipschitz.capture.notes import EXITS, NORMALISATIONS, READS, SPLITS, Notes, Seen, has_mask
from ellips.types import ImageMap
from ellips.validation import unchecked

aten = torch.ops.aten


def watch(function: ImageMap, image: Tensor) -> Seen:
    """Run a function on one image and note what it does.

    Args:
        function: Maps ``(1, C, H, W)`` to ``(1, d)``.
        image: Shape ``(1, C, H, W)``.

    Raises:
        UnprovenOperationError: If Python looks at a number that depends on the image, or starts a thread.
    """
    seen, image = noted(function, image), image.detach().clone()
    disguised = Notes()  # once more on a tensor that takes the watching along into other threads
    with torch.no_grad(), unchecked():
        try:
            function(_Watched.around(image, disguised))
        except Exception as error:
            disguised.break_off(f"fails on a tensor that is watched ({error})")
    disguised.raise_if_broken()
    return seen


def noted(function: Callable[[Tensor], object], images: Tensor) -> Seen:
    """Run a function on images, in whichever way, and note what it does; see :func:`watch`."""
    notes = Notes()
    images = images.detach().clone()
    notes.mark(images)
    try:
        with torch.no_grad(), unchecked(), _no_other_ways(notes), _Exits(notes), _Operations(notes):
            result = function(images)
        notes.feed(result)
    except Exception as error:
        notes.break_off(f"fails while it is watched ({error})")
    notes.raise_if_broken()
    return Seen(notes.hashed.hexdigest(), notes.counts, frozenset(notes.kinds))


def scrambled(function: ImageMap, image: Tensor, seed: int) -> Tensor:
    """Run a function on noise, while every operation's result is noise drawn by all that the operation is given.

    What is 0 on all ordinary images is not, then: which of two such numbers a function takes makes a difference. And
    nothing is rounded, so nothing however large hides it: noise is drawn by the very bits, and moved as it is.
    """
    notes = Notes()
    image = _noise(image, f"{seed}")
    notes.mark(image)
    with torch.no_grad(), unchecked(), _Operations(notes, seed):
        return function(image)


class _Operations(TorchDispatchMode):
    """Note every operation on ordinary tensors, in this thread."""

    def __init__(self, notes: Notes, seed: int | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's is untyped
        self.notes = notes
        self.seed = seed

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
        described = self.notes.operation(func, (args, kwargs)) if touched else None
        if is_random(func, args, kwargs):
            self.notes.break_off(f"draws random numbers (`{func}`)")
        depending = [x for x in tensors if self.notes.depends(x)] if touched else []
        drawn = ""
        if described is not None and self.seed is not None:  # before it runs: it may change what it is given
            drawn = f"{self.seed} {described} {self.notes.counts[described]} {_given(func, args, kwargs, depending)}"
        result = func(*args, **kwargs)
        if described is None:
            self.notes.moved(depending, result)
        elif drawn:
            result = tree_map(lambda x: _replaced(x, drawn, in_place=func._schema.is_mutable), result)
        if touched:
            changed = [x for x in tensors if func._schema.is_mutable]
            for tensor in (*changed, *tree_flatten(result)[0]):
                if isinstance(tensor, Tensor):
                    self.notes.mark(tensor)
        return result


def _given(func: Any, args: Any, kwargs: Any, depending: list[Tensor]) -> str:
    """Return a digest of what the notes' description of an operation leaves out: variable numbers, and settings."""
    given = by_name(func, args, kwargs)
    name = func._schema.name.rpartition("::")[2]
    if name in NORMALISATIONS:  # each has arguments of its own
        updates = name == "_batch_norm_with_update"
        given = {"training": given.get("training", updates), "eps": given.get("eps", given.get("epsilon"))}
    variable = {id(tensor) for tensor in depending}
    hashed = hashlib.sha256(repr(tree_map(lambda x: id(x) in variable if isinstance(x, Tensor) else x, given)).encode())
    for tensor in depending:
        feed(hashed, tensor)
    return hashed.hexdigest()


def _replaced(value: object, drawn: str, *, in_place: bool) -> object:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    noise = _noise(value, drawn)
    return value.copy_(noise) if in_place else noise


def _noise(like: Tensor, drawn: str) -> Tensor:
    seed = int.from_bytes(hashlib.sha256(drawn.encode()).digest()[:7], "big")
    noise = torch.randn(like.numel(), generator=torch.Generator().manual_seed(seed))
    return noise.view(like.shape).to(like)


class _Exits(TorchFunctionMode):
    """Note when Python takes numbers out of a tensor that depends on the image."""

    def __init__(self, notes: Notes) -> None:
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
        looked_at = args[:1] if func in EXITS else (*args[1:], *kwargs.values()) if func in SPLITS else ()
        for tensor in looked_at:
            self.notes.take_out(tensor, getattr(func, "__name__", str(func)))
        return func(*args, **kwargs)


class _Watched(Tensor):
    """A tensor that notes when it is looked at, in whichever thread."""

    value: Tensor
    notes: Notes

    @staticmethod
    def around(value: Tensor, notes: Notes) -> _Watched:
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
        if func in EXITS:
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
        if READS & set(func.tags) and not (func is aten.index.Tensor and not has_mask((args, {}))):
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
_CONVERSIONS = (
    "__bool__", "__int__", "__index__", "__float__", "__complex__", "item", "tolist", "numpy", "__array__",
    "is_nonzero", "equal", "allclose", "data_ptr", "untyped_storage", "__dlpack__", "share_memory_", "apply_", "map_",
    "map2_",
)  # fmt: skip
_ANSWERS = ("is_nonzero", "equal", "allclose", "to_dlpack", "_to_dlpack", "_to_dlpack_versioned")  # of functions
_ALONE = threading.RLock()  # what is put into classes of all threads is taken out in the opposite order


@contextmanager
def _no_other_ways(notes: Notes) -> Iterator[None]:
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
            for given in (tensor, *args):
                notes.take_out(given, original.__name__)
            return original(tensor, *args, **kwargs)

        return call

    with _ALONE, ExitStack() as stack:
        for owner, name in _HANDOVERS:
            stack.enter_context(patch.object(owner, name, handover(getattr(owner, name))))
        for name in _CONVERSIONS:
            stack.enter_context(patch.object(Tensor, name, conversion(getattr(Tensor, name))))
        for owner, name in itertools.product((torch, torch._C, torch.utils.dlpack), _ANSWERS):
            if hasattr(owner, name):
                stack.enter_context(patch.object(owner, name, conversion(getattr(owner, name))))
        yield
