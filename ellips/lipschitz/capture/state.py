"""What a function can remember: values and tensors that it reaches, so that a call that changes one is noticed."""

# ruff: noqa: ANN401 - anything may hang on a function

from __future__ import annotations

import sys
from array import array
from collections import deque
from collections.abc import Iterator, Mapping, Set
from functools import partial
from itertools import islice
from types import (
    BuiltinMethodType,
    CodeType,
    FunctionType,
    GeneratorType,
    MemberDescriptorType,
    MethodType,
    MethodWrapperType,
    ModuleType,
)
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
_DEPTH = 50
_MOST = 1000  # entries of one container
_MOST_BYTES = 1 << 20


def snapshot(function: object) -> dict[str, object]:
    """Return the values that a function can reach through closures, its module's attributes and its globals.

    Plain values are themselves; a tensor is its place in memory and how often it was changed; numbers of Python and
    NumPy are hashed, where they are few; everything else is walked into, as far as it belongs to the function rather
    than to a library. What lies elsewhere (files, the environment, other processes) is not seen.
    """
    return dict(_walk(function, "function", set(), _DEPTH))


def _walk(item: Any, path: str, seen: set[int], depth: int) -> Iterator[tuple[str, object]]:
    if isinstance(item, _PLAIN):
        yield path, item
        return
    if isinstance(item, Tensor):
        inference = item.is_inference()
        yield path, (id(item), None if inference else item._version)
        return
    if isinstance(item, np.ndarray | array | bytearray | memoryview):
        view: memoryview = memoryview(item)  # type: ignore[arg-type]  # what numpy says of itself
        yield path, hash(view.tobytes()) if view.nbytes <= _MOST_BYTES else (id(item), view.nbytes)
        return
    yield path, type(item).__qualname__
    if id(item) in seen or depth == 0:
        return
    seen.add(id(item))
    for name, part in _parts(item):
        yield from _walk(part, f"{path}.{name}", seen, depth - 1)


def _parts(item: Any) -> Iterator[tuple[str, Any]]:
    kind = type(item)
    if isinstance(item, MethodType | BuiltinMethodType | MethodWrapperType):
        if not isinstance(item.__self__, ModuleType):
            yield "self", item.__self__
        yield "function", getattr(item, "__func__", None)
    elif isinstance(item, FunctionType):
        yield from _parts_of_function(item)
    elif isinstance(item, partial):
        yield from (("function", item.func), ("args", item.args), ("keywords", item.keywords))
    elif isinstance(item, GeneratorType):
        yield "locals", item.gi_frame and dict(item.gi_frame.f_locals)
    elif kind.__module__ == "itertools":
        yield "state", repr(item)
    elif isinstance(item, Mapping):
        yield from ((str(key), item[key]) for key in list(item)[:_MOST])
    elif isinstance(item, list | tuple | set | frozenset | deque):
        yield "length", len(item)
        yield from ((str(number), part) for number, part in enumerate(islice(item, _MOST)))
    elif isinstance(item, type):
        if not _of_others(item.__module__):
            yield "bases", item.__bases__
            yield from ((name, x) for name, x in vars(item).items() if name == "__call__" or not name.startswith("__"))
    elif isinstance(item, nn.Module) or not _of_library(kind.__module__):
        yield from getattr(item, "__dict__", {}).items()
        if not _of_library(kind.__module__):
            names = (
                name for base in kind.__mro__ for name, x in vars(base).items() if isinstance(x, MemberDescriptorType)
            )
            yield from ((name, getattr(item, name)) for name in names if hasattr(item, name))
            yield "class", kind


def _parts_of_function(item: FunctionType) -> Iterator[tuple[str, Any]]:
    for number, cell in enumerate(item.__closure__ or ()):
        try:
            yield f"closure{number}", cell.cell_contents
        except ValueError:  # not filled yet
            continue
    yield from (("code", hash(item.__code__)), ("defaults", item.__defaults__), ("attributes", item.__dict__))
    if _of_others(item.__module__):
        return
    names = sorted(_names(item.__code__))
    for name in names:
        part = item.__globals__.get(name)
        if isinstance(part, ModuleType):
            if not _of_others(part.__name__):
                yield from ((f"{name}.{inner}", vars(part)[inner]) for inner in names if inner in vars(part))
        elif name in item.__globals__:
            yield name, part


def _names(code: CodeType) -> set[str]:
    inner = (part for part in code.co_consts if isinstance(part, CodeType))
    return set(code.co_names).union(*(_names(part) for part in inner))


_LIBRARIES = {
    "torch", "torchvision", "torchmetrics", "timm", "lightning", "lightning_utilities", "pytorch_lightning", "numpy",
    "builtins", "threading", "queue", "logging", "ellips",
}  # fmt: skip
"""Their code is not walked into: what it keeps, as the graphs that are kept here, is no part of the function."""


def _of_library(module: str | None, libraries: Set[str] = frozenset(_LIBRARIES)) -> bool:
    return (module or "").partition(".")[0] in libraries


def _of_others(module: str | None) -> bool:
    """Whether code is of a library or of Python: its names lead everywhere."""
    return _of_library(module) or _of_library(module, sys.stdlib_module_names)
