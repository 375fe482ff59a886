"""What a function can remember: values and tensors that it reaches, so that a call that changes one is noticed."""

# ruff: noqa: ANN401 - anything may hang on a function

from __future__ import annotations

import copyreg
import functools
import random
import sys
import warnings
import weakref
from array import array
from collections import OrderedDict, deque
from collections.abc import Iterator, Set
from contextvars import ContextVar
from functools import partial
from io import BytesIO, StringIO
from types import (
    BuiltinMethodType,
    CellType,
    ClassMethodDescriptorType,
    CodeType,
    FunctionType,
    GeneratorType,
    GetSetDescriptorType,
    MappingProxyType,
    MemberDescriptorType,
    MethodDescriptorType,
    MethodType,
    MethodWrapperType,
    ModuleType,
    WrapperDescriptorType,
)
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ellips.lipschitz.capture.graph import UnprovenOperationError

_NUMBERS = (bool, int, float, complex, str, bytes)
_PLAIN = {*_NUMBERS, type(None), torch.dtype, torch.device, torch.Size}
_CONTAINERS = (list, tuple, set, frozenset, deque)
_MOST = 300_000  # values and objects


def snapshot(function: object) -> dict[str, object]:
    """Return the values that a function can reach through closures, its module's attributes and its globals.

    Numbers and tensors are what they are, hashed where they are many; everything else is walked into, as far as it
    belongs to the function rather than to a library. What lies elsewhere (files, the environment, other processes) is
    not seen.

    Raises:
        UnprovenOperationError: If the function reaches what cannot be looked into, or too much.
    """
    found: dict[str, object] = {}
    seen: dict[int, object] = {}  # the objects, too: an address means nothing once its memory is free
    waiting: list[tuple[str, Any]] = [("function", function), *_global_hooks()]
    while waiting:
        path, item = waiting.pop()
        while path in found:
            path += "'"
        found[path] = _value(item)
        if len(found) > _MOST:
            raise UnprovenOperationError(
                f"Expected a function that reaches at most {_MOST} values but it reaches more, the last ones by "
                f"{path}; hand in one that holds the network alone."
            )
        if type(item) not in _PLAIN and id(item) not in seen:
            seen[id(item)] = item
            waiting += [(f"{path}.{name}", part) for name, part in _parts(item)]
    return found


def random_states() -> tuple[object, ...]:
    """Return the states of the generators that draw random numbers for everybody."""
    of_numpy = repr(np.random.get_state(legacy=False))  # noqa: NPY002 - others draw from it
    return hash(random.getstate()), of_numpy, hash(torch.get_rng_state().numpy().tobytes())


def _value(item: Any) -> object:
    kind = type(item)
    if kind in _PLAIN:
        return kind, repr(item) if kind in (float, complex) else item  # NaN is NaN, and 0 is not -0
    if isinstance(item, Tensor):
        return _tensor(item)
    if isinstance(item, np.ndarray | array | bytearray | memoryview) and not _of_objects(item):
        return hash(memoryview(item).tobytes())  # type: ignore[arg-type]  # what numpy says of itself
    base = next((base for base in _NUMBERS if isinstance(item, base)), None)
    return kind.__qualname__ if base is None else (kind.__qualname__, base.__repr__(item))


def _of_objects(item: Any) -> bool:
    return isinstance(item, np.ndarray) and item.dtype.hasobject


def _tensor(item: Tensor) -> object:
    version = None if item.is_inference() else item._version
    try:
        numbers = item.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    except (RuntimeError, TypeError):  # of another layout, or of a class of its own
        return id(item), version
    return item.dtype, item.shape, version, hash(numbers)


def _parts(item: Any) -> Iterator[tuple[str, Any]]:
    kind = type(item)
    if isinstance(item, MethodType | BuiltinMethodType | MethodWrapperType):
        if not isinstance(item.__self__, ModuleType):
            yield "self", item.__self__
        yield "function", getattr(item, "__func__", None)
    elif isinstance(item, FunctionType):
        yield from _parts_of_function(item)
    elif isinstance(item, partial):
        yield from (("function", item.func), ("args", item.args), ("keywords", item.keywords), ("of", vars(item)))
    elif type(item).__name__ == "cython_function_or_method":
        yield "self", getattr(item, "__self__", None)
    elif isinstance(item, property):
        yield from (("fget", item.fget), ("fset", item.fset), ("fdel", item.fdel))
    elif isinstance(item, staticmethod | classmethod):
        yield "function", item.__func__
    elif isinstance(item, type):
        yield from _parts_of_class(item)
    elif not isinstance(item, ModuleType):
        yield from _content(item)
        yield from _attributes(item, kind)


