"""Adversarial training of encoders, for networks whose slopes are small where the data are."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ellips.encoders import FrozenEncoder
from ellips.validation import at_least, positive

from .classifier_encoder import ClassifierEncoderTraining

_STEP = 2.5  # times epsilon over steps: far enough to cross the ball from any start (Madry et al. 2018, appendix)


class AdversarialEncoderTraining(ClassifierEncoderTraining):
    """Trains an encoder with a linear classifier on adversarial images in an l2 ball (Madry et al. 2018, equation 2.1).

    Each training image is moved by ``steps`` of projected gradient ascent on the cross-entropy, from a random point of
    the ball of radius ``epsilon`` around it, while the network is in eval mode. Such a network has small slopes where
    the data are, which nothing proves: constants of it are estimated, and its radii attacked.

    Logged: ``train/loss``; ``val/accuracy`` of clean and ``val/adversarial_accuracy`` of images moved in the same way,
    which is no more than what this attack leaves.

    Args:
        num_classes: K (linked from the datamodule in ``train_encoder.py``).
        encoder: The encoder as it will be used, frozen; training starts from its weights.
        epsilon: Radius of the ball, on [0, 1] pixels at dataset resolution.
        steps: Gradient steps for each image.
        **training: Of :class:`ClassifierEncoderTraining`.

    Raises:
        ValueError: If an argument is out of its range.
    """

    change: ClassVar[str] = "adversarial"

    def __init__(
        self, num_classes: int, encoder: FrozenEncoder, epsilon: float = 0.5, steps: int = 3, **training: Any
    ) -> None:
        super().__init__(num_classes, encoder, **training)
        positive(epsilon=epsilon)
        at_least(1, steps=steps)
        self.recipe = {"epsilon": epsilon, "steps": steps, **self.recipe}
        self.save_hyperparameters(ignore=["encoder"])
        self.epsilon = epsilon
        self.steps = steps

    def changed(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Move each image within its ball, and within [0, 1], to where the cross-entropy is larger."""
        training = self.backbone.training
        self.backbone.eval()
        with torch.inference_mode(False), torch.enable_grad():  # validation runs without gradients
            images, labels = images.clone(), labels.clone()
            move = _uniform_in_ball(images, self.epsilon, generator)
            for _ in range(self.steps):
                move.requires_grad_(True)
                (slope,) = torch.autograd.grad(self.loss(images + move, labels), move)
                ahead = move.detach() + _STEP * self.epsilon / self.steps * slope / _lengths(slope).clamp_min(1e-12)
                within = ahead * (self.epsilon / _lengths(ahead).clamp_min(self.epsilon))
                move = (images + within).clamp(0, 1) - images
        self.backbone.train(training)
        return images + move


def _lengths(images: Tensor) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(images, dim=(1, 2, 3), keepdim=True)
    return lengths


def _uniform_in_ball(images: Tensor, radius: float, generator: torch.Generator) -> Tensor:
    direction = torch.randn(images.shape, generator=generator, device=images.device, dtype=images.dtype)
    share = torch.rand(len(images), 1, 1, 1, generator=generator, device=images.device, dtype=images.dtype)
    start: Tensor = direction / _lengths(direction) * radius * share ** (1 / images[0].numel())
    return start
