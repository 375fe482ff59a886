"""The shipped configurations, as tests start commands with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

CONFIGS = Path(__file__).parents[1] / "configs"


def arguments(*names: str) -> list[str]:
    """The command line that names configurations, such as ``data/digits``."""
    return [word for name in names for word in ("--config", str(CONFIGS / f"{name}.yaml"))]


DIGITS = arguments("data/digits", "model/digits")


def merged(*names: str) -> dict[str, Any]:
    """Several configurations as one, later ones over earlier ones."""
    result: dict[str, Any] = {}
    for name in names:
        result = _over(result, yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()))
    return result


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    both = {
        k: _over(below[k], v) if isinstance(v, dict) and isinstance(below.get(k), dict) else v for k, v in above.items()
    }
    return {**below, **both}
