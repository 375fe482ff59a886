"""BRONet (Lai et al., ICML 2025, arXiv 2505.15174): published networks, brought into plain layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ellips.encoders.imported import (
    Centred,
    ImportedArchitecture,
    MinMax,
    StateTensors,
    fill,
    linear_layers,
    orthonormal_rows,
    read_checkpoint,
    section,
)
from ellips.encoders.reflector import BlockReflector, reflector_rows

_LARGE, _PATCH = 224, 14  # images of this side are cut into squares of that
_NECK_RIDGE, _LINEAR_RIDGE = 1e-5, 1e-7  # of the mean diagonal, in block reflectors


@dataclass(frozen=True)
class BRONetArchitecture(ImportedArchitecture):
    """Layers of a BRONet without its last, linear one.

    A convolution (the stem), 3x3 convolutions, block reflectors, one layer over squares of pixels, linear layers;
    MinMax behind all of them but the one over squares. What was residual in training is added into the weights.

    Attributes:
        image_shape: Channels, height and width of the images, which are square.
        width: Channels of the convolutions, even.
        rank: Directions that a block reflector reflects at each frequency.
        stem: Side, stride and padding of the stem's kernel.
        residual_depth: 3x3 convolutions, zero-padded; they are not orthogonal.
        depth: Block reflectors.
        growing: Whether the maps grow by two pixels each way in every block reflector.
        patch: Side of the squares behind them.
        norms: Whether of a square the L2 norm of each channel is taken instead of a matrix.
        linear_depth: Linear layers behind the first.
        feature_dim: Width of the linear layers and of the features, even.

    Raises:
        ValueError: If the sizes do not fit each other.
    """

    kind: ClassVar[str] = "bronet"

    image_shape: tuple[int, int, int] = (3, 32, 32)
    width: int = 512
    rank: int = 256
    stem: tuple[int, int, int] = (5, 2, 2)
    residual_depth: int = 0
    depth: int = 12
    growing: bool = False
    patch: int = 4
    norms: bool = False
    linear_depth: int = 8
    feature_dim: int = 2048

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % 2 or self.feature_dim % 2 or not 0 < self.rank < self.width:
            raise ValueError(
                "Expected even `width` and `feature_dim`, for MinMax, and a positive `rank` below the width but got "
                f"{self.width}, {self.feature_dim} and {self.rank}."
            )
        if min(self.depth, self.linear_depth, self.patch) < 1 or self.residual_depth < 0:
            raise ValueError(
                "Expected positive `depth`, `linear_depth` and `patch`, and `residual_depth` of at least 0, but got "
                f"{self.depth}, {self.linear_depth}, {self.patch} and {self.residual_depth}."
            )
        if len(self.stem) != 3 or min(self.stem[:2]) < 1 or self.image_shape[1] != self.image_shape[2]:
            raise ValueError(f"Expected square images and a kernel but got {self.image_shape} and {self.stem}.")
        if self.sides[0] < 2 or self.sides[0] % 2 or self.sides[-1] % self.patch:
            raise ValueError(
                f"Expected maps of an even side that `patch`, {self.patch}, divides in the end, but they have sides of "
                f"{self.sides}."
            )

    @property
    def sides(self) -> tuple[int, ...]:
        """Height, and width, of the maps behind the stem and behind each block reflector."""
        kernel, stride, padding = self.stem
        first = (self.image_shape[1] + 2 * padding - kernel) // stride + 1
        return tuple(first + 2 * i * self.growing for i in range(self.depth + 1))

    @property
    def untold(self) -> str:
        """What the shapes of the weights leave open, unless it is the default."""
        names = ("stem", "growing", "patch", "norms")
        return ", ".join(f"{x}={getattr(self, x)!r}" for x in names if getattr(self, x) != getattr(type(self), x))

    def build(self) -> nn.Sequential:
        """Return the plain layers, whose block reflectors wait for their state to be loaded."""
        width, (kernel, stride, padding) = self.width, self.stem
        layers: list[nn.Module] = [nn.Conv2d(self.image_shape[0], width, kernel, stride, padding), MinMax()]
        for _ in range(self.residual_depth):
            layers += [nn.Conv2d(width, width, 3, padding=1), MinMax()]
        for side in self.sides[:-1]:
            layers += [BlockReflector(width, self.rank, side, growing=self.growing), MinMax()]
        squares = SquareNorms(self.patch) if self.norms else nn.Conv2d(width, width, self.patch, self.patch, bias=False)
        inner = width * (self.sides[-1] // self.patch) ** 2
        linear = linear_layers(inner, self.feature_dim, 1 + self.linear_depth)
        return nn.Sequential(Centred(), *layers, squares, nn.Flatten(), *linear)


class SquareNorms(nn.Module):
    """The L2 norm of each channel over squares of pixels that do not overlap: 1-Lipschitz.

    Args:
        patch: Side of the squares; it divides height and width.
    """

    def __init__(self, patch: int) -> None:
        super().__init__()
        self.patch = patch

    def forward(self, maps: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to ``(N, C, H / patch, W / patch)``."""
        squares = maps.unflatten(3, (-1, self.patch)).unflatten(2, (-1, self.patch))
        norms: Tensor = torch.linalg.vector_norm(squares, dim=(3, 5))
        return norms


