"""What certifiers send through an encoder, counted at the encoder."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from ellips.certificates import Certificate
from ellips.encoders import FrozenEncoder
from ellips.head import EllipsHead
from ellips.input_certifiers import (
    AuditTarget,
    Chain,
    InputCertifier,
    MarginClever,
    SmoothedDecision,
    SmoothedEncoder,
    as_certifier,
)
from ellips.lipschitz import Clever, ConstantSource, JacobianNorm, KnownConstant, SpectralProduct
from ellips.pipeline import ImageClassifier
from ellips.planning import Images, certifier_cost, expected_draws, expected_selection
from ellips.smoothing import VotePlan, count_votes

SIZE, CLASSES, DIM = 5, 3, 4


class Counting(nn.Module):
    """A network that counts the images that go through it, and gradients that come back."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, DIM)
        self.forwards = self.backwards = 0

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.layer(images.flatten(1)).tanh()
        self.forwards += len(features)
        if features.requires_grad:
            features.register_hook(lambda gradient: setattr(self, "backwards", self.backwards + len(gradient)))
        return features


@pytest.fixture
def model() -> tuple[ImageClassifier, Counting, Tensor]:
    torch.manual_seed(0)
    network = Counting()
    images, labels = torch.rand(30, 1, 2, 2), torch.arange(30) % CLASSES
    encoder = FrozenEncoder(network, in_channels=1, input_size=2)
    head = EllipsHead(DIM, CLASSES, latent_dim=None, shrinkage=0.5).fit(encoder(images), labels)
    return ImageClassifier(encoder, head), network, images[:SIZE]


@pytest.mark.parametrize(
    "certifier",
    [
        KnownConstant(2.0, soundness="estimated"),
        JacobianNorm(num_iterations=3, tolerance=0),
        Clever(num_batches=3, num_samples=5, chunk_size=4, num_iterations=2, tolerance_center=0),
        MarginClever(num_batches=3, num_samples=5, chunk_size=4),
        SmoothedDecision(num_samples=64, num_selection=1, stopping="fixed"),
        SmoothedEncoder(num_samples=64, norm_bound=3.0),
    ],
    ids=lambda given: type(given).__name__,
)
def test_as_many_images_go_through_the_encoder_as_was_said(
    model: tuple[ImageClassifier, Counting, Tensor], certifier: InputCertifier | ConstantSource
) -> None:
    classifier, network, images = model
    with torch.no_grad():
        latents = classifier.latents(images)
        start = classifier.head.ellips.certify(latents)
    network.forwards = network.backwards = 0
    as_certifier(certifier).certify(classifier.chain, images, latents, start)
    cost = certifier_cost(as_certifier(certifier), Images(SIZE, 1, CLASSES, DIM, 4))
    assert cost is not None
    assert network.forwards == cost.most.forward
    # Products forward and back come in pairs, and the hook sees those back; score margins need only these.
    pairs = 1 if isinstance(certifier, MarginClever) else 2
    assert pairs * network.backwards == cost.most.products
    assert cost.expected == cost.most


def test_early_stopping_takes_at_most_and_about_what_was_said() -> None:
    certifier = SmoothedDecision(sigma=0.5, num_samples=2000, num_selection=100, radii=(0.25, 0.5))
    share = 0.9
    generator = torch.Generator().manual_seed(0)

    def decide(images: Tensor) -> Tensor:
        return (torch.rand(len(images), generator=generator) > share).long()

    votes = count_votes(decide, torch.rand(300, 1, 1, 1), certifier.plan, num_selection=100, seed=0, chunk_size=512)
    drawn = (votes.draws + votes.selection).double()
    said = expected_selection(100, share) + expected_draws(certifier.plan, share)
    assert float(drawn.mean()) == pytest.approx(said, abs=5 * float(drawn.std()) / 300**0.5)
    cost = certifier_cost(certifier, Images(300, 1, 2, DIM, 1, vote_share=share))
    assert cost is not None
    assert cost.expected.forward == pytest.approx(300 * said, abs=39)
    assert cost.most.forward == 300 * 2100 + 38
    assert float(drawn.max()) <= 2100


@pytest.mark.parametrize("share", [0.5, 0.7, 0.999])
def test_selection_draws_its_second_half_where_the_first_leaves_it_open(share: float) -> None:
    generator = torch.Generator().manual_seed(1)

    def decide(images: Tensor) -> Tensor:
        return (torch.rand(len(images), generator=generator) > share).long()

    plan = VotePlan.fixed(1.0, 1, 0.1)
    votes = count_votes(decide, torch.rand(2000, 1, 1, 1), plan, num_selection=20, seed=0, chunk_size=4096)
    assert float(votes.selection.double().mean()) == pytest.approx(expected_selection(20, share), abs=0.5)


def test_a_proven_constant_costs_little_for_each_image_and_a_capture_once() -> None:
    small, large = (certifier_cost(SpectralProduct(), Images(n, n // 10, 3, 4, 4)) for n in (100, 200))
    assert small is not None
    assert large is not None
    assert large.most.forward - small.most.forward == 100 * 2 + 10 * 4


def test_nothing_is_said_of_a_certifier_that_is_not_known() -> None:
    @dataclass(frozen=True)
    class Own(InputCertifier):
        def certify(self, chain: Chain, images: Tensor, latents: Tensor, certificate: Certificate) -> Certificate:
            raise NotImplementedError

        def target(self, chain: Chain) -> AuditTarget:
            raise NotImplementedError

    assert certifier_cost(Own(), Images(1, 1, 2, 2, 4)) is None
