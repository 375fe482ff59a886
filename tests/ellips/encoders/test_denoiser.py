from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ellips.encoders import DenoiserArchitecture, ResidualDenoiser, weights
from ellips.encoders.denoiser import export_denoiser
from ellips.errors import WeightsNotFoundError

SMALL = DenoiserArchitecture(sigma=0.3, channels=1, depth=4, width=8)


def with_statistics(layers: nn.Sequential) -> nn.Sequential:
    """Layers whose normalisations have seen data, so that they do something."""
    layers.train()
    with torch.no_grad():
        for _ in range(20):
            layers(torch.randn(16, layers[0].in_channels, 8, 8))
    return layers.eval()


@pytest.fixture
def saved(tmp_path: Path) -> tuple[nn.Sequential, Path]:
    layers = with_statistics(SMALL.build())
    export_denoiser(layers, SMALL, tmp_path / "small.safetensors")
    return layers, tmp_path / "small.safetensors"


def test_a_saved_denoiser_subtracts_what_its_layers_see(saved: tuple[nn.Sequential, Path]) -> None:
    layers, path = saved
    denoiser = ResidualDenoiser(path)
    images = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(denoiser(images), images - layers(images))
    assert denoiser.architecture == SMALL
    assert (denoiser.sigma, denoiser.channels) == (0.3, 1)
    assert not any(parameter.requires_grad for parameter in denoiser.parameters())
    assert not any(module.training for module in denoiser.modules())


def test_the_layers_are_those_of_the_paper() -> None:
    layers = DenoiserArchitecture().build()
    assert sum(isinstance(layer, nn.Conv2d) for layer in layers) == 17
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in layers) == 15
    assert layers(torch.rand(1, 3, 8, 8)).shape == (1, 3, 8, 8)


def test_what_is_no_image_for_it_is_refused(saved: tuple[nn.Sequential, Path]) -> None:
    denoiser = ResidualDenoiser(saved[1])
    with pytest.raises(ValueError, match=r"\(N, 1, H, W\).*\(2, 3, 8, 8\)"):
        denoiser(torch.rand(2, 3, 8, 8))
    with pytest.raises(TypeError, match="uint8"):
        denoiser(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))


def test_other_files_are_refused(tmp_path: Path) -> None:
    plain = tmp_path / "plain.safetensors"
    save_file(dict(SMALL.build().state_dict()), plain)
    with pytest.raises(ValueError, match="DenoiserTraining"):
        ResidualDenoiser(plain)
    torch.save(SMALL.build().state_dict(), tmp_path / "plain.pth")
    with pytest.raises(ValueError, match=re.escape("plain.pth")):
        ResidualDenoiser(tmp_path / "plain.pth")
    export_denoiser(SMALL.build(), DenoiserArchitecture(channels=1, depth=5, width=8), plain)
    with pytest.raises(ValueError, match="depth=5"):
        ResidualDenoiser(plain)
    with pytest.raises(WeightsNotFoundError):
        ResidualDenoiser(tmp_path / "nothing.safetensors")


@pytest.mark.parametrize("wrong", [{"sigma": -0.1}, {"depth": 1}, {"width": 0}, {"channels": 0}])
def test_settings_out_of_range_are_named(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DenoiserArchitecture(**wrong)


def test_the_description_tells_denoisers_apart(saved: tuple[nn.Sequential, Path]) -> None:
    denoiser = ResidualDenoiser(saved[1])
    assert "sigma=0.3" in denoiser.describe()
    assert "depth=4" in denoiser.describe()


def test_the_shipped_denoiser_takes_most_of_the_noise_off(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    denoiser = ResidualDenoiser("cifar10_denoiser")
    assert (denoiser.sigma, denoiser.channels) == (0.25, 3)
    generator = torch.Generator().manual_seed(0)
    smooth = torch.rand(8, 3, 4, 4, generator=generator)
    images = nn.functional.interpolate(smooth, 32, mode="bilinear", align_corners=False)
    noisy = images + 0.25 * torch.randn(images.shape, generator=generator)
    assert (denoiser(noisy) - images).square().mean() < 0.2 * (noisy - images).square().mean()

    folder = tmp_path / "denoisers"
    folder.mkdir()
    for suffix in (".json", ".safetensors"):
        file = weights.SHIPPED_FOLDER / "denoisers" / f"cifar10_denoiser{suffix}"
        (folder / file.name).write_bytes(file.read_bytes())
    with (folder / "cifar10_denoiser.safetensors").open("r+b") as changed:
        changed.seek(-4, 2)
        changed.write(b"0000")
    monkeypatch.setattr(weights, "SHIPPED_FOLDER", tmp_path)
    with pytest.raises(ValueError, match="SHA-256"):
        ResidualDenoiser("cifar10_denoiser")
