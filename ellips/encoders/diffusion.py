"""One step of a pretrained diffusion model as a denoiser (Carlini et al. 2023)."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final

import torch
from huggingface_hub import snapshot_download
from torch import Tensor

from ellips.encoders.denoiser import Denoiser
from ellips.encoders.weights import WEIGHTS_VARIABLE, weights_folder
from ellips.errors import WeightsNotFoundError
from ellips.validation import positive

_CONFIG: Final = "config.json"
_SCHEDULE: Final = "scheduler_config.json"
_WEIGHTS: Final = "diffusion_pytorch_model.safetensors"


class DiffusionDenoiser(Denoiser):
    """The image that a diffusion model expects behind a noisy one, in a single step, frozen.

    The model saw ``x_t = sqrt(a_t) x + sqrt(1 - a_t) N(0, I)`` with images x in [-1, 1], and a_t (called alpha bar)
    falling with the step t. An image in [0, 1] with noise of ``sigma`` becomes ``2 image - 1`` with noise of
    ``2 sigma``; the step is the one whose noise relative to the image is nearest, ``(1 - a_t) / a_t = (2 sigma)^2``,
    and the model is given ``sqrt(a_t) (2 image - 1)``. From the noise e that it sees, the image is
    ``(x_t - sqrt(1 - a_t) e) / sqrt(a_t)``, cut to [-1, 1] and brought back to [0, 1].

    Needs the extra ``diffusion`` (``pip install 'ellips[diffusion]'``).

    Args:
        model: A folder, or a repository on the hub (``"google/ddpm-cifar10-32"``), with an unconditional UNet2DModel
            of diffusers and its schedule: ``config.json``, ``diffusion_pytorch_model.safetensors`` and
            ``scheduler_config.json``, or the same in ``unet/`` and ``scheduler/``.
        sigma: Standard deviation of the noise on [0, 1] pixels, at the model's resolution.

    Attributes:
        size: ``(height, width)`` of the images that the model knows; others are refused.
        timestep: t, an int64 buffer.
        alpha_bar: a_t, a buffer.

    Raises:
        ImportError: If diffusers is not installed.
        ValueError: If the model's schedule has no step with such noise, or the model predicts something other than the
            noise, needs more than an image, or is not wholly what its files say.
        WeightsNotFoundError: If the model cannot be found; the message says what to fetch and where to put it.
    """

    timestep: Tensor
    alpha_bar: Tensor

    def __init__(self, model: str | Path, sigma: float = 0.25) -> None:
        positive(sigma=sigma)
        unet, schedule, config = _load(_folder(model))
        super().__init__(sigma, int(unet.config.in_channels))
        self._config = config
        _validate_model(unet, schedule, str(model))
        size = unet.config.sample_size
        self.size = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
        alpha_bars = schedule.alphas_cumprod.double()
        step = nearest_step(alpha_bars, 2 * sigma)
        self.unet = unet
        # Buffers: they belong to the map, so a digest of its state covers them.
        self.register_buffer("timestep", torch.tensor(step))
        self.register_buffer("alpha_bar", alpha_bars[step].clone())
        self.requires_grad_(False)
        self.eval()

    def denoise(self, images: Tensor) -> Tensor:
        """Take one step from the noise level to none.

        Raises:
            ValueError: If the images are not of the model's size.
        """
        if tuple(images.shape[-2:]) != self.size:
            height, width = self.size
            raise ValueError(
                f"Expected images of {height}x{width}, which the diffusion model was trained on, but got "
                f"{images.shape[-2]}x{images.shape[-1]}. Resizing a noisy image changes its noise: let the datamodule "
                f"deliver {height}x{width} (`resize`, `crop`; radii are then measured there), or take a model of the "
                "images' size."
            )
        alpha_bar = self.alpha_bar.to(images)
        signal, noise = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        noisy = signal * (2 * images - 1)
        # Models that also predict a variance do so in further channels.
        seen = self.unet(noisy, self.timestep).sample[:, : self.channels]
        clean = ((noisy - noise * seen) / signal).clamp(-1, 1)
        unit: Tensor = (clean + 1) / 2
        return unit

    def describe(self) -> str:
        """The class, noise level, step and settings of the network, of which its weights do not tell all."""
        step = f"timestep={int(self.timestep)}, alpha_bar={float(self.alpha_bar):.6g}"
        return f"{type(self).__name__}(sigma={self.sigma:g}, {step}, config={self._config})"


def nearest_step(alpha_bars: Tensor, noise: float) -> int:
    """Return the step whose noise relative to the image is nearest in ratio.

    Args:
        alpha_bars: Shape ``(T,)``, falling: the share of the image in each step's variance.
        noise: Standard deviation of the noise on images in [-1, 1].

    Raises:
        ValueError: If all steps have more noise, or less.
    """
    ratios = ((1 - alpha_bars) / alpha_bars).sqrt()
    low, high = float(ratios[0]), float(ratios[-1])
    if not low <= noise <= high:
        raise ValueError(
            f"Expected `sigma` to lie in [{low / 2:.4g}, {high / 2:.4g}], the noise on [0, 1] pixels that the "
            f"diffusion model's steps have, but got {noise / 2:g}."
        )
    return int((ratios.log() - math.log(noise)).abs().argmin())


def _load(folder: Path) -> tuple[Any, Any, str]:
    """Load the network and the schedule, with diffusers' conversions of older names; and digest the settings."""
    try:
        from diffusers import DDPMScheduler, UNet2DModel
    except ImportError as error:
        raise ImportError("A diffusion model needs diffusers: pip install 'ellips[diffusion]'.") from error
    network = folder / "unet" if (folder / "unet").is_dir() else folder
    schedule = folder / "scheduler" if (folder / "scheduler").is_dir() else folder
    for path in (network / _CONFIG, network / _WEIGHTS, schedule / _SCHEDULE):
        if not path.is_file():
            raise WeightsNotFoundError(f"Expected {path} beside the other files of the diffusion model; fetch it, too.")
    digest = _validate_config(network / _CONFIG, inspect.signature(UNet2DModel).parameters)
    options = {"use_safetensors": True, "low_cpu_mem_usage": False, "local_files_only": True}
    unet, found = UNet2DModel.from_pretrained(network, output_loading_info=True, **options)
    if wrong := {name: keys[:3] for name, keys in found.items() if keys}:
        raise ValueError(f"Expected {network / _WEIGHTS} to hold exactly the weights that {_CONFIG} asks for; {wrong}.")
    return unet, DDPMScheduler.from_pretrained(schedule, local_files_only=True), digest


