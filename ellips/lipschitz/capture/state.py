"""What a function can remember: values and tensors that it reaches, so that a call that changes one is noticed."""

# ruff: noqa: ANN401 - anything may hang on a function

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import CodeType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
_DEPTH = 12
_MOST = 1000  # entries of one container


def snapshot(function: object) -> dict[str, object]:
    """Return the values that a function can reach through closures, its module's attributes and its globals.

    Plain values are themselves; a tensor is its place in memory and how often it was changed; everything else is walked
    into, as far as it belongs to the function rather than to a library.
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
    yield path, type(item).__qualname__
    if id(item) in seen or depth == 0:
        return
    seen.add(id(item))
    for name, part in _parts(item):
        yield from _walk(part, f"{path}.{name}", seen, depth - 1)


def _parts(item: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(item, MethodType):
        yield from (("self", item.__self__), ("function", item.__func__))
    elif isinstance(item, FunctionType):
        for number, cell in enumerate(item.__closure__ or ()):
            try:
                yield f"closure{number}", cell.cell_contents
            except ValueError:  # not filled yet
                continue
        yield from (("code", hash(item.__code__)), ("defaults", item.__defaults__), ("attributes", item.__dict__))
        if not _of_library(item.__module__):
            for name in sorted(_names(item.__code__)):
                if name in item.__globals__:
                    yield name, item.__globals__[name]
    elif isinstance(item, Mapping):
        yield from ((str(key), item[key]) for key in list(item)[:_MOST])
    elif isinstance(item, list | tuple):
        yield from ((str(number), part) for number, part in enumerate(item[:_MOST]))
    elif isinstance(item, type):
        if not _of_library(item.__module__):
            yield from ((name, part) for name, part in vars(item).items() if not name.startswith("__"))
    elif isinstance(item, nn.Module) or (hasattr(item, "__dict__") and not _of_library(type(item).__module__)):
        yield from vars(item).items()
        if not _of_library(type(item).__module__):
            yield "class", type(item)


def _names(code: CodeType) -> set[str]:
    inner = (part for part in code.co_consts if isinstance(part, CodeType))
    return set(code.co_names).union(*(_names(part) for part in inner))


def _of_library(module: str | None) -> bool:
    return (module or "").partition(".")[0] in {
        "torch",
        "numpy",
        "builtins",
        "timm",
        "torchvision",
        "threading",
        "queue",
    }