def import_bronet(
    path: str | Path, settings: Mapping[str, Any] | None = None
) -> tuple[BRONetArchitecture, nn.Sequential]:
    """Read a checkpoint of the authors' training program into plain layers; nothing in it is executed.

    What comes out is for :func:`ellips.encoders.lipschitz.export_encoder`, which proves it and divides it by what is
    proven. Known are the arrangements of the published configurations: block reflectors whose padding is cut off
    (``bro``) or stays (``brov2``), by themselves or behind 3x3 convolutions (``hybrid``), and their matrices by block
    reflectors or by Cholesky factors.

    Args:
        path: The ``.pth`` file: a dictionary with the network under ``backbone`` and its settings under ``configs``. Or
            the network's state dict, ``.safetensors`` too.
        settings: For a file without them: the content of the ``config.yaml`` beside it, by section. Tensors of the
            same shapes stand for different networks.

    Returns:
        The layers' arrangement, and the layers.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds something else, an arrangement that is not known, or does not say which.
    """
    state, carried = read_checkpoint(path)
    try:
        return _from_state(state, _agreed(carried, settings))
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"Expected {path} to hold a BRONet of a published arrangement. {error}") from error


@dataclass(frozen=True)
class _Settings:
    """What the tensors of a checkpoint do not tell; names are those of the authors' configuration."""

    input_size: int
    backbone_type: str
    neck_conv_type: str
    neck_conv_patch_size: int
    neck_linear_type: str
    dense_type: str


_CHOICES: Mapping[str, tuple[object, ...]] = {
    "input_size": (32, 64, 224),
    "backbone_type": ("bro", "brov2", "hybridbro", "hybridbrov2"),
    "neck_conv_type": ("l2", "cholesky", "bro"),
    "neck_linear_type": ("cholesky", "bro"),
    "dense_type": ("cholesky", "bro"),
    "type": ("loresnet",),
    "act_name": ("minmax",),
    "backbone_centering": (True,),
    "backbone_quasi_residual": (True,),
    "backbone_zero_padding": (True,),
    "neck_conv_patch_size_2": (0,),
    "dense_quasi_residual": (True,),
}
"""What is known of each setting; every published configuration is among it."""

_DEFAULTS: Mapping[str, object] = {
    "input_size": 32,
    "neck_conv_patch_size": 4,
    "dense_type": "bro",
    **{name: known[0] for name, known in _CHOICES.items() if len(known) == 1},
}
"""What the authors' program takes for a setting that is not given; a name without one has to be."""


def _agreed(*sources: Mapping[str, Any] | None) -> _Settings:
    """Return the settings that all sources which name a model state alike."""
    found = [_read_settings(source) for source in sources if source and section(source, "model")]
    if not found:
        raise ValueError(
            "Its tensors alone leave open which network they are of; hand in the content of the `config.yaml` that "
            "belongs to it: import_bronet(path, settings=yaml.safe_load(...))."
        )
    if found[-1] != found[0]:
        raise ValueError(f"It carries {found[0]} but `settings` says {found[-1]}; hand in its own, or none.")
    return found[0]


def _read_settings(source: Mapping[str, Any]) -> _Settings:
    given = {**_DEFAULTS, **section(source, "model"), **section(source, "dataset")}
    given = {name: value.lower() if isinstance(value, str) else value for name, value in given.items()}
    for name, known in _CHOICES.items():
        if given.get(name) not in known:
            raise ValueError(f"Expected the setting `{name}` to be one of {known} but got {given.get(name)!r}.")
    patch = given["neck_conv_patch_size"]
    if not isinstance(patch, int) or patch < 1:
        raise ValueError(f"Expected the setting `neck_conv_patch_size` to be a positive number but got {patch!r}.")
    return _Settings(**{field.name: given[field.name] for field in fields(_Settings)})