def _validate_config(path: Path, known: Collection[str]) -> str:
    """Refuse what diffusers would pass over with a warning, and build another network than the one that was trained.

    Returns:
        SHA-256 of the settings, but for those of diffusers itself.
    """
    config = json.loads(path.read_text(encoding="utf-8"))
    kind = config.get("_class_name")
    own = {name: value for name, value in config.items() if not name.startswith("_")}
    unknown = sorted(name for name in own if name not in known)
    if kind != "UNet2DModel" or unknown:
        raise ValueError(
            f"Expected {path} to describe a UNet2DModel as this version of diffusers knows it, but it is of "
            f"{kind!r} and has the settings {unknown} besides; take another model, or the diffusers that it is for."
        )
    return f"sha256:{hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()}"


def _validate_model(unet: Any, schedule: Any, name: str) -> None:  # noqa: ANN401 - diffusers may not be there
    if schedule.config.prediction_type != "epsilon":
        raise ValueError(
            f"Expected a diffusion model that predicts the noise (prediction_type 'epsilon') but {name} predicts "
            f"{schedule.config.prediction_type!r}."
        )
    if unet.config.class_embed_type is not None or unet.config.num_class_embeds is not None:
        raise ValueError(f"Expected a diffusion model that needs nothing but an image, but {name} asks for its class.")
    if unet.config.sample_size is None:
        raise ValueError(f"Expected `sample_size` in the configuration of {name}, the size of its images.")


def _folder(model: str | Path) -> Path:
    """Return the folder of a model: as named, in the weights folder, or fetched from the hub."""
    name = str(model)
    local = weights_folder() / name.replace("/", "--")
    for folder in (Path(model).expanduser(), local):
        if folder.is_dir():
            return folder
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise WeightsNotFoundError(
            f"Expected `model` to be a folder with a diffusion model, or OWNER/NAME on the hub, but got {name!r} "
            f"(looked in {Path(model).expanduser().absolute().parent})."
        )
    files = [_CONFIG, _WEIGHTS, _SCHEDULE, f"unet/{_CONFIG}", f"unet/{_WEIGHTS}", f"scheduler/{_SCHEDULE}"]
    try:
        return Path(snapshot_download(name, allow_patterns=files))
    except Exception as error:  # the hub's clients raise OSError, HTTP library errors and their own
        reason = str(error).strip().splitlines()
        raise WeightsNotFoundError(
            f"The diffusion model could not be had from the hub ({type(error).__name__}: "
            f"{reason[0] if reason else 'no reason given'}). On a machine that reaches it, fetch "
            f"{', '.join(files[:3])} (or the same in unet/ and scheduler/) of the Hugging Face repository {name!r} and "
            f"store them here in the folder {local} (it is in ${WEIGHTS_VARIABLE}), or pass their folder: model=PATH."
        ) from error
