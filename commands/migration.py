"""What version 0.1 called otherwise: for results that it left, and to tell its users what to write now."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ellips.types import Series

MOVED = {
    "ellips.lipschitz.LipschitzEncoder": "ellips.encoders.LipschitzEncoder",
    "ellips.lipschitz.SmoothedEncoder": "ellips.input_certifiers.SmoothedEncoder",
    "ellips.lipschitz.MarginClever": "ellips.input_certifiers.MarginClever",
}
PACKAGES = ("datamodules", "callbacks", "lightning_modules")


def current_config(saved: Any) -> Any:  # noqa: ANN401 - whatever YAML holds
    """Return a saved configuration of a certification run with the names of today.

    Class paths of a clone, such as ``datamodules.DigitsDataModule``, get the names that they have in the wheel, too.
    The datamodule's ``precision`` is left out: it was that of features, never that of certificates.

    Args:
        saved: What a ``config.yaml`` holds.
    """
    if isinstance(saved, dict):
        renamed = {"certifiers" if name == "sources" else name: value for name, value in saved.items()}
        if isinstance(data := renamed.get("data"), dict) and isinstance(arguments := data.get("init_args"), dict):
            kept = {name: value for name, value in arguments.items() if name != "precision"}
            renamed["data"] = {**data, "init_args": kept}
        return {name: _current_path(v) if name == "class_path" else current_config(v) for name, v in renamed.items()}
    return [current_config(item) for item in saved] if isinstance(saved, list) else saved


def _current_path(path: Any) -> Any:  # noqa: ANN401 - whatever YAML holds
    if not isinstance(path, str):
        return path
    return f"ellips.{path}" if path.split(".")[0] in PACKAGES else MOVED.get(path, path)


def refuse_sources(given: object) -> None:
    """Tell who still writes ``sources`` what it is called.

    Raises:
        ValueError: Always.
    """
    raise ValueError(f"Expected `certifiers`, as `sources` is called since version 0.2, but got sources={given!r}.")


def current_series(wanted: Sequence[Series], present: Sequence[Series]) -> list[Series]:
    """Return the series of a table for each certifier of its run, in order.

    Args:
        wanted: What they are called today.
        present: What the table has; one of version 0.1 named the source of score margins ``margin-clever``.

    Raises:
        ValueError: If the table lacks one.
    """
    found = [series for series in present if series.space == "input"]
    known = {series: series for series in found}
    known |= {Series("input", "margin", "clever"): s for s in found if s.method == "margin" and s.source}
    missing = [series.name for series in wanted if series not in known]
    if missing:
        raise ValueError(f"Expected rows of {missing} in the table but it has {[s.name for s in present]}.")
    return [known[series] for series in wanted]
