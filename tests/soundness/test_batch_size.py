"""What depends on how many images share a batch, and on threads: the latent's rounding, and no claim that is sound.

Products of float32 matrices are summed in another order for another number of rows. A latent moves by that, and its
radius, which is a distance, by no more than the latent. Radii on the image that are proven speak of the network in
exact arithmetic: how far the latent is from that one's is subtracted from each.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from datamodules import DigitsDataModule
from datamodules.sources import ImageDataset
from ellips import EllipsHead, FrozenEncoder, ImageClassifier
from ellips.certificates import Certificate
from ellips.lipschitz import KnownConstant
from ellips.lipschitz.base import in_float64

IMAGES = 60
CONSTANT = 5.0
SIZES = (1, 7, 32, IMAGES)


class Found(NamedTuple):
    latents: Tensor
    latent: Certificate
    image: Certificate


@pytest.fixture(scope="module")
def classifier() -> ImageClassifier:
    """Encoder, projector and Gaussians, as a run has them."""
    encoder = FrozenEncoder("test_resnet", weights="digits")
    data = DigitsDataModule(encoder, batch_size=2000)
    data.setup("fit")
    batch = data.encode(next(iter(data.fit_dataloader())))
    torch.manual_seed(0)
    head = EllipsHead(96, 10, latent_dim=16, hidden_dim=256, shrinkage=0.1).fit(batch.feature, batch.label)
    return ImageClassifier(encoder, head)


@pytest.fixture(scope="module")
def images(classifier: ImageClassifier) -> Tensor:
    data = DigitsDataModule(classifier.encoder)  # type: ignore[arg-type]
    return ImageDataset(data.source("test"))[list(range(IMAGES))].image


def certify(classifier: ImageClassifier, images: Tensor, size: int) -> Found:
    """Certify in batches of so many."""
    parts = []
    for some in images.split(size):
        with torch.no_grad():
            latents = classifier.latents(some)
        parts.append((latents, classifier.certify(some), classifier.certify(some, KnownConstant(CONSTANT))))
    latents, latent, image = zip(*parts, strict=True)
    return Found(torch.cat(latents), Certificate.cat(latent), Certificate.cat(image))


@pytest.fixture(scope="module")
def found(classifier: ImageClassifier, images: Tensor) -> dict[str, Found]:
    """By batch size and threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    results = {f"{size}": certify(classifier, images, size) for size in SIZES}
    torch.set_num_threads(2)
    results["32, two threads"] = certify(classifier, images, 32)
    torch.set_num_threads(threads)
    return results


def test_a_radius_moves_by_no_more_than_its_latent(found: dict[str, Found]) -> None:
    first = found["32"]
    for name, other in found.items():
        moved = torch.linalg.vector_norm(other.latents.double() - first.latents.double(), dim=1)
        change = (other.latent.radius - first.latent.radius).abs()
        rounding = 1e-9 * (1 + first.latent.radius)  # of the radius itself, which is solved for in float64
        assert (change <= moved + rounding).all(), name
        assert torch.equal(other.latent.prediction, first.latent.prediction), name


def test_the_change_is_of_the_size_that_the_documentation_says(found: dict[str, Found]) -> None:
    first = found["32"].latent.radius
    for name, other in found.items():
        assert ((other.latent.radius - first).abs() <= 1e-5 * first.clamp_min(0.1)).all(), name


def test_what_is_proven_of_the_image_holds_in_exact_arithmetic_whatever_the_batch(
    classifier: ImageClassifier, images: Tensor, found: dict[str, Found]
) -> None:
    """The strongest reading: the radius of the network's own latents, in float64, over the constant."""
    precise = in_float64(classifier.latents)
    with torch.no_grad():
        exact = classifier.head.ellips.certify(precise(images.double()))
    for name, one in found.items():
        assert one.image.soundness == "deterministic"
        assert (one.image.radius <= exact.radius / CONSTANT).all(), name
        error = one.image.latent_error
        assert error is not None
        assert (error > 0).all(), "rounding was forgotten"
        kept = one.latent.radius - error
        torch.testing.assert_close(one.image.radius, kept.clamp_min(0) / CONSTANT, rtol=1e-9, atol=0)


def test_it_would_be_noticed_if_the_rounding_were_not_subtracted(
    classifier: ImageClassifier, images: Tensor, found: dict[str, Found]
) -> None:
    """Without it some radius of some batch size is too large, by little: the test above can fail."""
    precise = in_float64(classifier.latents)
    with torch.no_grad():
        exact = classifier.head.ellips.certify(precise(images.double())).radius
    assert any(bool((one.latent.radius > exact).any()) for one in found.values())
