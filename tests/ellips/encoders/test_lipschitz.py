from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ellips.encoders import FrozenEncoder, LipschitzEncoder
from ellips.encoders.lipschitz import GroupSort2, LipschitzArchitecture, export_encoder
from ellips.encoders.weights import SHIPPED_FOLDER, file_digest
from ellips.lipschitz import SpectralProduct

SMALL = LipschitzArchitecture((1, 4, 4), (), (8,), 3)
CONVOLUTIONAL = LipschitzArchitecture((3, 6, 6), (4, 6), (10, 8), 5)


def exported(path: Path, architecture: LipschitzArchitecture = SMALL) -> Path:
    torch.manual_seed(0)
    export_encoder(architecture.build(), architecture, path / "encoder.safetensors")
    return path / "encoder.safetensors"


def test_group_sort_sorts_pairs_of_neighbouring_channels() -> None:
    values = torch.tensor([[3.0, 1.0, 2.0, 5.0]])
    assert GroupSort2()(values).tolist() == [[1.0, 3.0, 2.0, 5.0]]
    images = torch.randn(2, 6, 3, 3)
    result = GroupSort2()(images)
    assert result.shape == images.shape
    torch.testing.assert_close(result.flatten(1).norm(dim=1), images.flatten(1).norm(dim=1))
    assert (result[:, 1::2] >= result[:, 0::2]).all()


@pytest.mark.parametrize("architecture", [SMALL, CONVOLUTIONAL], ids=["linear", "convolutional"])
def test_what_is_exported_is_one_lipschitz_whatever_the_weights_were(
    architecture: LipschitzArchitecture, tmp_path: Path
) -> None:
    encoder = LipschitzEncoder(exported(tmp_path, architecture))
    assert 0.5 < encoder.constant <= 1.00001
    assert encoder.architecture == architecture
    images = torch.rand(20, *architecture.image_shape)
    others = images + 0.1 * torch.randn_like(images)
    slopes = (encoder(images) - encoder(others)).norm(dim=1) / (images - others).flatten(1).norm(dim=1)
    assert (slopes <= 1).all()
    assert encoder(images).shape == (20, architecture.feature_dim)


@pytest.mark.parametrize(
    ("name", "megabytes"), [("digits_lipschitz", 2), ("cifar10_lipschitz", 4), ("cifar10_lipnext", 5)]
)
def test_a_shipped_encoder_is_one_lipschitz_and_what_its_record_says(name: str, megabytes: int) -> None:
    record = json.loads((SHIPPED_FOLDER / f"{name}.json").read_text())
    path = SHIPPED_FOLDER / f"{name}.safetensors"
    assert file_digest(path) == record["sha256"]
    assert path.stat().st_size <= megabytes * 2**20
    encoder = LipschitzEncoder(name)
    assert encoder.constant == pytest.approx(record["proven_constant"], rel=1e-9)
    assert encoder.constant <= 1.000001
    assert abs(record["proven_constant_before_division"] - 1) < 1e-4
    assert not encoder.training
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def steepest(function: nn.Module, images: Tensor) -> float:
    """The largest secant slope that gradient ascent finds from these images."""
    left = images.clone().requires_grad_()
    right = (images + 0.05 * torch.randn_like(images)).requires_grad_()
    optimizer = torch.optim.Adam([left, right], lr=0.01)
    best = 0.0
    for _ in range(60):
        distance = (left - right).flatten(1).norm(dim=1)
        slope = (function(left) - function(right)).norm(dim=1) / distance
        best = max(best, float(slope.detach()[distance > 1e-2].max()))
        optimizer.zero_grad()
        (-slope.sum()).backward()
        optimizer.step()
    return best


@pytest.mark.parametrize(
    ("name", "least"), [("digits_lipschitz", 0.9), ("cifar10_lipschitz", 0.5), ("cifar10_lipnext", 0.5)]
)
def test_no_attack_finds_a_slope_above_the_shipped_encoders_constant(name: str, least: float) -> None:
    torch.manual_seed(0)
    inner = LipschitzEncoder(name)
    images = torch.rand(8, *inner.architecture.image_shape)
    encoder = FrozenEncoder(inner)
    bound = SpectralProduct()(encoder, images[:1])
    # The layers keep gradient norms, so the bound is nearly attained; float32 may add a few units in the last place.
    found = steepest(encoder, images)
    assert least < found <= float(bound.constant[0]) * (1 + 1e-5)
    assert bound.constant[0] <= 1.00001


def test_frozen_encoder_takes_the_preprocessing_from_the_encoder() -> None:
    encoder = FrozenEncoder(LipschitzEncoder())
    assert encoder.feature_dim == 16
    assert encoder.preprocess.size == (8, 8)
    images = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(encoder(images), LipschitzEncoder()(images))
    # Twice the resolution: each pixel of the 8x8 image is a mean of several, so the constant is smaller.
    assert SpectralProduct()(encoder, torch.rand(1, 1, 16, 16)).constant[0] < 0.6


def test_tampered_weights_are_refused(tmp_path: Path) -> None:
    path = exported(tmp_path)
    state = load_file(path)
    metadata = {"lipschitz_architecture": '{"image_shape": [1, 4, 4], "channels": [], "widths": [8], "feature_dim": 3}'}
    save_file({name: 2 * value for name, value in state.items()}, path, metadata)
    with pytest.raises(ValueError, match="Lipschitz constant of at most 1"):
        LipschitzEncoder(path)
    assert LipschitzEncoder(path, max_constant=5.0).constant > 1


def test_files_of_other_kinds_are_refused(tmp_path: Path) -> None:
    path = exported(tmp_path)
    save_file(load_file(path), tmp_path / "plain.safetensors")
    with pytest.raises(ValueError, match="metadata"):
        LipschitzEncoder(tmp_path / "plain.safetensors")
    torch.save(load_file(path), tmp_path / "encoder.pth")
    with pytest.raises(ValueError, match=r"\.safetensors"):
        LipschitzEncoder(tmp_path / "encoder.pth")
    with pytest.raises(FileNotFoundError):
        LipschitzEncoder(tmp_path / "missing.safetensors")
    metadata = {"lipschitz_architecture": '{"image_shape": [1, 4, 4], "channels": [], "widths": [6], "feature_dim": 3}'}
    save_file(load_file(path), tmp_path / "other.safetensors", metadata)
    with pytest.raises(ValueError, match="but got others"):
        LipschitzEncoder(tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    "arguments",
    [{"image_shape": (8, 8)}, {"widths": (7,)}, {"channels": (0,)}, {"feature_dim": 0}],
    ids=str,
)
def test_impossible_architectures_are_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="Expected"):
        LipschitzArchitecture(**arguments)  # type: ignore[arg-type]


def test_an_encoder_that_is_constant_is_not_exported(tmp_path: Path) -> None:
    layers = SMALL.build()
    nn.init.zeros_(layers[-1].weight)
    with pytest.raises(ValueError, match="positive, finite"):
        export_encoder(layers, SMALL, tmp_path / "flat.safetensors")
