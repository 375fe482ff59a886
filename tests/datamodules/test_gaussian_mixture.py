from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from datamodules import EncodedDataModule, GaussianMixtureDataModule
from ellips.classifier import Ellips
from ellips.commands import certify, training
from ellips.types import FeatureBatch


def test_points_follow_the_mixture_and_differ_between_splits() -> None:
    data = GaussianMixtureDataModule(3, 4.0, (1.5, 0.5), train_size=6000, val_size=50, test_size=60, batch_size=6000)
    assert (data.num_classes, data.feature_dim) == (3, 2)
    assert data.encoder_fingerprint()["architecture"] == "identity"
    data.setup("fit")
    batch = data.on_after_batch_transfer(next(iter(data.fit_dataloader())), 0)
    assert isinstance(batch, FeatureBatch)
    for k in range(3):
        points = batch.feature[batch.label == k].double()
        angle = 2 * math.pi * k / 3
        expected = torch.tensor([4 * math.cos(angle), 4 * math.sin(angle)], dtype=torch.float64)
        torch.testing.assert_close(points.mean(0), expected, atol=0.12, rtol=0)
        torch.testing.assert_close(points.var(0), torch.tensor([1.5, 0.5], dtype=torch.float64), atol=0.15, rtol=0)
    test = next(iter(data.test_dataloader()))
    assert len(test.index) == 60
    assert not torch.equal(test.feature[:50], next(iter(data.val_dataloader())).feature)
    again = GaussianMixtureDataModule(3, 4.0, (1.5, 0.5), train_size=6000, val_size=50, test_size=60)
    assert torch.equal(next(iter(again.test_dataloader())).feature, test.feature)


def test_the_true_mixture_classifies_its_points() -> None:
    data = GaussianMixtureDataModule(5, 6.0)
    batch = next(iter(data.test_dataloader()))
    assert isinstance(data.mixture, Ellips)
    assert float((data.mixture.predict(batch.feature) == batch.label).float().mean()) > 0.99


def test_it_has_no_encoder_and_no_cache() -> None:
    data = GaussianMixtureDataModule()
    assert not isinstance(data, EncodedDataModule)
    assert not any(hasattr(data, name) for name in ("encoder", "cache_dir", "keep_images", "open_cache", "source"))
    with pytest.raises(TypeError, match="cache_dir"):
        GaussianMixtureDataModule(cache_dir="cache")


def test_splits_are_drawn_once_and_known_by_name() -> None:
    data = GaussianMixtureDataModule(val_size=10)
    assert data.dataset("val") is data.dataset("val")
    with pytest.raises(ValueError, match="`split` to be one of"):
        data.dataset("exam")


def test_the_command_line_takes_its_sizes_and_certify_refuses_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = ["--data", "GaussianMixtureDataModule", "--data.components", "4", "--data.batch_size", "500"]
    model = ["--model.latent_dim", "null"]
    quiet = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
    cli = training.train(["fit", *data, *model, *quiet, "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu"])
    assert (cli.model.head.num_classes, cli.model.head.in_features) == (4, 2)
    assert float(cli.trainer.callback_metrics["val/clean_accuracy"]) > 0.9
    with pytest.raises(TypeError, match="Expected a datamodule with an `encoder` but GaussianMixtureDataModule has"):
        certify.main(data)


@pytest.mark.parametrize(
    "arguments", [{"components": 1}, {"distance": -1.0}, {"variances": (0.0, 1.0)}, {"val_size": 0}]
)
def test_wrong_arguments_are_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"Expected `{next(iter(arguments))}` to be"):
        GaussianMixtureDataModule(**arguments)
