"""Functions that are none of one image: a vote, or a mean under noise, of them proves nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from ellips import Ellips
from ellips.input_certifiers import ArtSmoothedDecision, Chain, InputCertifier, SmoothedDecision, SmoothedEncoder
from tests.ellips.input_certifiers.chains import case


class OfImages(nn.Module):
    def pixels(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :1]


class MinusMean(OfImages):
    def forward(self, images: Tensor) -> Tensor:
        return self.pixels(images) - self.pixels(images).mean(0)


class MinusFirst(OfImages):
    def forward(self, images: Tensor) -> Tensor:
        return self.pixels(images) - self.pixels(images)[:1]


class ByPosition(OfImages):
    def forward(self, images: Tensor) -> Tensor:
        return self.pixels(images) + torch.arange(len(images))[:, None] % 2


class BySize(OfImages):
    def forward(self, images: Tensor) -> Tensor:
        return self.pixels(images) + len(images)


class Dropped(OfImages):
    def forward(self, images: Tensor) -> Tensor:
        return functional.dropout(self.pixels(images), 0.5, training=True)


class Counting(OfImages):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return self.pixels(images) + self.calls % 2


class Softmaxed(OfImages):
    def forward(self, images: Tensor) -> Tensor:
        return self.pixels(images).softmax(0)


class OfTheBatch(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 1))


FOOLS = (MinusMean, MinusFirst, ByPosition, BySize, Dropped, Counting, Softmaxed, OfTheBatch)
CERTIFIERS: tuple[InputCertifier, ...] = (
    SmoothedDecision(num_samples=64),
    SmoothedDecision(num_samples=64, stopping="fixed"),
    SmoothedEncoder(num_samples=64),
)


def gaussians() -> Ellips:
    means = torch.tensor([[-0.5], [0.5]]).double()
    return Ellips.from_parameters(means, 0.1 * torch.ones(2, 1, 1).double(), torch.tensor([0.5, 0.5]))


@pytest.mark.parametrize("fool", FOOLS)
@pytest.mark.parametrize("certifier", CERTIFIERS)
@pytest.mark.parametrize("count", [1, 5])
def test_what_depends_on_the_batch_or_on_earlier_calls_is_refused(
    fool: type[nn.Module], certifier: InputCertifier, count: int
) -> None:
    torch.manual_seed(0)
    given = case(Chain(OfImages().pixels, gaussians()), torch.rand(count, 1, 2, 2))
    with pytest.raises(ValueError, match="each image by itself"):
        certifier.certify(*given._replace(chain=Chain(fool().eval(), gaussians())))


def test_the_toolbox_does_not_get_them_either() -> None:
    pytest.importorskip("art", reason="ART comes with the extra `bench`")
    with pytest.raises(ValueError, match="each image by itself"):
        ArtSmoothedDecision(num_samples=64).certify(
            *case(Chain(MinusMean().eval(), gaussians()), torch.rand(3, 1, 2, 2))
        )


@pytest.mark.parametrize("certifier", CERTIFIERS)
def test_networks_of_one_image_pass(certifier: InputCertifier) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.GroupNorm(2, 8), nn.Flatten(), nn.Linear(512, 1)
    )
    found = certifier.certify(*case(Chain(network.eval(), gaussians()), torch.rand(5, 1, 8, 8)))
    assert found.soundness == "probabilistic"
