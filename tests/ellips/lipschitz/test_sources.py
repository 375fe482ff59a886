"""What holds for every source alike."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import nn

from ellips.encoders import FrozenEncoder
from ellips.input_certifiers import MarginClever, SmoothedEncoder
from ellips.lipschitz import Clever, ConstantSource, JacobianNorm, KnownConstant, SpectralProduct

SHAPE = (3, 4, 4)
SOURCES: dict[str, Callable[[float], ConstantSource]] = {
    "Clever": lambda truth: Clever(num_batches=10, num_samples=8),
    "JacobianNorm": lambda truth: JacobianNorm(),
    "KnownConstant": lambda truth: KnownConstant(truth),
    "SpectralProduct": lambda truth: SpectralProduct(),
    "SpectralProduct by rules": lambda truth: SpectralProduct(dense_limit=0),
    # Images stay in a box of diameter sqrt(48); a ball of that radius times the truth holds all latents up to a shift.
    "SmoothedEncoder": lambda truth: SmoothedEncoder(sigma=0.25, norm_bound=truth * math.sqrt(48)),
}
ENCODERS = {
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(48, 12, bias=False)),
    "affine": lambda: nn.Sequential(nn.Flatten(), nn.Linear(48, 12)),
    "affine convolution": lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Flatten()),
    "frozen encoder": lambda: FrozenEncoder(
        nn.Sequential(nn.Flatten(), nn.Linear(147, 12)), input_size=7, in_channels=3, std=(0.3, 0.4, 0.5)
    ),
}


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("name", SOURCES)
def test_sound_sources_are_at_least_the_truth_and_estimates_within_one_percent_below(name: str, encoder: str) -> None:
    torch.manual_seed(0)
    function = ENCODERS[encoder]().eval().requires_grad_(False)
    zero = torch.zeros(1, *SHAPE)
    matrix = function(torch.eye(48).view(-1, *SHAPE)) - function(zero)
    truth = float(torch.linalg.matrix_norm(matrix.double(), ord=2))
    bound = SOURCES[name](truth)(function, torch.rand(2, *SHAPE))
    lowest = 0.99 * truth if bound.soundness == "estimated" else truth
    assert (bound.constant >= lowest).all()


@pytest.mark.parametrize(
    "source", [Clever, MarginClever, JacobianNorm, SmoothedEncoder, SpectralProduct], ids=lambda source: source.__name__
)
def test_every_source_is_built_from_its_class_path(source: type[ConstantSource]) -> None:
    parser = ArgumentParser()
    parser.add_argument("--source", type=ConstantSource)
    name = f"ellips.lipschitz.{source.__name__}"
    built = parser.instantiate(parser.parse_args([f"--source={name}"])).source
    assert type(built) is source
    assert vars(built) == vars(source())


def test_a_known_constant_is_built_from_its_class_path() -> None:
    parser = ArgumentParser()
    parser.add_argument("--source", type=ConstantSource)
    arguments = parser.parse_args(["--source=ellips.lipschitz.KnownConstant", "--source.constant=2.0"])
    assert parser.instantiate(arguments).source.constant == 2.0
