"""Settings of a run as files record them: from the fields of frozen dataclasses, so that none is left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

UNRECORDED: Mapping[str, bool] = {"recorded": False}
"""Metadata of a field that changes how a result is computed and not what it is: no run is refused for it."""


def describe(settings: object) -> Any:  # noqa: ANN401 - whatever JSON can hold
    """Return settings as JSON can hold them, nested ones included.

    Args:
        settings: A dataclass whose arguments are its fields, or numbers, texts, None and lists of such.

    Returns:
        For a dataclass, its class path and by name all its arguments that a result depends on.

    Raises:
        TypeError: If something in it is of a kind that could not be compared with what a file says.
    """
    if is_dataclass(settings) and not isinstance(settings, type):
        kind = type(settings)
        recorded = [item.name for item in fields(settings) if item.init and item.metadata.get("recorded", True)]
        arguments = {name: describe(getattr(settings, name)) for name in recorded}
        return {"class_path": f"{kind.__module__}.{kind.__qualname__}", **arguments}
    if isinstance(settings, list | tuple):
        return [describe(item) for item in settings]
    if isinstance(settings, dict):
        return {str(name): describe(value) for name, value in settings.items()}
    if settings is None or isinstance(settings, str | int | float | bool):
        return settings
    raise TypeError(
        f"Expected settings made of dataclasses, numbers and texts but got {type(settings).__name__}; make "
        f"{type(settings).__module__}.{type(settings).__qualname__} a frozen dataclass, so that a run can record it."
    )
