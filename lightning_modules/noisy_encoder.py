"""Training of encoders on noisy images, for smoothed classifiers."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ellips.encoders import FrozenEncoder
from ellips.encoders.augmentation import add_noise
from ellips.validation import at_least

from .classifier_encoder import ClassifierEncoderTraining


class NoisyEncoderTraining(ClassifierEncoderTraining):
    """Trains an encoder with a linear classifier on images with Gaussian noise (Cohen et al. 2019, section 3.3).

    Logged: ``train/loss``; ``val/accuracy`` of clean and ``val/noisy_accuracy`` of noisy images, one draw each.

    Args:
        num_classes: K (linked from the datamodule in ``train_encoder.py``).
        encoder: The encoder as it will be used, frozen; training starts from its weights.
        sigma: Standard deviation of the noise on [0, 1] pixels at dataset resolution; 0: none.
        **training: Of :class:`ClassifierEncoderTraining`.

    Raises:
        ValueError: If an argument is out of its range.
    """

    change: ClassVar[str] = "noisy"

    def __init__(self, num_classes: int, encoder: FrozenEncoder, sigma: float = 0.25, **training: Any) -> None:
        super().__init__(num_classes, encoder, **training)
        at_least(0, sigma=sigma)
        self.recipe = {"sigma": sigma, **self.recipe}
        self.save_hyperparameters(ignore=["encoder"])
        self.sigma = sigma

    def changed(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Add one draw of noise to each image."""
        return add_noise(images, self.sigma, generator)