def _content(item: Any) -> Iterator[tuple[str, Any]]:
    """Yield what an object of Python, NumPy or torch itself holds, where no attribute shows it."""
    if isinstance(item, dict | MappingProxyType):
        pairs = list(_base(item, OrderedDict, dict, MappingProxyType).items(item))
        yield "length", len(pairs)
        for number, (key, value) in enumerate(pairs):
            name = key if type(key) is str else f"[{number}]"
            yield from ((f"{name} of {number}", key), (name, value))
    elif isinstance(item, _CONTAINERS):
        parts = list(_base(item, *_CONTAINERS).__iter__(item))
        yield "length", len(parts)
        if parts and all(type(part) in _PLAIN for part in parts):
            yield "numbers", repr(parts)
        else:
            yield from ((str(number), part) for number, part in enumerate(parts))
    elif isinstance(item, np.ndarray):
        yield "objects", item.tolist() if _of_objects(item) else None
    elif isinstance(item, GeneratorType):
        yield from (("locals", item.gi_frame and dict(item.gi_frame.f_locals)), ("from", item.gi_yieldfrom))
        yield "at", item.gi_frame and item.gi_frame.f_lasti
    elif isinstance(item, CellType):
        yield from _cell(item, "content")
    elif isinstance(item, ContextVar):
        yield "value", item.get(None)
    elif isinstance(item, weakref.ReferenceType):
        yield "referent", item()
    elif isinstance(item, functools._lru_cache_wrapper):
        yield "cache", tuple(item.cache_info())
    elif isinstance(item, BytesIO | StringIO):
        kind = _base(item, BytesIO, StringIO)
        closed = kind.closed.__get__(item)
        yield from (("content", kind.getvalue(item)), ("position", kind.tell(item))) if not closed else ()
    elif isinstance(item, random.Random):
        yield "state", random.Random.getstate(item)
    elif isinstance(item, np.random.Generator):
        yield "state", np.random.Generator.bit_generator.__get__(item).state
    elif isinstance(item, np.random.BitGenerator):
        yield "state", item.state
    elif isinstance(item, np.random.RandomState):
        yield "state", np.random.RandomState.get_state(item, legacy=False)
    elif isinstance(item, torch.Generator):
        yield "state", torch.Generator.get_state(item)
    elif hasattr(type(item), "__next__") and _of_others(type(item).__module__):
        yield "state", _iterator(item)
    elif not isinstance(item, _SHOWN):
        yield "state", _compiled(item)


def _base(item: Any, *kinds: type) -> Any:
    """Return which of Python's own classes an object is of: classes derived from it may show something else."""
    return next(kind for kind in kinds if isinstance(item, kind))


def _cell(cell: CellType, name: str) -> Iterator[tuple[str, Any]]:
    try:
        yield name, cell.cell_contents
    except ValueError:  # not filled yet
        return


def _compiled(item: Any) -> object:
    """Return what an object holds that is of one of Python's own classes written in C: no attribute shows it.

    It is what that class itself makes copies of: classes derived from it may say anything.
    """
    base = next((base for base in type(item).__mro__ if _is_compiled(base)), None)
    if base is None or isinstance(item, _NUMBERS):
        return None
    if base.__module__ == "_thread":
        return repr(item)  # a lock, and whether it is taken
    ways = [copyreg.dispatch_table.get(base), *(getattr(base, x) for x in _COPYING if hasattr(base, x))]
    for way in ways:
        if way is None or way in _COPYING_ANYTHING:
            continue
        try:
            return way(item, 4) if way.__name__ == "__reduce_ex__" else way(item)
        except Exception:  # they fail as they like
            continue
    raise UnprovenOperationError(
        f"Expected a function that remembers nothing but it reaches an object, {type(item).__qualname__}, of which "
        "nothing shows what it holds; leave it out."
    )


_COPYING = ("__reduce__", "__reduce_ex__", "__getstate__")
_COPYING_ANYTHING = [getattr(object, name) for name in _COPYING]
_IN_PYTHON = 1 << 9  # of a class's flags; some written in C have it, too
_METHODS_IN_C = (MethodDescriptorType, ClassMethodDescriptorType, WrapperDescriptorType, GetSetDescriptorType)


_SHOWN = (*_METHODS_IN_C, CodeType, array, bytearray, memoryview)
"""They hold nothing, or what is looked at elsewhere."""


@functools.lru_cache(4096)
def _is_compiled(kind: type) -> bool:
    if not _of_library(kind.__module__, sys.stdlib_module_names | {"builtins"}) or kind is object:
        return False
    own = (x for name, x in vars(kind).items() if name not in _NO_STATE)
    in_c = any(isinstance(x, _METHODS_IN_C) and x.__objclass__ is kind for x in own)
    return (in_c or not kind.__flags__ & _IN_PYTHON) and kind.__basicsize__ > object.__basicsize__


