"""timm's models without their classifiers, with weights from wherever they are."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import get_pretrained_cfg
from torch import Tensor, nn

from ellips.encoders.registry import registered_encoders
from ellips.encoders.weights import (
    OPEN_CLIP_CONFIG,
    Weights,
    find_weights,
    how_to_fetch,
    load_file,
    local_copy,
    named_weights,
    shipped_names,
)
from ellips.errors import WeightsNotFoundError


def create_timm(
    name: str,
    weights: str | Path | None,
    *,
    projection: bool | None = None,
    seed: int = 0,
    **model_args: Any,
) -> nn.Module:
    """Build a timm model without its classifier and fill it with weights, every one of them.

    Args:
        name: A timm name, with or without a pretrained tag, e.g. ``"resnet10t.c3_in1k"``.
        weights: ``"hub"``, ``"hub:OWNER/NAME"``, ``"random"``, a shipped or registered name, or a path.
        projection: Keep the last linear layer (for CLIP: the map to the joint image-text space). None keeps it exactly
            for OpenCLIP state dicts, whose image features include it.
        seed: For ``"random"`` only.
        **model_args: For ``timm.create_model``, e.g. ``in_chans`` or ``img_size``.

    Raises:
        ValueError: If timm does not know the name, no weights are named, or they do not fit the architecture.
        WeightsNotFoundError: If the weights are not where they were looked for.
    """
    if name in shipped_names() or name in registered_encoders():
        raise ValueError(
            f"Expected no `weights` with the encoder {name!r}, which has its own, but got {str(weights)!r}; leave them "
            "out, or name the architecture that they are for."
        )
    if not timm.is_model(name.partition(".")[0]):
        close = timm.list_models(f"*{name.partition('.')[0][:6]}*")[:5]
        raise ValueError(f"Expected `model` to be a timm model name but got {name!r}; similar names: {close}.")
    if weights is None:
        raise ValueError(
            f"Expected `weights` for the model {name!r} but got None; choose 'hub', 'hub:OWNER/NAME', a file, "
            f"{named_weights()}, or 'random' to say that untrained weights are meant."
        )
    head_args: dict[str, Any] = {} if projection else {"num_classes": 0}
    if weights == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return _as_module(timm.create_model(name, pretrained=False, **head_args, **model_args))
    if weights == "hub":
        return _create_from_hub(name, head_args, model_args)
    return _create_from_state(name, find_weights(weights, name), projection, model_args)


def _create_from_hub(name: str, head_args: dict[str, Any], model_args: dict[str, Any]) -> nn.Module:
    config = get_pretrained_cfg(name)
    stem = f"{config.architecture}.{config.tag}" if config and config.tag else name
    if (local := local_copy(stem)) is not None:
        return _create_from_state(name, load_file(local), None if head_args else True, model_args)
    try:
        return _as_module(timm.create_model(name, pretrained=True, **head_args, **model_args))
    except Exception as error:  # the hub's clients raise OSError, HTTP library errors and their own
        repository = (config.hf_hub_id if config else None) or f"timm/{stem}"
        filename = (config.hf_hub_filename if config else None) or "model.safetensors"
        raise WeightsNotFoundError(how_to_fetch(name, repository, filename, stem, error)) from error


def _create_from_state(name: str, weights: Weights, projection: bool | None, model_args: dict[str, Any]) -> nn.Module:
    _validate_activation(name, weights)
    classes = _head_width(name, weights.state)
    overlay = {"state_dict": weights.state, "num_classes": classes, "custom_load": False, "label_offset": 0}
    try:
        # With equal class counts timm loads strictly, after the conversions it knows (OpenCLIP among them).
        model = _as_module(
            timm.create_model(name, pretrained=True, num_classes=classes, pretrained_cfg_overlay=overlay, **model_args)
        )
    except RuntimeError as error:
        raise ValueError(
            f"Expected {weights.origin} to hold exactly the weights of {name!r} but they do not fit: {error} "
            "Name the architecture that they were saved from."
        ) from error
    keep = weights.is_open_clip if projection is None else projection
    if keep and not classes:
        raise ValueError(
            f"Expected {weights.origin} to hold a last linear layer because projection=True, but it has none."
        )
    if classes and not keep:
        _drop_classifier(model)
    return model


def _drop_classifier(model: nn.Module) -> None:
    reset = getattr(model, "reset_classifier", None)
    if not callable(reset):
        raise ValueError(f"Expected {type(model).__name__} to have `reset_classifier`, as timm's image models do.")
    reset(0)


def _head_width(name: str, state: dict[str, Tensor]) -> int:
    """Number of outputs of the last linear layer in a state dict, 0 where there is none."""
    if "visual.proj" in state:
        return int(state["visual.proj"].shape[1])
    config = get_pretrained_cfg(name)
    classifier = config.classifier if config else None
    names = (classifier,) if isinstance(classifier, str) else tuple(classifier or ())
    weight = next((state[f"{key}.weight"] for key in names if f"{key}.weight" in state), None)
    return 0 if weight is None else int(weight.shape[0])


def _validate_activation(name: str, weights: Weights) -> None:
    """Refuse, or warn of, OpenCLIP weights in an architecture with the other GELU.

    The state dict does not say which one its network used; the wrong one shifts every feature without an error.
    """
    if not weights.is_open_clip or weights.architecture == name.partition(".")[0]:
        return
    config = weights.folder / OPEN_CLIP_CONFIG if weights.folder else None
    wants_quick = _quick_gelu(config) if config and config.is_file() else None
    has_quick = "quickgelu" in name
    if wants_quick is None and not has_quick:
        warnings.warn(
            f"{weights.origin} is an OpenCLIP state dict and does not say whether its network uses QuickGELU (all of "
            f"OpenAI's and those tuned from them do), and {name!r} does not. For QuickGELU take timm's "
            f"'..._quickgelu_...' architecture. With an {OPEN_CLIP_CONFIG} that states `quick_gelu` beside the file "
            "this is checked.",
            stacklevel=2,
        )
    if wants_quick is not None and wants_quick != has_quick:
        raise ValueError(
            f"Expected an architecture {'with' if wants_quick else 'without'} 'quickgelu' in its name because {config} "
            f"says quick_gelu={wants_quick}, but got {name!r}."
        )


def _quick_gelu(config: Path) -> bool | None:
    content = json.loads(config.read_text(encoding="utf-8"))
    value = content.get("model_cfg", content).get("quick_gelu")
    return None if value is None else bool(value)


def _as_module(model: object) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise TypeError(f"Expected timm to build a module but got {type(model).__name__}.")
    return model
