"""The frozen pretrained encoder: images in, features out, nothing about it ever changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from timm.models import get_pretrained_cfg
from torch import Tensor, nn

from ellips.encoders.preprocessing import Preprocess
from ellips.encoders.registry import registered_encoders
from ellips.encoders.shipped import shipped_model
from ellips.encoders.timm_models import create_timm
from ellips.encoders.weights import find_weights, shipped_names, shipped_provenance, state_digest
from ellips.precision import HALF_TYPES, OnePrecision, Precision
from ellips.validation import one_of

_PROBE_SIZE = 32  # side of the image that measures the feature width of a module that takes any size


class FrozenEncoder(OnePrecision):
    """Resize, normalise, backbone: the whole map from images with values in [0, 1] to features, frozen.

    Frozen means: no parameter requires a gradient, and every layer stays in eval mode whatever :meth:`train` is told,
    so running statistics do not move either. Gradients with respect to the *images* flow, which is what Lipschitz
    estimates need.

    It computes in one precision, its own, wherever it is used: for features, latents and certificates alike, under any
    trainer. What a certificate says of an encoder in half precision is in docs/promises.md.

    Args:
        model: A timm model name (``"test_resnet"``, ``"vit_base_patch16_224.augreg_in21k"``), the name of a shipped
            encoder (``"cifar10_noise"``) or of one of :func:`ellips.encoders.registered_encoders`
            (``"imagenet_resnet50_l2_eps1"``), which needs nothing else, or any module that maps
            ``(N, in_channels, H, W)`` to ``(N, D)``. A module is taken as it is, weights included, and is not copied.
        weights: For a name: ``"hub"`` (timm's own), ``"hub:OWNER/NAME"`` (a timm or OpenCLIP state dict), a
            ``.safetensors``/``.pth``/``.pt``/``.bin`` file, the name of a shipped encoder (``"digits"``) or of a
            registered one, or ``"random"`` to say that untrained weights are meant. For a module: a file or such a
            name to load into it, or None.
        input_size: Side, or ``(height, width)``, that images are resized to. None takes the model's own configuration;
            a module without one gets images as they come.
        mean: Per channel. None takes the model's configuration; a module without one gets no normalisation.
        std: Per channel, like ``mean``.
        interpolation: ``"bilinear"``, ``"bicubic"`` or ``"nearest-exact"``. None takes the model's configuration.
        in_channels: Channels the backbone takes. None takes the model's configuration, 3 where there is none.
        projection: Keep the backbone's last linear layer. None keeps it for OpenCLIP state dicts alone, whose image
            features include it.
        precision: ``"32"`` (float32), or ``"bf16"`` or ``"16"``: autocast with float32 weights, and features that are
            numbers of that type.
        seed: Seed of ``weights="random"``.

    Raises:
        ValueError: If an argument does not fit, or the weights do not fit the architecture.
        WeightsNotFoundError: If the weights cannot be found; the message says what to fetch and where to put it.

    Example:
        >>> encoder = FrozenEncoder("test_resnet", weights="digits")
        >>> encoder(torch.rand(2, 1, 8, 8)).shape
        torch.Size([2, 96])
    """

    def __init__(
        self,
        model: str | nn.Module,
        *,
        weights: str | Path | None = None,
        input_size: int | tuple[int, int] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        interpolation: str | None = None,
        in_channels: int | None = None,
        projection: bool | None = None,
        precision: Precision = "32",
        seed: int = 0,
    ) -> None:
        super().__init__()
        one_of(get_args(Precision), precision=precision)
        self.precision = precision
        settings = {"weights": weights, "input_size": input_size, "mean": mean, "std": std, "seed": seed}
        settings |= {"interpolation": interpolation, "in_channels": in_channels, "projection": projection}
        plain = {name: _plain(value) for name, value in settings.items() if value is not None}
        self.arguments = {"model": model if isinstance(model, str) else None, "precision": precision, **plain}
        if weights is None and isinstance(model, str) and model in shipped_names():
            model, weights = shipped_model(model)
        elif weights is None and isinstance(model, str) and model in registered_encoders():
            model, weights = registered_encoders()[model].architecture, model
        given = {"mean": mean, "std": std, "interpolation": interpolation, "in_channels": in_channels}
        config = _own_config(model, weights)
        config.update({key: value for key, value in given.items() if value is not None})
        if input_size is not None:
            config["size"] = _pair(input_size)
        self.preprocess = Preprocess(**{key: value for key, value in config.items() if key != "fixed_size"})
        if isinstance(model, str):
            arguments: dict[str, Any] = {"img_size": config["size"]} if config.get("fixed_size") else {}
            if in_channels is not None:
                arguments["in_chans"] = in_channels
            self.architecture = model.partition(".")[0]
            self.backbone = create_timm(model, weights, projection=projection, seed=seed, **arguments)
        else:
            self.architecture = getattr(model, "ARCHITECTURE", f"{type(model).__module__}.{type(model).__qualname__}")
            self.backbone = _with_weights(model, weights)
        self.requires_grad_(False)
        self.eval()
        self.feature_dim = self._measure_width()

    def forward(self, images: Tensor) -> Tensor:
        """Encode images.

        Args:
            images: Shape ``(N, C, H, W)``, values in [0, 1], any resolution, C = 1 or as many as the backbone takes.

        Returns:
            Features ``(N, feature_dim)``; float32 even where their values are those of half precision.

        Raises:
            TypeError: If the images are not floating point.
            ValueError: If their shape does not fit.
        """
        self._stay_frozen()
        with self.arithmetic(images.device):
            return self._rounded(self.backbone(self.preprocess(images)))

    def encode(self, images: Tensor) -> Tensor:
        """Like :meth:`forward`, for images whose gradients nobody will ask for: inference mode, channels last.

        Args:
            images: As for :meth:`forward`.

        Returns:
            Features ``(N, feature_dim)``; ordinary tensors that a trained module may save for its backward pass.

        Raises:
            TypeError: If the images are not floating point.
            ValueError: If their shape does not fit.
        """
        self._stay_frozen()
        with torch.inference_mode(), self.arithmetic(images.device):
            inputs = self.preprocess(images).contiguous(memory_format=torch.channels_last)
            features = self._rounded(self.backbone(inputs))
        return features.clone()  # outside inference mode, so that autograd accepts it

    def train(self, mode: bool = True) -> FrozenEncoder:
        """Stay in eval mode, whatever ``mode`` says: dropout and running statistics are off for good."""
        super().train(False)
        return self

    def fingerprint(self) -> dict[str, str]:
        """What the features depend on, as short strings that can be compared and stored.

        Returns:
            ``architecture``, ``weights`` (SHA-256 over all parameters and buffers), ``preprocessing``,
            ``feature_dim`` and ``precision``.
            Read from the weights as they are now, so it tells if someone has changed them.
        """
        return {
            "architecture": self.architecture,
            "weights": f"sha256:{state_digest(self.backbone)}",
            "preprocessing": self.preprocess.describe(),
            "feature_dim": str(self.feature_dim),
            "precision": self.precision,
        }

    def extra_repr(self) -> str:
        """Architecture, feature width and precision, for ``print``."""
        return f"architecture={self.architecture!r}, feature_dim={self.feature_dim}, precision={self.precision!r}"

    def _stay_frozen(self) -> None:
        if self.backbone.training:  # someone reached past train(), to the backbone itself
            self.backbone.eval()

    def _rounded(self, features: Tensor) -> Tensor:
        """Return features as float32, rounded to half precision even where the last layer was not."""
        half = HALF_TYPES.get(self.precision, features.dtype)
        return features if features.dtype == torch.float64 else features.to(half).float()

    def _measure_width(self) -> int:
        size = self.preprocess.size or (_PROBE_SIZE, _PROBE_SIZE)
        first = next(self.backbone.parameters(), self.preprocess.mean)
        probe = torch.zeros(1, self.preprocess.in_channels, *size, device=first.device)
        self.preprocess.to(first.device, first.dtype)
        with torch.no_grad():
            features = self.backbone(self.preprocess(probe))
        if not isinstance(features, Tensor) or features.ndim != 2:
            got = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise ValueError(
                f"Expected the encoder {self.architecture} to map images to features of shape (N, D) but got {got}; "
                "wrap it in a module that pools, or flattens, its output."
            )
        return int(features.shape[1])


def _own_config(model: str | nn.Module, weights: str | Path | None) -> dict[str, Any]:
    """Preprocessing from what is recorded of named weights, or from timm's configuration of the model."""
    if isinstance(model, str) and isinstance(weights, str):
        if weights in shipped_names():
            record = shipped_provenance(weights)
            _require_architecture(record["architecture"], model, f"shipped weights {weights!r}")
            return _sized(record["preprocessing"])
        if (entry := registered_encoders().get(weights)) is not None:
            network = entry.architecture.partition(".")[0]
            _require_architecture(network, model.partition(".")[0], f"registry's weights {weights!r}")
            return _timm_config(model) | _sized(entry.preprocessing)
    return _timm_config(model)


def _timm_config(model: str | nn.Module) -> dict[str, Any]:
    source = get_pretrained_cfg(model) if isinstance(model, str) else getattr(model, "pretrained_cfg", None)
    if source is None:
        return {}
    own = source if isinstance(source, dict) else source.to_dict()
    channels, height, width = own["input_size"]
    return {
        "in_channels": channels,
        "size": (height, width),
        "mean": own["mean"],
        "std": own["std"],
        "interpolation": own["interpolation"],
        "fixed_size": isinstance(model, str) and own.get("fixed_input_size", False),
    }


def _require_architecture(expected: str, model: str, weights: str) -> None:
    if model != expected:
        raise ValueError(f"Expected `model` to be {expected!r}, which the {weights} are for, but got {model!r}.")


def _sized(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {**settings, "size": _pair(settings["size"])}


def recorded_encoder(encoder: nn.Module) -> dict[str, Any] | None:
    """Return what makes an encoder again, as a configuration has it; None where plain values do not say it."""
    if type(encoder) is not FrozenEncoder or not isinstance(encoder.arguments["model"], str):
        return None
    return {"class_path": "ellips.encoders.FrozenEncoder", "init_args": encoder.arguments}


def _plain(value: Any) -> Any:  # noqa: ANN401 - any setting
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


def _with_weights(model: nn.Module, weights: str | Path | None) -> nn.Module:
    if weights is not None:
        model.load_state_dict(find_weights(weights, type(model).__name__).state)
    return model
