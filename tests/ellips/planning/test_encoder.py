"""An encoder's outline against the encoder itself."""

from __future__ import annotations

from typing import Any

import pytest

from ellips.encoders import FrozenEncoder
from ellips.planning import outline, parameter_count


@pytest.mark.parametrize(
    "arguments",
    [
        {"model": "test_resnet", "weights": "digits"},
        {"model": "test_resnet", "weights": "random", "projection": True},
        {"model": "test_vit", "weights": "random", "input_size": 96, "in_channels": 1, "mean": [0.5], "std": [0.5]},
    ],
)
def test_an_outline_has_the_encoders_width_size_and_input(arguments: dict[str, Any]) -> None:
    encoder, found = FrozenEncoder(**arguments), outline(arguments)
    assert found.feature_dim == encoder.feature_dim
    assert parameter_count(found) == parameter_count(encoder)
    assert found.preprocess.size == encoder.preprocess.size
    assert found.preprocess.in_channels == encoder.preprocess.in_channels
    assert all(parameter.is_meta for parameter in found.parameters())


def test_open_clip_weights_keep_their_last_layer() -> None:
    name = "vit_base_patch32_clip_quickgelu_224"
    assert outline({"model": name, "weights": "hub:someone/fare"}).feature_dim == 512
    assert outline({"model": name, "weights": "hub:someone/fare", "projection": False}).feature_dim == 768
    assert outline({"model": name, "weights": "hub"}).feature_dim == 768


def test_behind_a_denoiser_it_is_the_encoder_that_counts() -> None:
    inner = {"class_path": "ellips.encoders.FrozenEncoder", "init_args": {"model": "test_resnet", "weights": "digits"}}
    assert outline({"encoder": inner, "denoiser": {}}).feature_dim == 96


def test_what_is_no_timm_model_needs_its_width() -> None:
    given = {"model": {"class_path": "ellips.encoders.LipschitzEncoder"}}
    with pytest.raises(ValueError, match="--feature_dim"):
        outline(given)
    assert outline(given, 64).feature_dim == 64
