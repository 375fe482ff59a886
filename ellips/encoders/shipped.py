"""The architectures of the encoders that ship with the project, by their records."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from torch import nn

from ellips.encoders.cifar_resnet import CifarResNet
from ellips.encoders.lipschitz import LipschitzEncoder
from ellips.encoders.weights import shipped_provenance


def _cifar_resnet(name: str, recipe: Mapping[str, Any]) -> tuple[nn.Module, str]:
    return CifarResNet(recipe["depth"], recipe["width"]), name


def _lipschitz(name: str, recipe: Mapping[str, Any]) -> tuple[nn.Module, None]:
    return LipschitzEncoder(name), None  # proven as it is loaded


# Classes of this project; every other architecture is timm's.
_OWN: Final[Mapping[str, Callable[[str, Mapping[str, Any]], tuple[nn.Module, str | None]]]] = {
    "CifarResNet": _cifar_resnet,
    "LipschitzEncoder": _lipschitz,
}


def shipped_model(name: str) -> tuple[str | nn.Module, str | None]:
    """Return what :class:`ellips.FrozenEncoder` takes for a shipped encoder: its model, and weights for it.

    Args:
        name: One of :func:`ellips.encoders.weights.shipped_names`.

    Returns:
        A timm name or a module, and the weights' name, or None if the module has them.
    """
    record = shipped_provenance(name)
    own = _OWN.get(record["architecture"].partition("(")[0].rpartition(".")[2])
    return (record["architecture"], name) if own is None else own(name, record["recipe"])
