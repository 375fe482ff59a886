"""Encoders that are 1-Lipschitz by construction, in plain layers, and proven to be so whenever they are loaded."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ellips.encoders.architecture import EncoderArchitecture
from ellips.encoders.bronet import BRONetArchitecture
from ellips.encoders.lipnext import LipNeXtArchitecture
from ellips.encoders.liresnet import LiResNetArchitecture
from ellips.encoders.weights import SHIPPED_FOLDER, load_file, load_shipped, shipped_names
from ellips.lipschitz.spectral import SpectralProduct
from ellips.validation import one_of

_METADATA = "lipschitz_architecture"


class GroupSort2(nn.Module):
    """Sort neighbouring channels two by two: 1-Lipschitz, and it loses no gradient norm (Anil et al. 2019)."""

    def forward(self, values: Tensor) -> Tensor:
        """Map ``(N, C, ...)`` with even C to the same shape."""
        pairs: Tensor = values.unflatten(1, (-1, 2)).sort(dim=2).values
        return pairs.flatten(1, 2)


@dataclass(frozen=True)
class LipschitzArchitecture(EncoderArchitecture):
    """Layers of a 1-Lipschitz encoder, trained by deel-torchlip.

    For each of ``channels`` a 3x3 convolution, GroupSort2 and, where height and width are even, a rearrangement of
    2x2 pixels to channels (an isometry); then for each of ``widths`` a linear layer and GroupSort2; then a linear
    layer to the features.

    Attributes:
        image_shape: Channels, height and width of the images.
        channels: Channels of the convolutions, even; may be empty.
        widths: Widths of the linear layers, even; may be empty.
        feature_dim: Width of the features.

    Raises:
        ValueError: If a number is not positive, or one that must be even is odd.
    """

    kind: ClassVar[str] = "group_sort"

    image_shape: tuple[int, int, int] = (1, 8, 8)
    channels: tuple[int, ...] = ()
    widths: tuple[int, ...] = (256, 256)
    feature_dim: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, values in (("channels", self.channels), ("widths", self.widths)):
            if any(value < 2 or value % 2 for value in values):
                raise ValueError(f"Expected `{name}` to be positive and even, for GroupSort2, but got {values}.")

    def build(self, linear: type[nn.Linear] = nn.Linear, convolution: type[nn.Conv2d] = nn.Conv2d) -> nn.Sequential:
        """Build the layers, with the given classes for those that have weights."""
        inner, height, width = self.image_shape
        layers: list[nn.Module] = []
        for outer in self.channels:
            layers += [convolution(inner, outer, 3, padding=1), GroupSort2()]
            inner = outer
            if height % 2 == 0 and width % 2 == 0:
                layers.append(nn.PixelUnshuffle(2))
                inner, height, width = 4 * inner, height // 2, width // 2
        layers.append(nn.Flatten())
        size = inner * height * width
        for outer in self.widths:
            layers += [linear(size, outer), GroupSort2()]
            size = outer
        layers.append(linear(size, self.feature_dim))
        return nn.Sequential(*layers)

    def trainable(self) -> nn.Sequential:
        """Return deel-torchlip's layers.

        Raises:
            ImportError: If deel-torchlip is not installed.
        """
        try:
            from deel.torchlip import SpectralConv2d, SpectralLinear
        except ImportError as error:
            raise ImportError(
                "Training 1-Lipschitz encoders of this architecture needs deel-torchlip: pip install "
                "'ellips[lipschitz]'; LipNeXtArchitecture does not."
            ) from error
        return self.build(SpectralLinear, SpectralConv2d)

    def plain(self, trained: nn.Module) -> nn.Sequential:
        """Return plain layers with the weights that trained ones use; deel-torchlip's export themselves."""
        plain = self.build()
        assert isinstance(trained, nn.Sequential)
        for target, layer in zip(plain, trained, strict=True):
            if isinstance(target, nn.Linear | nn.Conv2d):
                export = getattr(layer, "vanilla_export", None)
                target.load_state_dict((export() if callable(export) else layer).state_dict())
        return plain.eval()

    def scaled(self, plain: nn.Module) -> Iterable[nn.Parameter]:
        """Return the last layer's weight and bias."""
        assert isinstance(plain, nn.Sequential)
        return plain[-1].parameters()


ARCHITECTURES: Final[Mapping[str, type[EncoderArchitecture]]] = {
    architecture.kind: architecture
    for architecture in (LipschitzArchitecture, LipNeXtArchitecture, LiResNetArchitecture, BRONetArchitecture)
}
"""Architectures by their names in files; a file without a name has the first one."""


