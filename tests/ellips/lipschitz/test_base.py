from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from ellips.head import EllipsHead
from ellips.lipschitz import JacobianNorm, KnownConstant, SpectralProduct, UnprovenOperationError
from ellips.lipschitz.base import evaluation_error
from ellips.lipschitz.capture import Graph, replay
from ellips.lipschitz.capture.export import export
from ellips.pipeline import ImageClassifier


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


def test_what_a_sum_of_pixels_loses_in_float64_is_seen() -> None:
    """0.1 + 0.2 - 0.3 a hundred million times: float64 is twice the truth, and gives the same whenever it is asked."""
    weight = torch.tensor([[1e8, 1e8, -1e8, 0.0]], dtype=torch.float64)
    images = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64).view(1, 1, 2, 2)

    def latents(x: Tensor) -> Tensor:
        return x.flatten(1) @ weight.T

    value = latents(images)
    truth = sum(Fraction(w) * Fraction(x) for w, x in zip(weight[0].tolist(), images.flatten().tolist(), strict=True))
    away = abs(float(Fraction(float(value)) - truth))
    assert away > 1e-9
    assert away <= float(evaluation_error(latents, images, value)) < 1e3 * away


def test_a_classifier_is_captured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Certifying leaves nothing behind that it could be taken to remember."""
    captures: list[Graph] = []
    monkeypatch.setattr(replay, "export", lambda *given: captures.append(export(*given)) or captures[-1])
    images = torch.rand(40, 1, 2, 2)
    head = EllipsHead(4, 2, latent_dim=None, shrinkage=0.5).fit(images.flatten(1), torch.arange(40) % 2)
    classifier = ImageClassifier(nn.Flatten(), head)
    for part in images.split(8):
        for source in (KnownConstant(2.0), SpectralProduct()):
            classifier.certify(part, source)
    assert len(captures) == 1


def test_nothing_is_proven_where_subnormal_weights_are_taken_for_zero() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Linear(3, 2)).eval().requires_grad_(False)
    network[1].weight.uniform_(0, 2e-38)
    network[2].weight.fill_(1e37)
    images = torch.rand(1, 1, 2, 2)
    values = network(images)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor does not flush")
    try:
        for claim in (SpectralProduct(), lambda f, x: evaluation_error(f, x, values)):
            with pytest.raises(RuntimeError, match="set_flush_denormal"):
                claim(network, images)
    finally:
        torch.set_flush_denormal(False)


def test_a_value_that_is_no_number_has_an_infinite_error() -> None:
    values = torch.tensor([[float("nan")] * 4])
    assert evaluation_error(nn.Flatten(), torch.rand(1, 1, 2, 2), values).tolist() == [float("inf")]