def _from_state(state: Mapping[str, Tensor], settings: _Settings) -> tuple[BRONetArchitecture, nn.Sequential]:
    """Return the arrangement and the plain layers of a state dict in float64."""
    tensors = StateTensors(state)
    width, rank = tensors.shape("conv.weights", 5)[1:3]
    hybrid = settings.backbone_type.startswith("hybrid")
    if hybrid != ("conv_1.weights" in state):
        raise ValueError(f"Expected `conv_1.weights` just where the type is hybrid but got {settings.backbone_type!r}.")
    kernel, side = tensors.shape("stem.0.weight", 4)[-1], int(settings.input_size)
    tensors.take("stem.0.init_x", 1, 3, side, side)  # what the program's own bound starts from tells the image size
    architecture = BRONetArchitecture(
        image_shape=(3, side, side),
        width=width,
        rank=rank,
        stem=(_PATCH, _PATCH, 0) if side == _LARGE else (kernel, 2, kernel // 2),
        residual_depth=tensors.shape("conv_1.weights", 5)[0] if hybrid else 0,
        depth=tensors.shape("conv.weights", 5)[0],
        growing=settings.backbone_type.endswith("v2"),
        patch=settings.neck_conv_patch_size,
        norms=settings.neck_conv_type == "l2",
        linear_depth=tensors.shape("linear.weights", 3)[0],
        feature_dim=tensors.shape("neck.bias", 1)[0],
    )
    layers = list(_folded(tensors, architecture, settings))  # all are looked at before anything is computed
    network = architecture.build().eval()
    fill(network, layers)
    return architecture, network


def _folded(tensors: StateTensors, known: BRONetArchitecture, settings: _Settings) -> Iterator[dict[str, Tensor]]:
    """Yield the tensors of each plain layer, in order, as the network computes them in eval mode."""
    width, dim = known.width, known.feature_dim
    side, count = known.stem[0], known.residual_depth
    yield {"weight": tensors.take("stem.0.weight", width, 3, side, side), "bias": tensors.take("stem.0.bias", width)}
    if count:
        shape = (count, width, width, 3, 3)
        kernels = tensors.residual("conv_1", _centre(width, width).expand(shape), shape)
        yield from _layers(kernels, tensors.biases("conv_1", count, width), "weight")
    kernels = tensors.residual("conv", _centre(width, known.rank), (known.depth, width, known.rank, 3, 3))
    tensors.require_identity("conv.I_low", known.rank, 5)
    tensors.require_identity("conv.I_full", width, 5)
    # Growing layers have the conjugate matrix at each frequency, and a phase, which cancels: the kernel turned around.
    kernels = kernels.flip(3, 4) if known.growing else kernels
    yield from _layers(kernels, tensors.biases("conv", known.depth, width), "kernel")
    if not known.norms:
        rows = _rows(tensors, "neck.kernel", settings.neck_conv_type, width, width * known.patch**2)
        yield {"weight": rows.view(width, width, known.patch, known.patch)}
    inner = width * (known.sides[-1] // known.patch) ** 2
    matrix = _rows(tensors, "neck.weight", settings.neck_linear_type, dim, inner)
    yield {"weight": matrix, "bias": tensors.take("neck.bias", dim)}
    yield from _layers(*_linear(tensors, settings.dense_type, known.linear_depth, dim), "weight")


def _linear(tensors: StateTensors, kind: str, depth: int, dim: int) -> tuple[Tensor, Tensor]:
    """Return matrices and biases of the linear layers behind the first."""
    biases = tensors.take("linear.bias", depth, dim)
    tensors.require_identity("linear.identity", dim, 2)
    if kind == "cholesky":
        return orthonormal_rows(tensors.residual("linear", torch.eye(dim).double(), (depth, dim, dim))), biases
    rank = tensors.shape("linear.weights", 3)[2]
    tensors.require_identity("linear.identity_half", rank, 2)
    directions = tensors.residual("linear", torch.eye(dim, rank).double(), (depth, dim, rank))
    return reflector_rows(directions, dim, _LINEAR_RIDGE), biases


def _rows(tensors: StateTensors, name: str, kind: str, rows: int, columns: int) -> Tensor:
    """Return a matrix of nearly orthonormal rows, made as the settings say."""
    if kind == "cholesky":
        return orthonormal_rows(tensors.take(name, rows, columns))
    return reflector_rows(tensors.take(name, columns, rows), rows, _NECK_RIDGE)


def _layers(weights: Tensor, biases: Tensor, name: str) -> Iterator[dict[str, Tensor]]:
    return ({name: weight, "bias": bias} for weight, bias in zip(weights, biases, strict=True))


def _centre(rows: int, columns: int) -> Tensor:
    """Return the 3x3 kernel of the identity, float64: ones on the diagonal, in the middle of the window."""
    kernel = torch.zeros(rows, columns, 3, 3, dtype=torch.float64)
    kernel[:, :, 1, 1] = torch.eye(rows, columns, dtype=torch.float64)
    return kernel
