from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ellips.encoders import LipschitzEncoder, LiResNetArchitecture, export_encoder, import_liresnet

DEPTH, WIDTH, DIM, LINEAR = 2, 6, 10, 3


def checkpoint(side: int = 32, stem: int = 5) -> dict[str, Tensor]:
    """Random weights under the names, and of the shapes, that the authors' program saves."""
    torch.manual_seed(0)
    small = 16 if stem == 5 else side // stem
    return {
        "stem.0.weight": torch.randn(WIDTH, 3, stem, stem) / stem,
        "stem.0.bias": torch.randn(WIDTH),
        "stem.0.init_x": torch.ones(1, 3, side, side),
        "conv.weights": torch.randn(DEPTH, WIDTH, WIDTH, 3, 3) / WIDTH,
        "conv.gamma": torch.rand(DEPTH, WIDTH, 1, 1, 1),
        "conv.bias": torch.randn(DEPTH, WIDTH),
        "conv.running_mean": torch.randn(DEPTH, WIDTH),
        "conv.identity": torch.zeros(DEPTH, WIDTH, WIDTH, 3, 3),
        "conv.init_x": torch.ones(1, DEPTH * WIDTH, small, small),
        "neck.kernel": torch.randn(WIDTH, 16 * WIDTH),
        "neck.weight": torch.randn(DIM, WIDTH * (small // 4) ** 2),
        "neck.bias": torch.randn(DIM),
        "linear.weights": torch.randn(LINEAR, DIM, DIM) / 4,
        "linear.gamma": torch.rand(LINEAR, DIM, 1),
        "linear.bias": torch.randn(LINEAR, DIM),
        "linear.identity": torch.eye(DIM),
        "linear.eval_weight": torch.zeros(LINEAR, DIM, DIM),
        "head.weight": torch.randn(10, DIM),
        "head.bias": torch.randn(10),
    }


def halves(x: Tensor) -> Tensor:
    first, second = x.chunk(2, 1)
    return torch.cat([torch.maximum(first, second), torch.minimum(first, second)], 1)


def nearly_orthonormal(v: Tensor) -> Tensor:
    gram = v @ v.T
    lower = torch.linalg.cholesky(gram + gram.trace() / len(gram) / 1000 * torch.eye(len(gram), dtype=v.dtype))
    return torch.linalg.inv(lower) @ v


def as_trained(state: dict[str, Tensor], images: Tensor) -> Tensor:
    """The network as its paper and its program have it: residual convolutions whose outputs are centred."""
    s = {name: value.double() for name, value in state.items()}
    if s["stem.0.weight"].shape[-1] == 5:
        x = functional.conv2d(images - 0.5, s["stem.0.weight"], s["stem.0.bias"], stride=2, padding=2)
    else:
        x = functional.conv2d(images - 0.5, s["stem.0.weight"], s["stem.0.bias"], stride=s["stem.0.weight"].shape[-1])
    x = halves(x)
    for i in range(DEPTH):
        branch = functional.conv2d(x, s["conv.gamma"][i] * s["conv.weights"][i] / DEPTH**0.5, padding=1)
        x = halves(x + branch + (s["conv.bias"][i] - s["conv.running_mean"][i])[:, None, None])
    x = functional.conv2d(x, nearly_orthonormal(s["neck.kernel"]).view(WIDTH, WIDTH, 4, 4), stride=4).flatten(1)
    x = halves(x @ nearly_orthonormal(s["neck.weight"]).T + s["neck.bias"])
    for i in range(LINEAR):
        inside = torch.eye(DIM).double() + s["linear.gamma"][i] * s["linear.weights"][i] / LINEAR**0.5
        x = halves(x @ nearly_orthonormal(inside).T + s["linear.bias"][i])
    return x


@pytest.mark.parametrize(("side", "stem"), [(32, 5), (24, 6)], ids=["windows", "patches"])
def test_the_plain_layers_compute_what_the_checkpoint_does(side: int, stem: int, tmp_path: Path) -> None:
    state = checkpoint(side, stem)
    torch.save({"backbone": state, "configs": {"model": {"act_name": "MinMax"}}, "start_epoch": 3}, tmp_path / "a.pth")
    architecture, network = import_liresnet(tmp_path / "a.pth")
    assert architecture.image_shape == (3, side, side)
    images = torch.rand(4, 3, side, side, dtype=torch.float64)
    torch.testing.assert_close(network.double()(images), as_trained(state, images), rtol=1e-4, atol=1e-5)


def test_its_constant_is_proven_anew_and_divided_by(tmp_path: Path) -> None:
    state = checkpoint()
    torch.save(state, tmp_path / "a.pth")  # without the dictionary around it
    architecture, network = import_liresnet(tmp_path / "a.pth")
    constant = export_encoder(network, architecture, tmp_path / "a.safetensors")
    assert constant > 1.5  # random weights are not 1-Lipschitz
    encoder = LipschitzEncoder(tmp_path / "a.safetensors").double()
    assert encoder.architecture == architecture
    assert encoder.constant <= 1.000001
    left = torch.rand(40, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(encoder(left), network.double()(left) / constant, rtol=1e-5, atol=1e-6)
    right = left + 0.01 * torch.randn_like(left)
    slopes = (encoder(left) - encoder(right)).norm(dim=1) / (left - right).flatten(1).norm(dim=1)
    assert 0 < float(slopes.max()) <= encoder.constant


def test_what_is_no_liresnet_is_refused(tmp_path: Path) -> None:
    state = checkpoint()
    for name, content, message in (
        ("activation", {"backbone": state, "configs": {"model": {"act_name": "HalfAbs"}}}, "MinMax"),
        ("missing", {k: v for k, v in state.items() if k != "neck.kernel"}, "neck.kernel"),
        ("shape", {**state, "neck.weight": torch.randn(DIM, 7)}, "LiResNet"),
        ("list", [1], "state dict"),
    ):
        torch.save(content, tmp_path / f"{name}.pth")
        with pytest.raises(ValueError, match=message):
            import_liresnet(tmp_path / f"{name}.pth")
    with pytest.raises(NotImplementedError, match="LipNeXtArchitecture"):
        LiResNetArchitecture().trainable()


@pytest.mark.parametrize("changed", [{"width": 5}, {"feature_dim": 7}, {"depth": 0}, {"stem": (5, 2, 0)}], ids=str)
def test_impossible_sizes_are_refused(changed: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="Expected"):
        LiResNetArchitecture(**changed)  # type: ignore[arg-type]
