"""Radii and choices in no unit: decided by the data, once, and the same for latents of any scale."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from callbacks import CertificationCallback
from ellips.head import EllipsHead
from ellips.lipschitz import JacobianNorm
from ellips.types import FeatureBatch, HeadOutput
from tests.callbacks.blobs import Blobs, Module


class Scaled(Module):
    """Latents in another unit, with the Gaussians fitted to them; the unit may change from epoch to epoch."""

    def __init__(self, factor: float, growth: float = 1.0) -> None:
        super().__init__()
        self.factor, self.growth = factor, growth
        self.fit()

    def fit(self) -> None:
        data = Blobs()
        self.head = EllipsHead(4, 2, latent_dim=None, shrinkage=0.3)
        self.head.fit(self.factor * data.encoder(data.image), data.label)

    def on_train_epoch_start(self) -> None:
        self.factor *= self.growth if self.current_epoch else 1.0
        self.fit()

    def validation_step(self, batch: FeatureBatch, batch_idx: int) -> HeadOutput:
        return super().validation_step(batch._replace(feature=self.factor * batch.feature), batch_idx)

    test_step = validation_step


def trainer(folder: Path, *callbacks: L.Callback, epochs: int = 1) -> L.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return L.Trainer(
        max_epochs=epochs, accelerator="cpu", devices=1, default_root_dir=folder, callbacks=list(callbacks), **quiet
    )


def radii_in(logged: dict[str, float], series: str) -> list[str]:
    return [name.partition("@")[2] for name in logged if f"/certified_accuracy/{series}@" in name]


@pytest.mark.parametrize("factor", [0.001, 1000.0, 2.0**-30, 7.3])
def test_what_chooses_a_checkpoint_does_not_depend_on_the_scale(tmp_path: Path, factor: float) -> None:
    one, other = (
        trainer(tmp_path, CertificationCallback()).validate(Scaled(f), Blobs(), verbose=False)[0] for f in (1.0, factor)
    )
    for method in ("theorem", "pairwise", "exact"):
        name = f"val/relative_radius/latent-{method}"
        assert one[name] > 0
        assert other[name] == pytest.approx(one[name], rel=1e-5)  # features are float32
    average = "val/average_certified_radius/latent-exact"
    assert other[average] == pytest.approx(factor * one[average], rel=1e-5)


@pytest.mark.parametrize("factor", [0.002, 1.0, 500.0])
def test_the_table_shows_where_accuracy_falls(tmp_path: Path, factor: float) -> None:
    logged = trainer(tmp_path, CertificationCallback()).test(Scaled(factor), Blobs(), verbose=False)[0]
    radii = radii_in(logged, "latent-exact")
    assert len(radii) >= 3
    assert radii == radii_in(logged, "latent-theorem") == radii_in(logged, "latent-pairwise")
    accuracies = [logged[f"test/certified_accuracy/latent-exact@{radius}"] for radius in radii]
    assert 0.8 < accuracies[0] <= logged["test/clean_accuracy"]
    assert 0 < accuracies[-1] < 0.5


def test_they_are_decided_at_the_first_validation_and_kept(tmp_path: Path) -> None:
    callback = CertificationCallback()
    best = ModelCheckpoint(tmp_path, filename="best")
    seen: list[dict[str, float]] = []

    class Remember(L.Callback):
        def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            seen.append({name: float(value) for name, value in trainer.callback_metrics.items()})

    module = Scaled(1.0, growth=3.0)
    trainer(tmp_path, callback, best, Remember(), epochs=2).fit(module, Blobs())
    assert [round(module.factor)] == [3]
    first, second = (radii_in(logged, "latent-exact") for logged in seen[-2:])
    assert first == second
    path = best.best_model_path
    stored = torch.load(path, weights_only=True)["callbacks"]["CertificationCallback"]["radii"]["latent"]
    assert [f"{radius:g}" for radius in stored[1:]] == first
    # A new process: tested, validated and trained on with the checkpoint's radii, but for those that are given.
    for stage in ("test", "validate"):
        run = trainer(tmp_path, CertificationCallback())
        logged = getattr(run, stage)(Scaled(9.0), Blobs(), ckpt_path=path, verbose=False)[0]
        assert radii_in(logged, "latent-exact") == first
    resumed = trainer(tmp_path, CertificationCallback(), epochs=3)
    resumed.fit(Scaled(9.0), Blobs(), ckpt_path=path)
    assert radii_in(resumed.callback_metrics, "latent-exact") == first
    own = trainer(tmp_path, CertificationCallback([0.5]))
    assert radii_in(own.test(Scaled(9.0), Blobs(), ckpt_path=path, verbose=False)[0], "latent-exact") == ["0.5"]
    anew = trainer(tmp_path, CertificationCallback()).test(Scaled(9.0), Blobs(), verbose=False)[0]
    assert radii_in(anew, "latent-exact") != first


def test_a_monitored_radius_is_logged_though_the_data_have_others(tmp_path: Path) -> None:
    best = ModelCheckpoint(tmp_path, filename="best", monitor="val/certified_accuracy/latent-exact@0.123", mode="max")
    run = trainer(tmp_path, CertificationCallback(), best)
    run.fit(Module(), Blobs())
    assert best.best_model_score == run.callback_metrics["val/certified_accuracy/latent-exact@0.123"]
    assert len(radii_in(run.callback_metrics, "latent-exact")) > 3


def test_the_name_of_a_radius_is_not_above_it_and_one_that_is_monitored_is_there(tmp_path: Path) -> None:
    """72/255 was logged as 0.282353, of which nothing was known."""
    name = "val/certified_accuracy/latent-exact@0.282353"
    run = trainer(tmp_path, CertificationCallback([72 / 255]), ModelCheckpoint(tmp_path, monitor=name, mode="max"))
    run.fit(Module(), Blobs())
    assert radii_in(run.callback_metrics, "latent-exact") == ["0.282352", "0.282353"]


def test_given_radii_are_all_there_are(tmp_path: Path) -> None:
    callback = CertificationCallback([0.25, 0.5], certifiers=[JacobianNorm()])
    logged = trainer(tmp_path, callback).test(Module(), Blobs(), verbose=False)[0]
    assert radii_in(logged, "latent-exact") == ["0.25", "0.5"]
    image = radii_in(logged, "estimated/input-exact-jacobian-norm")
    assert len(image) >= 3
    assert callback.state_dict()["radii"].keys() == {"input"}
