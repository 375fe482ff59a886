from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ellips import Ellips
from ellips.input_certifiers import ByConstant, Chain
from ellips.lipschitz import JacobianNorm, KnownConstant, UnprovenOperationError
from ellips.lipschitz.base import evaluation_error
from ellips.types import LipschitzBound


def ones(*shape: int) -> Tensor:
    return torch.ones(*shape, dtype=torch.float64)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"constant": ones(2, 1)}, "constant"),
        ({"constant": torch.tensor([1.0, float("nan")])}, "constant"),
        ({"constant": -ones(2)}, "constant"),
        ({"ball_radius": ones(3)}, "ball_radius"),
        ({"ball_radius": -ones(2)}, "ball_radius"),
        ({"soundness": "sure"}, "soundness"),
        ({"diagnostics": {"residual": ones(1)}}, "residual"),
    ],
)
def test_a_bound_that_cannot_be_one_is_refused(changed: dict[str, object], message: str) -> None:
    arguments = {"constant": ones(2), "ball_radius": ones(2), "soundness": "estimated", "source": "test"} | changed
    with pytest.raises(ValueError, match=message):
        LipschitzBound(**arguments)  # type: ignore[arg-type]


def test_known_constant_is_the_same_for_every_image() -> None:
    bound = KnownConstant(2.5, reason="by construction")(nn.Flatten(), torch.rand(3, 1, 4, 4))
    assert bound.constant.tolist() == [2.5] * 3
    assert bound.ball_radius.tolist() == [float("inf")] * 3
    assert bound.soundness == "deterministic"
    assert "by construction" in bound.source
    assert len(bound) == 3


@pytest.mark.parametrize(
    "arguments", [{"constant": -1.0}, {"constant": float("nan")}, {"constant": 1.0, "ball_radius": -1.0}]
)
def test_known_constant_refuses_impossible_numbers(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="Expected"):
        KnownConstant(**arguments)


def test_known_constant_cannot_be_exact() -> None:
    with pytest.raises(ValueError, match="exact"):
        KnownConstant(1.0, soundness="exact")


@pytest.mark.parametrize(
    "images",
    [torch.rand(3, 4, 4), torch.zeros(1, 1, 4, 4, dtype=torch.uint8), torch.full((1, 1, 4, 4), float("nan"))],
    ids=["shape", "dtype", "nan"],
)
def test_wrong_images_are_refused(images: Tensor) -> None:
    with pytest.raises(ValueError, match="Expected `images`"):
        KnownConstant(1.0)(nn.Flatten(), images)


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1)

    def latents(self, images: Tensor) -> Tensor:
        return self.norm(images).flatten(1)


def test_a_layer_in_training_mode_is_refused() -> None:
    classifier = Classifier()
    with pytest.raises(ValueError, match="`norm`"):
        JacobianNorm()(classifier.latents, torch.rand(2, 1, 4, 4))
    JacobianNorm()(classifier.eval().latents, torch.rand(2, 1, 4, 4))


def test_a_deterministic_radius_is_that_of_the_network_in_exact_arithmetic() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 64), nn.Linear(64, 4)).eval()
    for layer in (network[1], network[2]):
        layer.weight.data *= 1e3  # what float32 rounds is then seen in the latents
    images = torch.rand(40, 1, 4, 4)
    with torch.no_grad():
        latents, truth = network(images), nn.Sequential(*network).double()(images.double())
        network.float()
        ellips = Ellips(3, 4).fit(latents, torch.arange(40) % 3)
        latent = ellips.certify(latents)
    error = (truth - latents).norm(dim=1)
    assert error.max() > 1e-2
    chain = Chain(network, ellips)
    found = ByConstant(KnownConstant(2.0)).certify(chain, images, latents, latent)
    torch.testing.assert_close(found.diagnostics["latent_error"], error, rtol=1e-5, atol=0)
    assert (found.latent_radius <= (latent.radius - error).clamp_min(0)).all()
    assert (found.latent_radius >= (latent.radius - error * (1 + 1e-5)) * (1 - 1e-12)).all()
    estimated = ByConstant(KnownConstant(2.0, soundness="estimated")).certify(chain, images, latents, latent)
    torch.testing.assert_close(estimated.latent_radius, latent.radius)


def test_the_evaluation_error_of_a_method_is_that_of_its_module() -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(9, 5)

        def latents(self, images: Tensor) -> Tensor:
            latents: Tensor = self.layer(images.flatten(1))
            return latents

    encoder, images = Encoder().eval(), torch.rand(3, 1, 3, 3)
    with torch.no_grad():
        values = encoder.latents(images)
    error = evaluation_error(encoder.latents, images, values)
    assert error.dtype == torch.float64
    assert ((0 < error) & (error < 1e-5)).all()
    assert encoder.layer.weight.dtype == torch.float32
    assert torch.equal(evaluation_error(lambda x: encoder.latents(x), images, values), error)


def test_a_conversion_inside_the_network_does_not_hide_its_rounding() -> None:
    layer = nn.Linear(9, 5).eval()
    images = torch.rand(3, 1, 3, 3)

    def latents(x: Tensor) -> Tensor:
        return layer(x.flatten(1).float())

    with torch.no_grad():
        values = latents(images)
    error = evaluation_error(latents, images, values)
    assert ((0 < error) & (error < 1e-5)).all()


def test_a_deterministic_claim_for_what_cannot_be_evaluated_in_float64_is_refused() -> None:
    def halves(x: Tensor) -> Tensor:
        return x.flatten(1).half().float()

    with pytest.raises(UnprovenOperationError, match="estimated"):
        evaluation_error(halves, torch.rand(2, 1, 3, 3), torch.rand(2, 9))


def test_images_may_lie_in_memory_as_they_like() -> None:
    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 2)).eval()
    images = torch.rand(3, 2, 4, 4)
    with torch.no_grad():
        values = network(images)
    error = evaluation_error(network, images.contiguous(memory_format=torch.channels_last), values)
    assert ((0 < error) & (error < 1e-5)).all()


def test_a_value_that_is_no_number_has_an_infinite_error() -> None:
    values = torch.tensor([[float("nan")] * 4])
    assert evaluation_error(nn.Flatten(), torch.rand(1, 1, 2, 2), values).tolist() == [float("inf")]