def _iterator(item: Any) -> object:
    """Return where an iterator of Python's own stands: what copies of it are made from."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some will not say it much longer
            return item.__reduce__()
    except TypeError as error:
        raise UnprovenOperationError(
            f"Expected a function that remembers nothing but it reaches an iterator, {type(item).__qualname__}, of "
            "which nothing shows where it stands; leave it out."
        ) from error


def _attributes(item: Any, kind: type) -> Iterator[tuple[str, Any]]:
    if isinstance(item, nn.Module) or not _of_library(kind.__module__, _SILENT):
        yield from _own(item, kind).items()
    if isinstance(item, nn.Module) and _of_library(kind.__module__):
        forward = getattr(kind, "forward", None)
        if not _of_library(getattr(forward, "__module__", None)):
            yield "forward", forward
    elif not _of_library(kind.__module__):
        names = (name for base in kind.__mro__ for name, x in vars(base).items() if isinstance(x, MemberDescriptorType))
        yield from ((name, getattr(item, name)) for name in names if hasattr(item, name))
        yield "class", kind


def _own(item: Any, kind: type) -> dict[str, Any]:
    """Return the attributes of an object; refuse classes that say themselves what they are."""
    told = (vars(base).get("__dict__") for base in kind.__mro__)
    if any(not isinstance(x, GetSetDescriptorType | MemberDescriptorType | None) for x in told):
        raise UnprovenOperationError(
            f"Expected a function that remembers nothing but it reaches an object, {kind.__qualname__}, whose "
            "`__dict__` is of its own making; leave it out."
        )
    return dict(getattr(item, "__dict__", {}))


def _parts_of_class(item: type) -> Iterator[tuple[str, Any]]:
    if _of_others(item.__module__):
        return
    yield from (("bases", item.__bases__), ("class", type(item)))
    yield from ((name, x) for name, x in vars(item).items() if name not in _NO_STATE)


_NO_STATE = {"__dict__", "__weakref__", "__annotations__", "_abc_impl"}


def _parts_of_function(item: FunctionType) -> Iterator[tuple[str, Any]]:
    for number, cell in enumerate(item.__closure__ or ()):
        yield from _cell(cell, f"closure{number}")
    yield from (("code", hash(item.__code__)), ("defaults", item.__defaults__), ("attributes", item.__dict__))
    yield "keywords", item.__kwdefaults__
    if _of_others(item.__module__):
        return
    yield from (("doc", item.__doc__), ("name", (item.__name__, item.__qualname__)), ("types", item.__annotations__))
    names = sorted(_names(item.__code__))
    around = {name: cell for name, cell in zip(item.__code__.co_freevars, item.__closure__ or (), strict=True)}
    for name in (*names, *around):
        # What it imports by itself is none of its globals.
        part = dict(_cell(around[name], name)).get(name) if name in around else item.__globals__.get(name)
        part = sys.modules.get(name) if part is None else part
        if isinstance(part, ModuleType):
            yield from _parts_of_module(part, name, names)
        elif name in item.__globals__:
            yield name, part


def _parts_of_module(item: ModuleType, name: str, names: list[str]) -> Iterator[tuple[str, Any]]:
    others = _of_others(item.__name__)
    for inner in names:
        part = vars(item).get(inner)
        # Of a library what somebody has put there: numbers, and what is made elsewhere.
        own = not others or type(part) in {*_PLAIN, *_CONTAINERS, dict} or isinstance(part, Tensor)
        if inner in vars(item) and (own or not _of_others(getattr(part, "__module__", None) or "builtins")):
            yield f"{name}.{inner}", part


def _global_hooks() -> Iterator[tuple[str, Any]]:
    """Yield what torch calls before or after every module."""
    module = nn.modules.module
    yield from ((name, hooks) for name, hooks in vars(module).items() if name.startswith("_global_") and hooks)


def _names(code: CodeType) -> set[str]:
    inner = (part for part in code.co_consts if isinstance(part, CodeType))
    return set(code.co_names).union(*(_names(part) for part in inner))


_SILENT = {
    "lightning", "lightning_utilities", "pytorch_lightning", "builtins", "threading", "queue", "logging", "ellips",
}  # fmt: skip
"""What their objects keep, as the graphs that are kept here, is no part of the function, but for modules."""

_LIBRARIES = _SILENT | {"torch", "torchvision", "torchmetrics", "timm", "numpy"}
"""Their code is not walked into."""


def _of_library(module: object, libraries: Set[str] = frozenset(_LIBRARIES)) -> bool:
    """Whether code of a module, by its name, is of a library; what has another thing there comes from compiled code."""
    return module is not None and (not isinstance(module, str) or module.partition(".")[0] in libraries)


def _of_others(module: object) -> bool:
    """Whether code is of a library or of Python: its names lead everywhere."""
    return _of_library(module) or _of_library(module, sys.stdlib_module_names)
