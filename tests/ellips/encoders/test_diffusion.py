from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ellips.encoders import Denoised, DiffusionDenoiser, FrozenEncoder
from ellips.encoders import diffusion as module
from ellips.encoders.diffusion import nearest_step
from ellips.errors import WeightsNotFoundError

needs_diffusers = pytest.mark.skipif(
    importlib.util.find_spec("diffusers") is None, reason="diffusers is not installed (extra `diffusion`)"
)


def write_model(folder: Path, nested: bool = False, schedule: dict[str, Any] | None = None, **config: Any) -> Path:
    """A tiny model with random weights in the format of the hub's."""
    from diffusers import DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    settings = {
        "sample_size": 8,
        "block_out_channels": (8, 8),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 4,
    }
    UNet2DModel(**{**settings, **config}).save_pretrained(folder / "unet" if nested else folder)
    DDPMScheduler(**(schedule or {})).save_pretrained(folder / "scheduler" if nested else folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")


class Knows(nn.Module):
    """A network that sees exactly the noise that was drawn."""

    def __init__(self, noise: Tensor) -> None:
        super().__init__()
        self.noise = noise
        self.asked: list[tuple[Tensor, int]] = []

    def forward(self, noisy: Tensor, timestep: Tensor) -> SimpleNamespace:
        self.asked.append((noisy, int(timestep)))
        return SimpleNamespace(sample=self.noise)


@needs_diffusers
@pytest.mark.parametrize("sigma", [0.1, 0.25, 0.5, 1.0])
def test_who_sees_the_noise_gets_the_image_back(folder: Path, sigma: float) -> None:
    """With a wrong factor between the scales of pixels and model the image would not come back."""
    denoiser = DiffusionDenoiser(folder, sigma)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(4, 3, 8, 8, generator=generator)
    noise = torch.randn(images.shape, generator=generator)
    denoiser.unet = Knows(noise)
    restored = denoiser(images + sigma * noise)
    # What is left is the distance of the step's noise from the one asked for, times the noise.
    alpha_bar = float(denoiser.alpha_bar)
    left = abs((1 - alpha_bar) / alpha_bar) ** 0.5 / 2 - sigma
    assert abs(left) < 0.02 * sigma
    torch.testing.assert_close(restored, images, rtol=0, atol=abs(left) * float(noise.abs().max()) + 1e-5)
    noisy, step = denoiser.unet.asked[0]
    assert step == int(denoiser.timestep)
    # The model is given images of the variance that it saw at that step: a_t of the image, 1 - a_t of the noise.
    seen = noisy - alpha_bar**0.5 * (2 * images - 1)
    assert float((seen / (1 - alpha_bar) ** 0.5).std()) == pytest.approx(1, rel=0.05)


def test_the_step_is_the_nearest_one() -> None:
    alpha_bars = torch.tensor([0.99, 0.8, 0.5, 0.1], dtype=torch.float64)  # noise to image: 0.1, 0.5, 1, 3
    assert [nearest_step(alpha_bars, noise) for noise in (0.11, 0.5, 0.69, 0.72, 2.9)] == [0, 1, 1, 2, 3]
    for noise in (0.05, 3.5):
        with pytest.raises(ValueError, match=r"\[0\.0502.*, 1\.5\].*got " + f"{noise / 2:g}"):
            nearest_step(alpha_bars, noise)


@needs_diffusers
def test_the_files_of_the_hub_are_read_in_either_layout(folder: Path, tmp_path: Path) -> None:
    images = torch.rand(2, 3, 8, 8)
    flat = DiffusionDenoiser(folder)
    nested = DiffusionDenoiser(write_model(tmp_path / "nested", nested=True))
    assert torch.equal(flat(images), nested(images))
    assert flat(images).shape == images.shape
    assert 0 <= float(flat(images).min()) <= float(flat(images).max()) <= 1
    assert flat.describe() == nested.describe()
    assert "sigma=0.25" in flat.describe()


@needs_diffusers
def test_weights_with_the_names_of_2022_are_read(folder: Path) -> None:
    """google/ddpm-cifar10-32 has them."""
    images = torch.rand(2, 3, 8, 8)
    expected = DiffusionDenoiser(folder)(images)
    path = folder / "diffusion_pytorch_model.safetensors"
    renames = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}
    state = load_file(path)
    renamed = {}
    for name, value in state.items():
        for new, old in renames.items():
            name = name.replace(new, old)
        renamed[name] = value
    assert renamed.keys() != state.keys()
    save_file(renamed, path, {"format": "pt"})
    torch.testing.assert_close(DiffusionDenoiser(folder)(images), expected)


@needs_diffusers
def test_each_image_is_mapped_by_itself_in_eval_mode(folder: Path) -> None:
    encoder = FrozenEncoder("test_resnet", weights="random", input_size=32)
    denoised = Denoised(encoder, DiffusionDenoiser(folder))
    images = torch.rand(4, 3, 8, 8)
    alone = torch.cat([denoised(image[None]) for image in images])
    denoised.denoiser.unet.train()
    torch.testing.assert_close(denoised(images), alone, rtol=1e-4, atol=1e-5)
    assert not any(module.training for module in denoised.modules())
    assert not any(parameter.requires_grad for parameter in denoised.parameters())
    torch.testing.assert_close(denoised.double()(images.double()).float(), alone, rtol=1e-3, atol=1e-4)


