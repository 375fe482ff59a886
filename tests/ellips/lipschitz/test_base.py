from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ellips.lipschitz import JacobianNorm, KnownConstant, LipschitzBound


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
