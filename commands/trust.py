"""What a folder of results may name: classes of this project, built from plain settings; nothing of it is imported.

A results folder says which data, encoder and certifiers its claims are about, by class paths. Whoever made the folder
chose them. jsonargparse would import what they name, also where a text stands for a class, a function or another
configuration. Here a class path is looked up in a list, and every other setting stays the number or text that it is.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from jsonargparse import Namespace

from ellips import lightning_modules
from ellips.datamodules import EncodedDataModule
from ellips.files import build_listed
from ellips.input_certifiers import InputCertifier
from ellips.lipschitz import ConstantSource
from ellips.pipeline import ENCODERS

_FACES: Final = {
    "ellips.datamodules": (
        "CIFAR10DataModule",
        "DigitsDataModule",
        "GaussianMixtureDataModule",
        "ImageFolderDataModule",
        "ImageNetDataModule",
    ),
    "ellips.input_certifiers": (
        "ArtSmoothedDecision",
        "ByConstant",
        "MarginClever",
        "SmoothedDecision",
        "SmoothedEncoder",
    ),
    "ellips.lipschitz": ("Clever", "JacobianNorm", "KnownConstant", "SpectralProduct"),
}
BUILDABLE: Final[Mapping[str, type]] = {
    **{f"{face}.{name}": getattr(import_module(face), name) for face, names in _FACES.items() for name in names},
    **ENCODERS,
}
"""By class path, what is built for a folder that nobody vouches for. None of them runs code that a setting names."""

_OF_TRAINING: Final = {
    *("augment", "copies", "val_copies", "batch_by_image", "images_per_class"),
    *("cache_dir", "cache_dtype", "shard_rows", "download", "num_workers"),
}
"""Settings of data that have no part in which images there are: some write files, fetch some, or start processes."""

_MODULES: Final = ("ellips.lightning_modules", "lightning_modules")

_CURE = (
    "Give the configuration that the run was made with yourself (--config FILE), or --trust if whoever made the folder "
    "may run code on this machine."
)


def build_run(recorded: Mapping[str, Any], where: Path) -> dict[str, Any]:
    """Build data and certifiers of a run as its folder describes them, if all of it is on the list.

    Args:
        recorded: ``data``, and if the folder has them ``certifiers`` and ``input_method``.
        where: The file, for messages.

    Raises:
        ValueError: If a class is not on the list, or something else is where a class is needed.
    """
    built = {"certifiers": [], "input_method": "exact", **recorded}
    built |= {name: build_recorded(built.get(name), where) for name in ("data", "certifiers")}
    if not isinstance(built["data"], EncodedDataModule):
        raise ValueError(f"{where}: expected a datamodule with an encoder as `data` but got {built['data']!r}. {_CURE}")
    kinds, given = (InputCertifier, ConstantSource), built["certifiers"]
    if not isinstance(given, list) or not all(isinstance(certifier, kinds) for certifier in given):
        raise ValueError(f"{where}: expected a list of certifiers but got {given!r}. {_CURE}")
    return built


def build_recorded(content: Any, where: Path) -> Any:  # noqa: ANN401 - whatever the settings describe
    """Build what a folder's configuration describes, if all of it is on the list.

    Args:
        content: Plain values, lists, and mappings with ``class_path`` and ``init_args``.
        where: The file, for messages.

    Raises:
        ValueError: If a class is not on the list, or its settings do not fit; file and cure are named.
    """
    return build_listed(content, where, BUILDABLE, left_out=_OF_TRAINING, cure=_CURE)


def check_hyperparameters(checkpoint: Any, given: Any, where: str) -> None:  # noqa: ANN401 - whatever the file holds
    """Refuse a checkpoint whose settings of the model could name code: Lightning gives them to its parser.

    Numbers, lists of them, words and what the configuration says as well are let through.

    Args:
        checkpoint: What the file holds.
        given: The model's settings in the configuration.
        where: The file, for messages.

    Raises:
        ValueError: If a setting is something else; it is named.
    """
    found = checkpoint.get("hyper_parameters") if isinstance(checkpoint, Mapping) else None
    known = given.as_dict() if isinstance(given, Namespace) else {}
    if "class_path" in known:
        known = {"_class_path": known["class_path"], **(known.get("init_args") or {})}
    classes = {f"{package}.{name}" for package in _MODULES for name in lightning_modules.__all__}
    for name, value in (found or {}).items():
        fine = value in classes if name == "_class_path" else _is_plain(value)
        if not (fine or (name in known and known[name] == value)) and name != "_instantiator":  # which Lightning drops
            raise ValueError(
                f"{where}: expected numbers and words as settings of the model but got {name}={value!r}, which could "
                "name code. Give the same setting in a configuration (--config FILE) if it is meant."
            )


def _is_plain(value: object) -> bool:
    """Whether a setting can be neither a class path nor the name of a file."""
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    if isinstance(value, str):
        return re.fullmatch(r"[\w-]*", value) is not None and not Path(value or "-").exists()
    return value is None or isinstance(value, bool | int | float)


def leave_out_of_path(folder: Path) -> None:
    """Let no module be imported from a folder of results, whatever is imported later and wherever this was started."""
    forbidden = folder.resolve()
    sys.path[:] = [entry for entry in sys.path if not Path(entry or ".").resolve().is_relative_to(forbidden)]
