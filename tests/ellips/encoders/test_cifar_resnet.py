from __future__ import annotations

import pytest
import torch
from torch import nn

from ellips.encoders import CifarResNet, FrozenEncoder
from ellips.encoders.cifar_resnet import _Block


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)])
def test_as_many_parameters_as_in_table_6_of_the_paper(depth: int, millions: float) -> None:
    model = nn.Sequential(CifarResNet(depth), nn.Linear(64, 10))
    count = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert count == pytest.approx(millions, abs=0.05 if millions > 1 else 0.006)


def test_as_many_layers_as_its_depth_says() -> None:
    convolutions = [module for module in CifarResNet(26, 2).modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == 26 - 1  # the last layer is the classifier's


def test_maps_shrink_twice_to_8x8_and_channels_double() -> None:
    shapes: list[tuple[int, ...]] = []
    model = CifarResNet(14, 4)
    for block in model.stages:
        block.register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape[1:])))
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 16)
    assert shapes == [(4, 32, 32)] * 2 + [(8, 16, 16)] * 2 + [(16, 8, 8)] * 2


def test_a_block_without_weights_is_its_shortcut() -> None:
    block = _Block(2, 4, stride=2).eval()
    for parameter in block.parameters():
        parameter.data.zero_()
    maps = torch.rand(3, 2, 6, 6)
    out = block(maps)
    assert torch.equal(out[:, :2], maps[:, :, ::2, ::2])
    assert not out[:, 2:].any()


@pytest.mark.parametrize("depth", [2, 18, 21])
def test_depths_that_do_not_divide_are_refused(depth: int) -> None:
    with pytest.raises(ValueError, match="6n \\+ 2"):
        CifarResNet(depth)


def test_a_frozen_encoder_takes_its_preprocessing_and_tells_depths_apart() -> None:
    encoder = FrozenEncoder(CifarResNet(8, 4))
    assert encoder.preprocess.size == (32, 32)
    assert encoder.preprocess.mean.flatten().tolist() == pytest.approx([0.4914, 0.4822, 0.4465])
    assert encoder(torch.rand(2, 3, 32, 32)).shape == (2, 16)
    assert encoder.fingerprint()["architecture"] == "ellips.encoders.CifarResNet(depth=8, width=4)"
    assert FrozenEncoder(CifarResNet(14, 4)).architecture != encoder.architecture


def test_features_of_a_grid_are_means_of_its_cells_with_the_same_weights() -> None:
    whole, parts = (FrozenEncoder(CifarResNet(14, 32, grid), weights="cifar10_noise") for grid in (1, 2))
    images = torch.rand(3, 3, 32, 32)
    features = parts(images)
    assert features.shape == (3, 512)
    torch.testing.assert_close(features.view(3, 128, 4).mean(2), whole(images))
    assert features.view(3, 128, 4).std(2).mean() > 0.01
    assert parts.fingerprint()["architecture"] == "ellips.encoders.CifarResNet(depth=14, width=32, grid=2)"
    assert parts.fingerprint()["weights"] == whole.fingerprint()["weights"]


@pytest.mark.parametrize("grid", [0, 3, 16])
def test_grids_that_do_not_divide_are_refused(grid: int) -> None:
    with pytest.raises(ValueError, match="`grid` to be one of"):
        CifarResNet(8, 4, grid)
