"""Training of denoisers that stand in front of an encoder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics import MeanMetric

from ellips.encoders import DenoiserArchitecture, FrozenEncoder
from ellips.encoders.augmentation import add_noise, flip_and_shift, step_generator
from ellips.encoders.denoiser import export_denoiser
from ellips.files import replacing
from ellips.types import FeatureBatch, ImageBatch
from ellips.validation import at_least, positive

from .encoder_training import EncoderTraining, images_of


class DenoiserTraining(EncoderTraining):
    """Trains a residual denoiser, and writes it for :class:`ellips.encoders.ResidualDenoiser` at the end of fit.

    The loss is the mean squared error of pixels and, with ``stability`` above 0, that times the squared distance of the
    features of the denoised from those of the clean image, relative to the latter's square: Salman et al. (2020) ask a
    classifier's decisions to be stable; here there is no classifier yet, so it is asked of the features.

    Logged: ``train/loss``; ``val/mse`` and, to hold against it, ``val/noise_mse`` of the noisy images themselves;
    ``val/feature_error`` where there is an encoder.

    Args:
        sigma: Standard deviation of the noise on [0, 1] pixels.
        channels: Channels of the images.
        depth: Number of convolutions.
        width: Channels in between.
        encoder: The encoder that the denoiser is for; None: it is for any.
        stability: Weight of the features' error.
        learning_rate: Peak of AdamW's one-cycle schedule.
        weight_decay: Of AdamW.
        flip: Mirror training images left to right at random.
        shift: Move training images by up to so many pixels.
        export_name: Stem of the files written to the run folder at the end of fit.

    Raises:
        ValueError: If an argument is out of its range, or ``stability`` is wanted without an encoder.
    """

    packages: ClassVar[tuple[str, ...]] = ("torch", "lightning", "timm")

    def __init__(
        self,
        sigma: float = 0.25,
        channels: int = 3,
        depth: int = 17,
        width: int = 64,
        encoder: FrozenEncoder | None = None,
        stability: float = 0.0,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.0,
        flip: bool = True,
        shift: int = 0,
        export_name: str = "denoiser",
    ) -> None:
        super().__init__()
        at_least(0, stability=stability, weight_decay=weight_decay, shift=shift)
        positive(learning_rate=learning_rate)
        if stability > 0 and encoder is None:
            raise ValueError(f"Expected `encoder` with stability={stability:g} but got None; name the encoder, or 0.")
        self.recipe = {
            "stability": stability,
            "learning_rate": learning_rate,
            "weight_decay": weight_decay,
            "flip": flip,
            "shift": shift,
        }
        self.save_hyperparameters(ignore=["encoder"])
        self.architecture = DenoiserArchitecture(sigma, channels, depth, width)
        self.layers = self.architecture.build()
        self.layers.to(memory_format=torch.channels_last)
        self.stability = stability
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.flip = flip
        self.shift = shift
        self.export_name = export_name
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        # In a tuple, not as a sub-module: checkpoints shall not hold an encoder that never changes.
        self._encoder = (encoder,)
        self.mse = MeanMetric()
        self.noise_mse = MeanMetric()
        self.feature_errors = MeanMetric()

    def forward(self, images: Tensor) -> Tensor:
        """Denoise images ``(N, C, H, W)``."""
        denoised: Tensor = images - self.layers(images).float()
        return denoised

    def training_step(self, batch: FeatureBatch | ImageBatch, batch_idx: int) -> Tensor:
        """Return the loss of moved, mirrored and noisy images."""
        generator = step_generator(self.device, self.seed, self.global_step, self.global_rank)
        images = flip_and_shift(images_of(batch), self.flip, self.shift, generator)
        denoised = self(add_noise(images, self.architecture.sigma, generator))
        loss = functional.mse_loss(denoised, images)
        if self.stability > 0:
            loss = loss + self.stability * self.feature_error(denoised, images)
        self.log("train/loss", loss.detach(), prog_bar=True)
        return loss

    def feature_error(self, denoised: Tensor, images: Tensor) -> Tensor:
        """Return the mean over images of the squared distance of features, relative to the clean ones' square.

        Raises:
            ValueError: If there is no encoder.
        """
        (encoder,) = self._encoder
        if encoder is None:
            raise ValueError("Expected an encoder, whose features are compared, but there is none.")
        clean = encoder.to(images.device).encode(images)
        distance = (encoder(denoised) - clean).square().sum(1)
        error: Tensor = distance / clean.square().sum(1).clamp_min(torch.finfo(clean.dtype).tiny)
        return error.mean()

    def validation_step(self, batch: FeatureBatch | ImageBatch, batch_idx: int) -> None:
        """Collect errors; the noise is that of every other validation."""
        images = images_of(batch)
        generator = step_generator(self.device, batch_idx, self.global_rank)
        noisy = add_noise(images, self.architecture.sigma, generator)
        denoised = self(noisy)
        self.mse.update(functional.mse_loss(denoised, images), weight=len(images))
        self.noise_mse.update(functional.mse_loss(noisy, images), weight=len(images))
        self.log("val/mse", self.mse, prog_bar=True)
        self.log("val/noise_mse", self.noise_mse)
        if self._encoder[0] is not None:
            self.feature_errors.update(self.feature_error(denoised, images), weight=len(images))
            self.log("val/feature_error", self.feature_errors)

    def configure_optimizers(self) -> Any:  # noqa: ANN401 - one of the many types that Lightning takes
        """Return AdamW with a one-cycle schedule."""
        parameters = self.layers.parameters()
        return self.one_cycle(torch.optim.AdamW(parameters, lr=self.learning_rate, weight_decay=self.weight_decay))

    def export(self, path: Path) -> dict[str, Any]:
        """Write the layers; the record says what they are."""
        with replacing(path) as partial:
            export_denoiser(self.layers, self.architecture, partial)
        (encoder,) = self._encoder
        return {
            "architecture": "ellips.encoders.ResidualDenoiser",
            "layers": vars(self.architecture),
            "encoder": None if encoder is None else encoder.fingerprint(),
        }
