"""Encoders that write to the images they are given: certified is what came, not what is left of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from datamodules import DigitsDataModule
from ellips import EllipsHead
from ellips.encoders import Denoised, Denoiser, FrozenEncoder
from ellips.input_certifiers import InputCertifier, SmoothedDecision, SmoothedEncoder
from ellips.pipeline import ImageClassifier
from ellips.types import ImageBatch
from lightning_modules import Certifier

IMAGES = torch.full((3, 1, 2, 2), 0.45) + torch.tensor([-0.4, 0.0, 0.4]).view(3, 1, 1, 1)
CERTIFIERS = [SmoothedDecision(num_samples=400), SmoothedEncoder(num_samples=400, norm_bound=2.0)]


class Rounding(nn.Module):
    """Black or white for every pixel: a second time changes nothing, so that no repetition shows it."""

    def __init__(self, writes: bool) -> None:
        super().__init__()
        self.writes = writes

    def forward(self, images: Tensor) -> Tensor:
        return (images if self.writes else images.clone()).clamp_(0, 1).round_().flatten(1)


class Returning(nn.Module):
    """Float64 features in the same memory at every call of as many images."""

    def __init__(self, again: bool) -> None:
        super().__init__()
        self.again, self.kept = again, dict[int, Tensor]()

    def forward(self, images: Tensor) -> Tensor:
        kept = self.kept.setdefault(len(images), torch.empty(len(images), 4).double()) if self.again else None
        return images.double().flatten(1) if kept is None else kept.copy_(images.flatten(1))


class RoundingDenoiser(Denoiser):
    def denoise(self, images: Tensor) -> Tensor:
        return images.clamp_(0, 1).round_()


def classifier(writes: bool) -> ImageClassifier:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(80, 1, 2, 2, generator=generator)
    labels = (images.mean((1, 2, 3)) > 0.5).long()
    return ImageClassifier(
        Rounding(writes), EllipsHead(4, 2, latent_dim=None, shrinkage=0.5).fit(images.round().flatten(1), labels)
    )


@pytest.mark.parametrize("certifier", CERTIFIERS, ids=lambda certifier: type(certifier).__name__)
def test_radii_are_those_of_an_encoder_that_does_not(certifier: InputCertifier) -> None:
    found, expected = (classifier(writes).certify(images := IMAGES.clone(), certifier) for writes in (True, False))
    assert torch.equal(images, IMAGES)
    assert torch.equal(found.radius, expected.radius)
    assert torch.equal(found.prediction, expected.prediction)
    of_what_is_left = classifier(False).certify(IMAGES.round(), certifier)
    assert (of_what_is_left.radius > found.radius + 0.05).any()  # which would be claimed


def test_rows_of_a_run_are_those_of_an_encoder_that_does_not() -> None:
    rows = []
    for writes in (True, False):
        batch = ImageBatch(IMAGES.clone(), torch.zeros(3, dtype=torch.int64), torch.arange(3))
        run = Certifier(classifier(writes), ("exact",), CERTIFIERS)
        run.on_predict_start()
        rows.append([(r.prediction, r.radius) for image in run.predict_step(batch, 0) for r in image.records])
        assert torch.equal(batch.image, IMAGES)
    assert rows[0] == rows[1]


def test_latents_are_kept_where_an_encoder_returns_the_same_memory_again() -> None:
    """A run's latents, and those that its claims are about, are of its images and not of the last noisy copies."""
    head, rows = classifier(False).head, []
    certifiers = [SmoothedDecision(num_samples=12, chunk_size=3), SmoothedEncoder(num_samples=12, norm_bound=2.0)]
    for again in (True, False):
        batch = ImageBatch(IMAGES.clone(), torch.zeros(3, dtype=torch.int64), torch.arange(3))
        run = Certifier(ImageClassifier(Returning(again), head), ("exact",), certifiers)
        run.on_predict_start()
        found = run.predict_step(batch, 0)
        assert torch.equal(torch.stack([image.latent for image in found]), IMAGES.double().flatten(1))
        rows.append([(r.prediction, r.radius) for image in found for r in image.records])
    assert rows[0] == rows[1]


def test_images_that_are_kept_beside_their_features_are_those_that_came() -> None:
    encoder = FrozenEncoder(nn.Flatten(), in_channels=1, input_size=8)
    data = DigitsDataModule(Denoised(encoder, RoundingDenoiser(0.25, 1)), keep_images=True)
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    found: Any = data.encode(ImageBatch(images.clone(), torch.zeros(4).long(), torch.arange(4)))
    assert torch.equal(found.image, images)
    assert torch.equal(found.feature, images.round().flatten(1))
