"""LipNeXt whose features are the same for an image and its mirror image."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from ellips.encoders import LipNeXtArchitecture, LipschitzEncoder, OrthogonalMuon, export_encoder
from ellips.encoders.mirrored import MirroredLipNeXt
from ellips.encoders.orthogonal import polar

EVERYTHING = LipNeXtArchitecture(
    (3, 16, 16), (2, 1, 1), (32, 42, 46), (1, 3, 2), 0.3, 7, products=1, pools=(1, 2, 2), mirrored=True
)
ARCHITECTURES = {
    "everything": EVERYTHING,
    "all_absolute": replace(EVERYTHING, absolute_share=1.0),
    "reflecting": replace(EVERYTHING, reflecting=True),
    "nothing_moves": LipNeXtArchitecture((1, 4, 8), (4,), (16,), (2,), 0.5, 3, products=1, mirrored=True),
    "as_for_cifar": LipNeXtArchitecture(
        (3, 32, 32), (4, 1, 1), (192, 384, 384), (2, 1, 2), 0.25, 64, 1, (1, 2, 2), mirrored=True, reflecting=True
    ),
}


@pytest.fixture(params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> LipNeXtArchitecture:
    """Stages of one block and of several, odd numbers of pairs, groups of all kinds."""
    return ARCHITECTURES[request.param]


def network_of(architecture: LipNeXtArchitecture, scale: float = 0.3) -> MirroredLipNeXt:
    """Return a network with positions that are not zero."""
    torch.manual_seed(0)
    network = architecture.trainable()
    assert isinstance(network, MirroredLipNeXt)
    for stage in network.stages:
        stage.positions.data = scale * torch.randn_like(stage.positions)
    return network.double()


def images_of(architecture: LipNeXtArchitecture, count: int = 20) -> Tensor:
    return torch.rand(count, *architecture.image_shape, dtype=torch.float64)


def lengths(pairs: Tensor) -> Tensor:
    """Return the norm of each of N pairs of maps, of ``(2, N, H, W, C)``."""
    return pairs.square().sum((0, 2, 3, 4)).sqrt()


def test_features_are_the_same_for_mirror_images_and_for_no_others(architecture: LipNeXtArchitecture) -> None:
    network, images = network_of(architecture), images_of(architecture)
    features = network(images)
    torch.testing.assert_close(network(images.flip(-1)), features, rtol=0, atol=1e-12)
    assert features.shape == (20, architecture.feature_dim)
    for other in (images.flip(-2), images.transpose(-1, -2).reshape(images.shape), images.roll(1, -1)):
        assert (network(other) - features).norm(dim=1).min() > 1e-3


def test_written_out_it_is_the_same_function(architecture: LipNeXtArchitecture) -> None:
    network, images = network_of(architecture), images_of(architecture)
    plain = architecture.plain(network).double()
    # Plain layers hold float32.
    torch.testing.assert_close(plain(images), network(images), rtol=0, atol=1e-5)
    torch.testing.assert_close(plain(images.flip(-1)), plain(images), rtol=0, atol=1e-5)
    stages, last = network.written_out(lambda matrices: matrices)
    for target, (rotations, positions) in zip(plain.stages, stages, strict=True):
        target.rotations.data, target.positions.data = rotations, positions
        identity = torch.eye(rotations.shape[-1], dtype=torch.float64)
        torch.testing.assert_close((rotations.mT @ rotations), identity.expand_as(rotations), rtol=0, atol=1e-5)
    plain.last.weight.data = last
    torch.testing.assert_close(plain(images), network(images), rtol=0, atol=1e-12)


def test_it_is_the_same_function_whatever_its_matrices_are(architecture: LipNeXtArchitecture) -> None:
    network, images = network_of(architecture), images_of(architecture)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    plain = architecture.build().double()
    stages, last = network.written_out(lambda matrices: matrices)
    for target, (rotations, positions) in zip(plain.stages, stages, strict=True):
        target.rotations.data, target.positions.data = rotations, positions
    plain.last.weight.data = last
    torch.testing.assert_close(plain(images), network(images), rtol=1e-9, atol=1e-9)


def test_stages_are_contractions_and_isometries_where_nothing_is_folded(architecture: LipNeXtArchitecture) -> None:
    network = network_of(architecture)
    for stage in network.stages:
        stage.rotations.data = polar(stage.rotations.data)
        sizes = stage.sizes
        sides = [side * sizes.pool for side in (sizes.height, sizes.breadth)]
        left, right = torch.randn(2, 2, 9, *sides, sizes.channels // 2, dtype=torch.float64)
        before = lengths(left - right)
        assert (lengths(torch.stack(stage(*left)) - torch.stack(stage(*right))) <= before * (1 + 1e-12)).all()
        assert stage(*left)[0].shape == (9, sizes.height, sizes.breadth, sizes.width // 2)
        if sizes.pool == 1:  # else norms, which tell less than what they are norms of
            stage.sizes = replace(sizes, absolute=0)
            after = lengths(torch.stack(stage(*left)) - torch.stack(stage(*right)))
            torch.testing.assert_close(after, before, rtol=1e-12, atol=0)


def test_training_halves_the_work_and_keeps_the_symmetry() -> None:
    network = network_of(EVERYTHING).float()
    matrices = EVERYTHING.manifold(network)
    assert [tuple(stack.shape) for stack in matrices] == [(1, 2, 16, 16), (3, 2, 21, 21), (2, 2, 23, 23), (1, 23, 23)]
    others = [stage.positions for stage in network.stages]
    optimizer = OrthogonalMuon([{"params": matrices, "orthogonal": True}, {"params": others}], lr=0.03)
    images = torch.rand(40, *EVERYTHING.image_shape)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = functional.cross_entropy(5 * network(images), torch.arange(40) % 7)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.1
    torch.testing.assert_close(network(images.flip(-1)), network(images), rtol=0, atol=1e-5)


def test_a_file_is_proven_and_its_features_are_those_of_mirror_images(
    architecture: LipNeXtArchitecture, tmp_path: Path
) -> None:
    network, images = network_of(architecture), images_of(architecture)
    assert abs(export_encoder(network, architecture, tmp_path / "encoder.safetensors") - 1) < 1e-4
    encoder = LipschitzEncoder(tmp_path / "encoder.safetensors")
    assert encoder.architecture == architecture
    assert encoder.constant <= 1.000001
    torch.testing.assert_close(encoder.double()(images.flip(-1)), network(images), rtol=0, atol=1e-4)


@pytest.mark.parametrize("mirrored", [True, False])
def test_a_file_that_is_said_to_be_the_other_kind_is_refused(mirrored: bool, tmp_path: Path) -> None:
    architecture, path = replace(EVERYTHING, mirrored=mirrored), tmp_path / "encoder.safetensors"
    export_encoder(architecture.trainable(), architecture, path)
    other = {"lipschitz_architecture": json.dumps({**architecture.to_record(), "mirrored": not mirrored})}
    save_file(load_file(path), path, other)
    with pytest.raises(ValueError, match=r"size mismatch for last.weight"):
        LipschitzEncoder(path)