class LipschitzEncoder(nn.Module):
    """A 1-Lipschitz encoder from a file; its constant is proven anew by :class:`SpectralProduct` when it is loaded.

    With it the whole chain from image to latent is ``deterministic``. Hand it to :class:`ellips.FrozenEncoder` as its
    model; it brings its own preprocessing record (nothing but the image size).

    Args:
        weights: Name of a shipped one (``"digits_lipschitz"``), or a ``.safetensors`` file that
            :func:`export_encoder` wrote.
        max_constant: Refuse weights whose proven constant is larger.

    Attributes:
        architecture: The layers.
        constant: The proven constant; at least the true one.

    Raises:
        ValueError: If the file holds no such encoder or the constant is larger than allowed.
        WeightsNotFoundError: If there is no such file.
    """

    # What version 0.1 called it: fingerprints stay the same, wherever the class has moved.
    ARCHITECTURE = "ellips.lipschitz.encoder.LipschitzEncoder"

    def __init__(self, weights: str | Path = "digits_lipschitz", max_constant: float = 1.00001) -> None:
        super().__init__()
        shipped = str(weights) in shipped_names()
        found = load_shipped(str(weights)) if shipped else load_file(weights)
        path = SHIPPED_FOLDER / f"{weights}.safetensors" if shipped else Path(found.origin)
        self.architecture = read_architecture(path)
        if untold := self.architecture.untold:
            self.ARCHITECTURE = f"{self.ARCHITECTURE}({untold})"
        self.layers = self.architecture.build()
        try:
            self.layers.load_state_dict(found.state)
        except RuntimeError as error:
            raise ValueError(
                f"Expected {path} to hold the weights of {self.architecture} but got others: {error}"
            ) from error
        self.requires_grad_(False)
        self.eval()
        self.constant = prove(self)
        if not self.constant <= max_constant:
            raise ValueError(
                f"Expected {path} to hold an encoder with a Lipschitz constant of at most {max_constant:g} but "
                f"SpectralProduct proves {self.constant:.7g}; export it again, or raise `max_constant`."
            )
        channels, height, width = self.architecture.image_shape
        # Read by FrozenEncoder, as it reads timm's: nothing is subtracted, nothing is divided by.
        self.pretrained_cfg = {
            "input_size": (channels, height, width),
            "mean": (0.0,) * channels,
            "std": (1.0,) * channels,
            "interpolation": "bilinear",
        }

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(N, C, H, W)`` to features ``(N, feature_dim)``."""
        features: Tensor = self.layers(images)
        return features


def read_architecture(path: str | Path) -> EncoderArchitecture:
    """Read the architecture that an exported encoder's file carries.

    Raises:
        ValueError: If the file carries none.
    """
    if Path(path).suffix != ".safetensors":
        raise ValueError(f"Expected a .safetensors file with a 1-Lipschitz encoder but got {path}.")
    with safe_open(str(path), framework="pt") as file:
        metadata: Mapping[str, str] = file.metadata() or {}
    if _METADATA not in metadata:
        raise ValueError(f"Expected {path} to carry `{_METADATA}` in its metadata; was it written by export_encoder?")
    try:
        record = json.loads(metadata[_METADATA])
        kind = record.get("kind", LipschitzArchitecture.kind)  # the only one that files of version 0.1 have
        one_of(tuple(ARCHITECTURES), kind=kind)
        return ARCHITECTURES[kind].from_record(record)
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"Expected {path} to state the architecture of an encoder but got {error!r}.") from error


def prove(encoder: nn.Module, architecture: EncoderArchitecture | None = None) -> float:
    """Return a proven Lipschitz constant of an encoder in plain layers."""
    known = architecture or (encoder.architecture if isinstance(encoder, LipschitzEncoder) else None)
    if known is None:
        raise ValueError("Expected `architecture` with an encoder that does not carry its own.")
    source = SpectralProduct(dense_limit=known.dense_limit, gram_iterations=known.gram_iterations)
    return source.constant(encoder, torch.zeros(1, *known.image_shape))


def export_encoder(trained: nn.Module, architecture: EncoderArchitecture, path: str | Path) -> float:
    """Write a trained encoder in plain layers, its last one divided by the proven constant so that 1 is proven.

    Args:
        trained: Layers as ``architecture.trainable()`` or ``architecture.build()`` arranges them.
        architecture: Their arrangement.
        path: A ``.safetensors`` file.

    Returns:
        The constant that was proven before the division: how far the constraint had been from exact.

    Raises:
        ValueError: If the constant is zero or not finite.
    """
    with torch.no_grad():
        plain = architecture.plain(trained)
        constant = prove(plain, architecture)
        if not 0 < constant < math.inf:
            raise ValueError(f"Expected a positive, finite Lipschitz constant but got {constant}.")
        for parameter in architecture.scaled(plain):
            parameter.div_(constant)
    metadata = {_METADATA: json.dumps(architecture.to_record())}
    state = {name: value.contiguous() for name, value in plain.state_dict().items()}
    Path(path).write_bytes(save(state, metadata))  # save_file would let nobody but the owner read it
    return constant
