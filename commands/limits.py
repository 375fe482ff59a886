"""What a configuration may grow to when it is read: jsonargparse itself would follow its aliases without end."""

from __future__ import annotations

from typing import Any

import yaml
from jsonargparse import get_loader, set_loader

from ellips.files.configurations import limit_yaml

_plain = get_loader("yaml")


def _limited(text: str) -> Any:  # noqa: ANN401 - whatever YAML holds
    if "&" in text:  # nothing repeats itself without an anchor
        limit_yaml(text)
    return _plain(text)


def limit_configurations() -> None:
    """Let every parser of this process refuse configurations that repeat themselves without end."""
    set_loader("yaml", _limited, (yaml.YAMLError,))