@needs_diffusers
def test_the_step_is_part_of_the_state_that_digests_cover(folder: Path) -> None:
    encoder = FrozenEncoder("test_resnet", weights="random", input_size=32)
    one, other = (Denoised(encoder, DiffusionDenoiser(folder, sigma)).fingerprint() for sigma in (0.25, 0.5))
    assert {name for name in one if one[name] != other[name]} == {"denoiser", "denoiser_weights"}


@needs_diffusers
def test_images_of_another_size_are_refused_with_the_cure(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"8x8.*16x16.*changes its noise.*crop"):
        DiffusionDenoiser(folder)(torch.rand(1, 3, 16, 16))


@needs_diffusers
def test_the_variance_that_some_models_predict_is_left_out(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model", out_channels=6)
    assert DiffusionDenoiser(path)(torch.rand(2, 3, 8, 8)).shape == (2, 3, 8, 8)


@needs_diffusers
def test_models_of_another_kind_are_refused(tmp_path: Path) -> None:
    path = write_model(tmp_path / "v", schedule={"prediction_type": "v_prediction"})
    with pytest.raises(ValueError, match="v_prediction"):
        DiffusionDenoiser(path)
    path = write_model(tmp_path / "classes", num_class_embeds=10)
    with pytest.raises(ValueError, match="class"):
        DiffusionDenoiser(path)
    path = write_model(tmp_path / "size", sample_size=None)
    with pytest.raises(ValueError, match="sample_size"):
        DiffusionDenoiser(path)


@needs_diffusers
def test_what_diffusers_would_pass_over_is_refused(folder: Path) -> None:
    path, weights = folder / "config.json", folder / "diffusion_pytorch_model.safetensors"
    config, state = json.loads(path.read_text()), load_file(weights)
    path.write_text(json.dumps({**config, "attention_legacy_order": True}))  # of a fork
    with pytest.raises(ValueError, match="attention_legacy_order"):
        DiffusionDenoiser(folder)
    path.write_text(json.dumps({**config, "_class_name": "UNet2DConditionModel"}))
    with pytest.raises(ValueError, match="UNet2DConditionModel"):
        DiffusionDenoiser(folder)
    path.write_text(json.dumps(config))
    missing = next(iter(state))
    save_file({name: value for name, value in state.items() if name != missing}, weights, {"format": "pt"})
    with pytest.raises(ValueError, match=re.escape(missing)):
        DiffusionDenoiser(folder)


@needs_diffusers
def test_sigma_outside_of_the_schedule_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"`sigma` to lie in \[0\.005"):
        DiffusionDenoiser(folder, 0.001)
    with pytest.raises(ValueError, match="`sigma`"):
        DiffusionDenoiser(folder, 0.0)


@needs_diffusers
@pytest.mark.parametrize("name", ["config.json", "scheduler_config.json", "diffusion_pytorch_model.safetensors"])
def test_a_file_that_is_missing_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(WeightsNotFoundError, match=name):
        DiffusionDenoiser(folder)


@needs_diffusers
def test_the_hub_is_asked_after_the_local_folder(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, list[str]]] = []

    def snapshot(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        if name == "nobody/nothing":
            raise OSError("no route")
        return str(folder)

    monkeypatch.setattr(module, "snapshot_download", snapshot)
    monkeypatch.setenv("ELLIPS_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.chdir(tmp_path)
    DiffusionDenoiser("google/ddpm-cifar10-32")
    assert asked[0][0] == "google/ddpm-cifar10-32"
    assert all((folder / pattern).is_file() for pattern in asked[0][1] if "/" not in pattern)
    with pytest.raises(WeightsNotFoundError, match=r"no route.*nobody--nothing.*ELLIPS_WEIGHTS"):
        DiffusionDenoiser("nobody/nothing")
    write_model(tmp_path / "weights" / "nobody--nothing")
    DiffusionDenoiser("nobody/nothing")
    assert len(asked) == 2
    with pytest.raises(WeightsNotFoundError, match="OWNER/NAME"):
        DiffusionDenoiser(tmp_path / "no" / "such" / "folder")


@needs_diffusers
def test_a_schedule_is_read_as_it_is_written(folder: Path) -> None:
    path = folder / "scheduler_config.json"
    plain = DiffusionDenoiser(folder)
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "beta_schedule": "squaredcos_cap_v2"}))
    cosine = DiffusionDenoiser(folder)
    assert int(cosine.timestep) != int(plain.timestep)
    assert float(cosine.alpha_bar) == pytest.approx(float(plain.alpha_bar), rel=0.02)


def test_without_diffusers_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    with pytest.raises(ImportError, match=r"ellips\[diffusion\]"):
        DiffusionDenoiser(tmp_path)
