"""A checkpoint's tensors in a head that computes otherwise with them are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from lightning_modules import GenEllips


def module(**settings: Any) -> GenEllips:
    return GenEllips(4, 2, **{"latent_dim": None, "shrinkage": 0.5, **settings})


def saved(path: Path, **settings: Any) -> Path:
    """A checkpoint of a fitted module, as a trainer writes it."""
    one = module(**settings)
    one.head.fit(torch.rand(40, 4, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 2)
    trainer = L.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", enable_progress_bar=False)
    trainer.strategy.connect(one)
    trainer.save_checkpoint(path)
    return path


@pytest.mark.parametrize(
    ("then", "now", "name"),
    [
        ({"feature_power": 0.5}, {}, "feature_power"),
        ({"feature_power": 0.5}, {"feature_power": 0.25}, "feature_power"),
        ({}, {"feature_power": 0.5}, "feature_power"),
        ({"latent_dim": 3, "hidden_dim": 0, "latent_norm": "ball"}, {"latent_dim": 3, "hidden_dim": 0}, "latent_norm"),
    ],
)
def test_a_head_that_no_shape_tells_from_the_checkpoints(
    then: dict[str, Any], now: dict[str, Any], name: str, tmp_path: Path
) -> None:
    path = saved(tmp_path / "last.ckpt", **then)
    other = module(**now)
    before = other.head.state_dict().keys()
    assert before == module(**then).head.state_dict().keys()
    with pytest.raises(ValueError, match=f"`{name}` to be .*set model.{name} to"):
        GenEllips.load_from_checkpoint(path, **{"feature_power": 1.0, "latent_norm": "none", **now})
    assert GenEllips.load_from_checkpoint(path).head.config == module(**then).head.config


def test_checkpoints_from_before_there_were_powers_are_of_none(tmp_path: Path) -> None:
    content = torch.load(saved(tmp_path / "last.ckpt"), weights_only=True)
    del content["head"]["feature_power"], content["hyper_parameters"]["feature_power"], content["head_digest"]
    torch.save(content, tmp_path / "old.ckpt")
    assert GenEllips.load_from_checkpoint(tmp_path / "old.ckpt").head.config["feature_power"] == 1
    with pytest.raises(ValueError, match=r"`feature_power` to be 1\.0"):
        GenEllips.load_from_checkpoint(tmp_path / "old.ckpt", feature_power=0.5)
