from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import lightning as L
import pytest

from lightning_modules import GenEllips
from train import EllipsCLI

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
    assert cli.config.data.class_path.startswith("datamodules.")
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
