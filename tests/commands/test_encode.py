from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from datamodules import DigitsDataModule
from ellips.commands import encode
from ellips.encoders import FrozenEncoder


@pytest.fixture
def config(tmp_path: Path) -> Path:
    encoder = {
        "class_path": "ellips.encoders.FrozenEncoder",
        "init_args": {"model": "test_resnet", "weights": "digits", "precision": "bf16"},
    }
    content = {
        "name": "x",
        "data": {"class_path": "datamodules.DigitsDataModule", "init_args": {"encoder": encoder, "batch_size": 128}},
        "model": {"latent_dim": 4},
        "trainer": {"precision": "16-mixed"},  # the encoder has its own
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "config.yaml"


def test_fills_the_cache_that_training_then_finds(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    encode.main(["--config", str(config), "--data.cache_dir", str(cache), "--accelerator", "cpu", "--splits", "[val]"])
    assert "val: 270 images in" in capsys.readouterr().out
    manifest = json.loads((cache / "val" / "manifest.json").read_text())
    assert manifest["complete"]
    assert manifest["identity"]["precision"] == "bf16, features too"
    assert not (cache / "train").exists()
    monkeypatch.setattr(FrozenEncoder, "encode", lambda *_: pytest.fail("encoded again"))
    encoder = FrozenEncoder("test_resnet", weights="digits", precision="bf16")
    data = DigitsDataModule(encoder, cache_dir=cache)
    assert torch.cat([batch.index for batch in data.val_dataloader()]).tolist() == list(range(270))


def test_several_configurations_are_read_and_noisy_copies_are_encoded(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noise = {"class_path": "ellips.datamodules.GaussianNoise", "init_args": {"sigma": 0.25}}
    over = {"data": {"init_args": {"augment": noise, "copies": 2, "val_copies": 1, "batch_size": 512}}}
    (tmp_path / "noisy.yaml").write_text(yaml.safe_dump(over))
    given = ["--config", str(config), "--config", str(tmp_path / "noisy.yaml"), "--data.cache_dir", str(tmp_path / "c")]
    _, module = encode.build(given)
    assert (module.batch_size, module.parts) == (512, ("train", "val", "test", "votes"))
    encode.main([*given, "--accelerator", "cpu", "--data.augment.sigma", "0.5", "--splits", "[votes]"])
    assert "votes: 270 images in" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["votes-sigma0.5-copies1-seed0"]


def test_what_is_missing_is_named(config: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`cache_dir`"):
        encode.build(["--config", str(config)])
    with pytest.raises(FileNotFoundError, match="`--config`"):
        encode.build(["--config", str(tmp_path / "none.yaml")])
    (tmp_path / "empty.yaml").write_text("model: {}\n")
    with pytest.raises(ValueError, match="`data` section"):
        encode.build(["--config", str(tmp_path / "empty.yaml")])
