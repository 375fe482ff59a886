"""Configurations from files of others: plain YAML, of a size that can be walked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

_LARGEST = 100_000  # entries once aliases are written out; a configuration of this project has a few hundred
_DEEPEST = 100


def read_configuration(path: Path) -> dict[str, Any]:
    """Read a configuration as data: no tag builds an object, and no alias repeats itself without end.

    Args:
        path: The YAML file.

    Raises:
        ValueError: If it is no YAML, has no sections by name, or grows beyond what a configuration can be.
    """
    try:
        text = path.read_text(encoding="utf-8")
        limit_yaml(text)
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected a configuration in YAML but it could not be read: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a configuration with sections by name but got {type(content).__name__}.")
    return content


def limit_yaml(text: str) -> None:
    """Refuse a text whose aliases repeat themselves beyond what a configuration can be, before it is read.

    Raises:
        yaml.YAMLError: If it does, or is no YAML.
    """
    try:
        _limit(yaml.compose(text, Loader=yaml.SafeLoader), {}, ())
    except RecursionError as error:
        raise yaml.YAMLError("expected sections that are not within each other without end.") from error


def _limit(node: yaml.Node | None, known: dict[int, int], above: tuple[int, ...]) -> int:
    """Return how many entries a node has once aliases are written out; each is looked at once.

    Raises:
        yaml.YAMLError: If there are too many, or an alias stands within what it names.
    """
    if id(node) in above or len(above) > _DEEPEST:
        raise yaml.YAMLError(f"expected at most {_DEEPEST} sections within each other but some go deeper.")
    if id(node) not in known:
        parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else []
        parts = list(node.value) if isinstance(node, yaml.SequenceNode) else parts
        known[id(node)] = 1 + sum(_limit(part, known, (*above, id(node))) for part in parts)
    if known[id(node)] > _LARGEST:
        raise yaml.YAMLError(f"expected at most {_LARGEST} entries but aliases repeat themselves to more.")
    return known[id(node)]
