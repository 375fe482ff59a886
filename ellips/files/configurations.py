"""Configurations from files of others: plain YAML, of a size that can be walked."""

from __future__ import annotations

from collections.abc import Collection, Mapping
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


def build_listed(
    content: Any,  # noqa: ANN401 - whatever the settings describe
    where: Path,
    listed: Mapping[str, type],
    *,
    left_out: Collection[str] = (),
    cure: str = "",
) -> Any:  # noqa: ANN401
    """Build what a configuration of others describes, if all of it is on a list; nothing that it names is imported.

    Args:
        content: Plain values, lists, and mappings with ``class_path`` and ``init_args``.
        where: The file, for messages.
        listed: By class path, what may be built.
        left_out: Names of settings of datamodules that are not used.
        cure: What to do about a refusal.

    Raises:
        ValueError: If a class is not on the list, or its settings do not fit; file and cure are named.
    """
    if isinstance(content, list):
        return [build_listed(item, where, listed, left_out=left_out, cure=cure) for item in content]
    if not isinstance(content, dict):
        return content
    path, arguments = content.get("class_path"), content.get("init_args") or {}
    if not isinstance(path, str) or path not in listed or content.keys() - {"class_path", "init_args"}:
        named = repr(path) if "class_path" in content else f"the entries {sorted(map(str, content))[:5]}"
        raise ValueError(
            f"{where}: expected class paths of this project but got {named}, of which nothing is imported. {cure}"
        )
    if not isinstance(arguments, dict):
        raise ValueError(f"{where}: expected settings by name for {path} but got {arguments!r}.")
    kind = listed[path]
    used = arguments if not path.startswith("ellips.datamodules") else arguments.keys() - set(left_out)
    built = {str(name): build_listed(arguments[name], where, listed, left_out=left_out, cure=cure) for name in used}
    try:
        return kind(**built)
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{where}: expected settings that {path} takes but got others: {error}. {cure}") from error
