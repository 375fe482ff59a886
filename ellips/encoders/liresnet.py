"""LiResNet (Hu, Zou, Wang, Leino and Fredrikson, NeurIPS 2023): published networks, brought into plain layers.

Only numbers are read of a checkpoint. What it says of its own Lipschitz constant, by power iteration, is not believed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ellips.encoders.imported import (
    Centred,
    ImportedArchitecture,
    MinMax,
    fill,
    linear_layers,
    orthonormal_rows,
    read_checkpoint,
    section,
)


@dataclass(frozen=True)
class LiResNetArchitecture(ImportedArchitecture):
    """Layers of a LiResNet without its last, linear one.

    A convolution (the stem), 3x3 convolutions, one over squares of 4x4 pixels, linear layers; MinMax behind all of them
    but the convolution over squares. What was residual in training is added into the convolutions.

    Attributes:
        image_shape: Channels, height and width of the images.
        width: Channels of the convolutions, even.
        depth: 3x3 convolutions.
        stem: Side, stride and padding of the stem's kernel.
        linear_depth: Linear layers behind the first.
        feature_dim: Width of the linear layers and of the features, even.

    Raises:
        ValueError: If the sizes do not fit each other.
    """

    kind: ClassVar[str] = "liresnet"

    image_shape: tuple[int, int, int] = (3, 32, 32)
    width: int = 128
    depth: int = 12
    stem: tuple[int, int, int] = (5, 2, 2)
    linear_depth: int = 8
    feature_dim: int = 2048

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width < 2 or self.width % 2 or self.feature_dim % 2 or min(self.depth, self.linear_depth) < 1:
            raise ValueError(
                "Expected even `width` and `feature_dim`, for MinMax, and positive depths but got "
                f"{self.width}, {self.feature_dim}, {self.depth} and {self.linear_depth}."
            )
        if len(self.stem) != 3 or min(self.stem[:2]) < 1 or min(self.map_size) < 4 or any(s % 4 for s in self.map_size):
            raise ValueError(
                f"Expected the stem to leave a height and a width that 4 divides but got {self.stem} on "
                f"{self.image_shape}."
            )

    @property
    def map_size(self) -> tuple[int, int]:
        """Height and width behind the stem."""
        kernel, stride, padding = self.stem
        height, width = ((side + 2 * padding - kernel) // stride + 1 for side in self.image_shape[1:])
        return height, width

    @property
    def untold(self) -> str:
        """The stem: its stride and padding are in no weight."""
        default = LiResNetArchitecture.stem
        return "" if tuple(self.stem) == default else f"stem={tuple(self.stem)!r}"

    def build(self) -> nn.Sequential:
        """Return the plain layers, with random weights."""
        kernel, stride, padding = self.stem
        layers: list[nn.Module] = [nn.Conv2d(self.image_shape[0], self.width, kernel, stride, padding), MinMax()]
        for _ in range(self.depth):
            layers += [nn.Conv2d(self.width, self.width, 3, padding=1), MinMax()]
        layers += [nn.Conv2d(self.width, self.width, 4, 4, bias=False), nn.Flatten()]
        inner = self.width * self.map_size[0] * self.map_size[1] // 16
        return nn.Sequential(Centred(), *layers, *linear_layers(inner, self.feature_dim, 1 + self.linear_depth))


def import_liresnet(path: str | Path) -> tuple[LiResNetArchitecture, nn.Sequential]:
    """Read a checkpoint of the authors' training program into plain layers; nothing in it is executed.

    What comes out is for :func:`ellips.encoders.lipschitz.export_encoder`, which proves it and divides it by what is
    proven.

    Args:
        path: The ``.pth`` file: a dictionary with the network under ``backbone``, or the network's state dict.

    Returns:
        The layers' arrangement, and the layers.

    Raises:
        ValueError: If it holds something else, or activations other than MinMax.
    """
    state, settings = read_checkpoint(path)
    _require_minmax(settings, path)
    try:
        return from_state(state)
    except (KeyError, RuntimeError, IndexError) as error:
        raise ValueError(f"Expected {path} to hold a LiResNet but got {error!r}.") from error


def from_state(state: Mapping[str, Tensor]) -> tuple[LiResNetArchitecture, nn.Sequential]:
    """Return the arrangement and the plain layers of a state dict in float64."""
    stem, kernels, linear = state["stem.0.weight"], state["conv.weights"], state["linear.weights"]
    channels, height, width = state["stem.0.init_x"].shape[1:]
    side = stem.shape[-1]
    # Patches for large images, and otherwise overlapping windows of 5 with a stride of 2.
    patches = side != 5 or height // side == state["conv.init_x"].shape[-2]
    architecture = LiResNetArchitecture(
        image_shape=(channels, height, width),
        width=kernels.shape[1],
        depth=len(kernels),
        stem=(side, side, 0) if patches else (5, 2, 2),
        linear_depth=len(linear),
        feature_dim=linear.shape[1],
    )
    if architecture.map_size != tuple(state["conv.init_x"].shape[-2:]):
        raise ValueError(f"Expected maps of {architecture.map_size} but got {tuple(state['conv.init_x'].shape[-2:])}.")
    network = architecture.build().eval()
    fill(network, ({"weight": w} if b is None else {"weight": w, "bias": b} for w, b in _folded(state)))
    return architecture, network


def _folded(state: Mapping[str, Tensor]) -> Iterable[tuple[Tensor, Tensor | None]]:
    """Yield weight and bias of each layer, in order, as the network computes them in eval mode."""
    yield state["stem.0.weight"], state["stem.0.bias"]
    kernels = state["conv.weights"] * state["conv.gamma"] * len(state["conv.weights"]) ** -0.5
    width = kernels.shape[1]
    kernels[:, :, :, 1, 1] += torch.eye(width, dtype=kernels.dtype)
    yield from zip(kernels, state["conv.bias"] - state["conv.running_mean"], strict=True)
    yield orthonormal_rows(state["neck.kernel"]).view(width, width, 4, 4), None
    yield orthonormal_rows(state["neck.weight"]), state["neck.bias"]
    matrices = state["linear.weights"] * state["linear.gamma"] * len(state["linear.weights"]) ** -0.5
    matrices = matrices + torch.eye(matrices.shape[1], dtype=matrices.dtype)
    yield from zip(orthonormal_rows(matrices), state["linear.bias"], strict=True)


def _require_minmax(settings: Mapping[str, Any], path: str | Path) -> None:
    """Refuse a checkpoint whose settings name other activations; its tensors do not show them."""
    name = section(settings, "model").get("act_name", "MinMax")
    if str(name).lower() != "minmax":
        raise ValueError(f"Expected {path} to be of a LiResNet with MinMax but got {name!r}.")
