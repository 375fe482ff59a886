"""What people certify passes the prover, with constants that are no looser than before it proved everything."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from timm import create_model
from torch import Tensor, nn

from ellips.encoders import FrozenEncoder, LipschitzEncoder
from ellips.head import EllipsHead
from ellips.lipschitz import SpectralProduct
from ellips.pipeline import ImageClassifier

TORCHLIP = pytest.mark.skipif(importlib.util.find_spec("deel") is None, reason="deel-torchlip is not installed")


def randomised(module: nn.Module) -> nn.Module:
    """Statistics as after some training, the same at every call."""
    generator = torch.Generator().manual_seed(1)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.running_var.copy_(torch.rand(layer.running_var.shape, generator=generator) * 1.7 + 0.3)
            layer.running_mean.copy_(torch.randn(layer.running_mean.shape, generator=generator))
            layer.weight.data.copy_(torch.randn(layer.weight.shape, generator=generator))
    return module


def classifier(encoder: FrozenEncoder) -> ImageClassifier:
    head = EllipsHead(encoder.feature_dim, 10, latent_dim=16, hidden_dim=64, latent_norm="ball").eval()
    return ImageClassifier(encoder, randomised(head))  # type: ignore[arg-type]


def timm(name: str) -> ImageClassifier:
    return classifier(randomised(FrozenEncoder(name, weights="random", input_size=32)))  # type: ignore[arg-type]


# Constants of the same weights by version 0.1, which recorded operations and proved less.
BEFORE = {
    "test_resnet": 47307969.864978604,
    "resnet10t": 48378978.318104886,
    "resnet18": 237818317157.06506,
    "digits": 282731.6819831751,
    "digits_lipschitz": 2.2781745509232727,
}


def build(name: str) -> tuple[ImageClassifier, tuple[int, ...]]:
    torch.manual_seed(0)
    if name == "digits":
        return classifier(FrozenEncoder("test_resnet", weights="digits")), (1, 8, 8)
    if name == "digits_lipschitz":
        return classifier(FrozenEncoder(LipschitzEncoder())), (1, 8, 8)
    return timm(name), (3, 32, 32)


@pytest.mark.parametrize("name", BEFORE)
def test_a_network_with_its_head_is_bounded_as_tightly_as_before(name: str) -> None:
    network, shape = build(name)
    bound = float(SpectralProduct()(network.latents, torch.rand(2, *shape)).constant[0])
    assert BEFORE[name] * (1 - 1e-6) <= bound <= BEFORE[name] * 1.02


def test_a_vgg_is_bounded() -> None:
    torch.manual_seed(0)
    # Without its last convolutions, 7x7 of 512 to 4096 channels, whose norm takes minutes.
    layers = nn.Sequential(create_model("vgg11_bn").features, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network = classifier(FrozenEncoder(randomised(layers), input_size=32, in_channels=3))
    images = torch.rand(2, 3, 32, 32)
    bound = SpectralProduct(dense_limit=64, gram_iterations=3)(network.latents, images)
    with torch.no_grad():
        slope = (network.latents(images)[0] - network.latents(images)[1]).norm() / (images[0] - images[1]).norm()
    assert 0 < slope <= bound.constant[0]


@TORCHLIP
def test_a_torchlip_network_is_bounded_by_its_own_constant() -> None:
    from deel import torchlip

    torch.manual_seed(0)
    layers = nn.Sequential(
        torchlip.SpectralConv2d(1, 16, 3, padding=1), torchlip.GroupSort2(), nn.PixelUnshuffle(2),
        torchlip.SpectralConv2d(64, 16, 3, padding=1), torchlip.FullSort(), nn.Flatten(),
        torchlip.SpectralLinear(256, 64), torchlip.GroupSort(4), torchlip.FrobeniusLinear(64, 16),
    )  # fmt: skip
    layers(torch.rand(2, 1, 8, 8))
    encoder = FrozenEncoder(layers.eval(), in_channels=1, input_size=8)
    images = torch.rand(2, 1, 8, 8)
    encoded = float(SpectralProduct()(encoder, images).constant[0])
    assert 0.1 < encoded < 1.2
    assert float(SpectralProduct()(classifier(encoder).latents, images).constant[0]) > 0


def test_sorting_pairs_by_their_extremes_costs_nothing_but_other_extremes_do() -> None:
    def pairs(x: Tensor) -> Tensor:
        grouped = x.flatten(1).view(len(x), -1, 2)
        return torch.cat([grouped.min(2, keepdim=True)[0], grouped.max(2, keepdim=True)[0]], 2).flatten(1)

    def twice(x: Tensor) -> Tensor:
        grouped = x.flatten(1).view(len(x), -1, 2)
        return torch.cat([grouped.max(2, keepdim=True)[0], grouped.max(2, keepdim=True)[0]], 2).flatten(1)

    images = torch.rand(2, 1, 4, 4)
    constants = [float(SpectralProduct()(function, images).constant[0]) for function in (pairs, twice)]
    assert constants == pytest.approx([1.0, 2**0.5])


class Sound(nn.Module):
    """Layers that networks are made of, in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.drop = nn.Dropout2d(0.3)
        self.second = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.act = nn.Hardswish(inplace=True)
        self.pool = nn.AvgPool2d(2)
        self.last = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(32, 8), nn.PReLU(), nn.Linear(8, 4))

    def forward(self, images: Tensor) -> Tensor:
        out = self.first(images)
        out = out + self.act(self.second(self.drop(out)))
        return self.last(self.pool(out))


@pytest.mark.parametrize("owner", ["module", "method", "lambda", "no gradients"])
def test_functions_of_every_kind_are_captured(owner: str) -> None:
    torch.manual_seed(0)
    network = randomised(Sound()).eval()
    functions = {
        "module": network,
        "method": network.forward,
        "lambda": lambda x: network(x),
        "no gradients": torch.no_grad()(lambda x: network(x)),
    }
    images = torch.rand(2, 3, 4, 4)
    bound = float(SpectralProduct()(functions[owner], images).constant[0])
    assert bound == pytest.approx(float(SpectralProduct()(network, images).constant[0]))
    jacobian = torch.func.jacrev(lambda x: network(x[None])[0])(images[0]).flatten(1)
    assert torch.linalg.matrix_norm(jacobian, ord=2) <= bound


def test_latents_on_the_sphere_have_no_useful_constant() -> None:
    head = EllipsHead(16, 3, latent_dim=4, hidden_dim=8, latent_norm="sphere").eval()
    bound = SpectralProduct()(lambda x: head.latents(x.flatten(1)), torch.rand(1, 1, 4, 4))
    assert bound.constant[0] > 1e30  # one over the smallest number that a length is divided by


def test_latents_of_roots_have_no_constant() -> None:
    head = EllipsHead(16, 3, latent_dim=None, feature_power=0.5, shrinkage=0.1).eval()
    with pytest.raises(ValueError, match="operations whose Lipschitz constant is known"):
        SpectralProduct()(lambda x: head.latents(x.flatten(1)), torch.rand(1, 1, 4, 4))
