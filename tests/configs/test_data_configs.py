from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import lightning as L
import numpy as np
import pytest
from ellips.commands.training import EllipsCLI, train
from PIL import Image

from lightning_modules import GenEllips

CONFIGS = Path(__file__).parents[2] / "configs"


class Parsed(EllipsCLI):
    """Reads and checks the configuration and builds nothing: no weights and no images are needed."""

    def before_instantiate_classes(self) -> None:
        return

    def instantiate_classes(self) -> None:
        return

    def after_instantiate_classes(self) -> None:
        return


@pytest.mark.parametrize("name", ["cifar10", "imagenet", "image_folder"])
def test_every_entry_is_known(name: str) -> None:
    path = CONFIGS / f"{name}.yaml"
    cli = Parsed(GenEllips, L.LightningDataModule, subclass_mode_data=True, run=False, args=["--config", str(path)])
    assert cli.config.data.class_path.startswith("ellips.datamodules.")
    assert cli.config.name == name


@pytest.mark.parametrize("name", ["cifar10", "imagenet", "image_folder"])
def test_every_entry_of_the_data_is_explained(name: str) -> None:
    lines = (CONFIGS / f"{name}.yaml").read_text().splitlines()
    section = lines[lines.index("data:") + 1 : next(i for i, line in enumerate(lines) if line.startswith("model:"))]
    for before, line in pairwise(section):
        key, _, value = line.partition(":")
        structure = key.strip() in ("class_path", "init_args", "encoder")
        if value and line.strip() and not line.strip().startswith("#") and not structure:
            assert "#" in value or before.strip().startswith("#"), line


def test_the_configuration_for_folders_trains_and_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    for split, count in (("train", 40), ("test", 10)):
        for name, shade in (("bright", 200), ("dark", 40)):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = np.clip(generator.normal(shade, 20, (12, 16, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    encoder = [
        "--data.encoder.model",
        "test_resnet",
        "--data.encoder.weights",
        "random",
        "--data.encoder.input_size",
        "32",
    ]
    arguments = ["--config", str(CONFIGS / "image_folder.yaml"), "--data.root", str(tmp_path / "images"), *encoder]
    arguments += ["--data.resize", "12", "--data.crop", "12", "--data.num_workers", "0", "--model.latent_dim", "4"]
    arguments += ["--model.hidden_dim", "32", "--trainer.accelerator", "cpu", "--trainer.max_epochs", "2"]
    quiet = ["--trainer.enable_progress_bar", "false", "--trainer.check_val_every_n_epoch", "1"]
    train(["fit", *arguments, *quiet])
    checkpoint = tmp_path / "runs" / "image_folder" / "checkpoints" / "last.ckpt"
    cli = train(["test", *arguments, *quiet, "--ckpt_path", str(checkpoint)])
    assert cli.trainer.callback_metrics["test/clean_accuracy"] == 1
    assert (tmp_path / "cache" / "image_folder" / "test" / "manifest.json").exists()
