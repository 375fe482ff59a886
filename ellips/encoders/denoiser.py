"""Denoisers: noisy images in, images out; one that this project trains itself."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ellips.encoders.weights import load_file, load_shipped_denoiser, shipped_denoisers
from ellips.validation import at_least

_METADATA = "denoiser_architecture"


class Denoiser(nn.Module):
    """Removes Gaussian noise of one known level from images, each image by itself; a subclass has :meth:`denoise`.

    A certificate of a smoothed decision holds whatever a denoiser does: it is a part of the map that is smoothed.

    Args:
        sigma: Standard deviation of the noise on [0, 1] pixels, at the resolution that images come in.
        channels: Channels of the images.

    Raises:
        ValueError: If one is out of range.
    """

    def __init__(self, sigma: float, channels: int) -> None:
        super().__init__()
        at_least(0, sigma=sigma)
        at_least(1, channels=channels)
        self.sigma = sigma
        self.channels = channels

    def forward(self, images: Tensor) -> Tensor:
        """Denoise images.

        Args:
            images: Shape ``(N, channels, H, W)``, values in [0, 1] but for the noise on them.

        Returns:
            The same shape.

        Raises:
            TypeError: If the images are not floating point.
            ValueError: If their shape does not fit.
        """
        if not images.is_floating_point():
            raise TypeError(f"Expected images to be floating point with values in [0, 1] but got {images.dtype}.")
        if images.ndim != 4 or images.shape[1] != self.channels:
            raise ValueError(
                f"Expected images of shape (N, {self.channels}, H, W), which the denoiser takes, but got "
                f"{tuple(images.shape)}; take a denoiser for images with as many channels as the data have."
            )
        return self.denoise(images)

    @abstractmethod
    def denoise(self, images: Tensor) -> Tensor:
        """Do the work of :meth:`forward` on images whose kind and channels are right."""

    def describe(self) -> str:
        """One line that names everything the result depends on besides the weights."""
        return f"{type(self).__name__}(sigma={self.sigma:g}, channels={self.channels})"


@dataclass(frozen=True)
class DenoiserArchitecture:
    """Layers that estimate the noise of an image (DnCNN, Zhang et al. 2017).

    A 3x3 convolution with ReLU, ``depth - 2`` with batch normalisation and ReLU, and one back to the image's channels.

    Attributes:
        sigma: Standard deviation of the noise on [0, 1] pixels that it is trained on.
        channels: Channels of the images.
        depth: Number of convolutions, at least 2; the paper's is 17.
        width: Channels in between; the paper's is 64.

    Raises:
        ValueError: If a number is out of range.
    """

    sigma: float = 0.25
    channels: int = 3
    depth: int = 17
    width: int = 64

    def __post_init__(self) -> None:
        at_least(0, sigma=self.sigma)
        at_least(1, channels=self.channels, width=self.width)
        at_least(2, depth=self.depth)

    def build(self) -> nn.Sequential:
        """Build the layers, with new weights."""
        layers: list[nn.Module] = [nn.Conv2d(self.channels, self.width, 3, padding=1), nn.ReLU()]
        for _ in range(self.depth - 2):
            layers += [nn.Conv2d(self.width, self.width, 3, padding=1, bias=False), nn.BatchNorm2d(self.width)]
            layers.append(nn.ReLU())
        layers.append(nn.Conv2d(self.width, self.channels, 3, padding=1))
        return nn.Sequential(*layers)


class ResidualDenoiser(Denoiser):
    """A residual denoiser from a file: the image less the noise that its layers see in it, frozen.

    Args:
        weights: A ``.safetensors`` file that ``ellips train-encoder`` wrote; it carries architecture and noise level.
            Or the name of a shipped denoiser, ``"cifar10_denoiser"``.

    Attributes:
        architecture: The layers.

    Raises:
        ValueError: If the file holds no such denoiser, or is not the one that was shipped.
        WeightsNotFoundError: If there is no such file.
    """

    def __init__(self, weights: str | Path) -> None:
        shipped = str(weights) in shipped_denoisers()
        found = load_shipped_denoiser(str(weights)) if shipped else load_file(weights)
        architecture = read_architecture(found.origin)
        super().__init__(architecture.sigma, architecture.channels)
        self.architecture = architecture
        self.layers = self.architecture.build()
        try:
            self.layers.load_state_dict(found.state)
        except RuntimeError as error:
            raise ValueError(
                f"Expected {found.origin} to hold the weights of {self.architecture} but got others: {error}"
            ) from error
        self.requires_grad_(False)
        self.eval()

    def denoise(self, images: Tensor) -> Tensor:
        """Subtract the noise that the layers see."""
        denoised: Tensor = images - self.layers(images)
        return denoised

    def describe(self) -> str:
        """The class and all of the architecture."""
        return f"{type(self).__name__}({self.architecture})"


def read_architecture(path: str | Path) -> DenoiserArchitecture:
    """Read the architecture that an exported denoiser's file carries.

    Raises:
        ValueError: If the file carries none.
    """
    metadata: Mapping[str, str] = {}
    if Path(path).suffix == ".safetensors":
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
    if _METADATA not in metadata:
        raise ValueError(
            f"Expected {path} to be a .safetensors file with `{_METADATA}` in its metadata; was it written by "
            "`ellips train-encoder` with DenoiserTraining?"
        )
    try:
        values = json.loads(metadata[_METADATA])
        return DenoiserArchitecture(**{field.name: values[field.name] for field in fields(DenoiserArchitecture)})
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"Expected {path} to state the architecture of a denoiser but got {error!r}.") from error


def export_denoiser(trained: nn.Sequential, architecture: DenoiserArchitecture, path: str | Path) -> None:
    """Write trained layers to a ``.safetensors`` file that carries their architecture."""
    state = {name: value.detach().cpu().contiguous() for name, value in trained.state_dict().items()}
    Path(path).write_bytes(save(state, {_METADATA: json.dumps(asdict(architecture))}))
