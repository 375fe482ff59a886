"""A frozen encoder's shape, without its weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm
import torch
from timm.models import get_pretrained_cfg
from torch import Tensor, nn

from ellips.encoders import FrozenEncoder, registered_encoders
from ellips.encoders.weights import shipped_names, shipped_provenance

_KEPT = ("input_size", "in_channels", "mean", "std", "interpolation")


class _Features(nn.Module):
    """Stands for a network of which only the width of its features is known."""

    def __init__(self, feature_dim: int) -> None:
        super().__init__()
        self.feature_dim = feature_dim

    def forward(self, images: Tensor) -> Tensor:
        return images.new_zeros(len(images), self.feature_dim)


def outline(arguments: Mapping[str, Any], feature_dim: int | None = None) -> FrozenEncoder:
    """Build an encoder on torch's meta device: its shapes are true, it has no weights, nothing is fetched.

    Args:
        arguments: Of :class:`ellips.encoders.FrozenEncoder`, or of :class:`ellips.encoders.Denoised`, whose encoder is
            meant; classes inside are given by ``class_path`` and ``init_args``.
        feature_dim: Width of the features, for what is no timm model.

    Raises:
        ValueError: If the model is no timm model and ``feature_dim`` is not given.
    """
    inner = arguments.get("encoder")
    if inner is not None:
        return outline(inner["init_args"], feature_dim)
    model, weights = arguments.get("model"), arguments.get("weights")
    if feature_dim is not None:
        return FrozenEncoder(_Features(feature_dim))
    if weights is None and isinstance(model, str) and model in shipped_names():
        return FrozenEncoder(model, **{name: arguments[name] for name in _KEPT if arguments.get(name) is not None})
    named = model if weights is None else weights
    if isinstance(named, str) and (entry := registered_encoders().get(named)) is not None:
        model, weights = entry.architecture, named
    if not isinstance(model, str) or not timm.is_model(model.partition(".")[0]):
        raise ValueError(
            f"Expected an encoder that is a timm model, whose shape is known without its weights, but got {model!r}; "
            "say by --feature_dim how many features it has."
        )
    given = {name: arguments[name] for name in _KEPT if arguments.get(name) is not None}
    if isinstance(weights, str) and (record := _preprocessing(weights)) is not None:
        given = {"input_size": record["size"], **{k: v for k, v in record.items() if k in _KEPT}} | given
    return FrozenEncoder(_backbone(model, weights, arguments.get("projection"), given), **given)


def _preprocessing(weights: str) -> Mapping[str, Any] | None:
    if weights in shipped_names():
        shipped: Mapping[str, Any] = shipped_provenance(weights)["preprocessing"]
        return shipped
    entry = registered_encoders().get(weights)
    return None if entry is None else entry.preprocessing


def _backbone(model: str, weights: Any, projection: bool | None, given: Mapping[str, Any]) -> nn.Module:  # noqa: ANN401
    config = get_pretrained_cfg(model)
    options: dict[str, Any] = {} if keeps_projection(model, weights, projection) else {"num_classes": 0}
    if config is not None and config.fixed_input_size and "input_size" in given:
        options["img_size"] = given["input_size"]
    if "in_channels" in given:
        options["in_chans"] = given["in_channels"]
    with torch.device("meta"):
        built: nn.Module = timm.create_model(model, pretrained=False, **options)
    return built


def keeps_projection(model: str, weights: object, projection: bool | None) -> bool:
    """Return whether the last linear layer belongs to the encoder.

    Where that is not said it does for OpenCLIP's state dicts. Without reading the weights, those of a CLIP network from
    a file or from an ``OWNER/NAME`` of the hub are taken for such.
    """
    if projection is not None:
        return projection
    own = weights in ("hub", "random", *shipped_names())
    return "clip" in model and not own


def parameter_count(encoder: FrozenEncoder) -> int:
    """Return the number of an encoder's parameters."""
    return sum(parameter.numel() for parameter in encoder.parameters())
