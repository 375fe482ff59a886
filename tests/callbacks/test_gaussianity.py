"""What GaussianityCallback logs is what the functions say about all latents, each image once."""

from __future__ import annotations

import math
from pathlib import Path

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from callbacks import CertificationCallback, GaussianityCallback
from callbacks.evaluation import Stage
from ellips.head import EllipsHead
from ellips.theory.degradation import degradation
from ellips.theory.normality import mardia
from ellips.types import FeatureBatch, HeadOutput

SIZE = 300
RADII = [0.5, 1.0]


class Points(L.LightningDataModule):
    def __init__(self, size: int = SIZE, skewed: bool = False) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        label = torch.arange(size) % 2
        feature = torch.randn(size, 2, generator=g) + 4 * label[:, None]
        feature[label == 1] = feature[label == 1] if not skewed else (feature[label == 1] - 4).exp()
        self.rows = [FeatureBatch(feature[i], label[i], torch.tensor(i)) for i in range(size)]
        self.feature, self.label = feature, label

    def loader(self) -> DataLoader:
        return DataLoader(self.rows, batch_size=64, collate_fn=collate)

    train_dataloader = val_dataloader = test_dataloader = loader


def collate(rows: list[FeatureBatch]) -> FeatureBatch:
    return FeatureBatch(*(torch.stack(column) for column in list(zip(*rows, strict=True))[:3]))


class Module(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        other = Points(SIZE)
        self.head = EllipsHead(2, 2, latent_dim=None).fit(other.feature, other.label)
        self.weight = nn.Parameter(torch.zeros(()))

    def training_step(self, batch: FeatureBatch, batch_idx: int) -> dict[str, Tensor]:
        return {"loss": self.weight**2}

    def validation_step(self, batch: FeatureBatch, batch_idx: int) -> HeadOutput:
        latent = self.head.latents(batch.feature)
        return HeadOutput(latent, self.head.ellips(latent), batch.label, batch.index)

    test_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def trainer(folder: Path, *callbacks: L.Callback, **options: object) -> L.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, **options}
    return L.Trainer(accelerator="cpu", devices=1, default_root_dir=folder, callbacks=list(callbacks), **quiet)


@pytest.mark.parametrize("stage", ["val", "test"])
def test_logged_numbers_are_those_of_all_latents(tmp_path: Path, stage: str) -> None:
    callback, data, module = GaussianityCallback(RADII, num_samples=500), Points(), Module()
    run = trainer(tmp_path, callback)
    logged = (run.validate if stage == "val" else run.test)(module, data, verbose=False)[0]
    expected = degradation(module.head.ellips, data.feature, data.label, RADII, num_samples=500, max_per_class=1000)
    assert logged[f"{stage}/mardia_pass_rate"] == mardia(data.feature, data.label).pass_rate()
    assert logged[f"{stage}/mardia_tested_classes"] == 2
    assert logged[f"{stage}/kl"] == pytest.approx(expected.kl.value)
    assert logged[f"{stage}/kl_lower"] <= logged[f"{stage}/kl"] <= logged[f"{stage}/kl_upper"]
    assert logged[f"{stage}/total_variation_bound"] == pytest.approx(expected.total_variation)
    for i, radius in enumerate(RADII):
        assert logged[f"{stage}/degradation_bound/latent-exact@{radius:g}"] == pytest.approx(float(expected.bound[i]))
        assert logged[f"{stage}/degradation_bound_lower/latent-exact@{radius:g}"] <= float(expected.bound[i])


def test_skewed_latents_fail_mardia_and_lower_the_bound(tmp_path: Path) -> None:
    callback = GaussianityCallback(RADII, num_samples=500, alpha=0.001)
    logged = trainer(tmp_path, callback).test(Module(), Points(skewed=True), verbose=False)[0]
    assert callback.mardia is not None
    assert callback.mardia.passed(0.001).tolist() == [True, False]
    assert logged["test/mardia_pass_rate"] == 0.5
    assert logged["test/kl_lower"] > 0.5
    assert logged["test/degradation_bound/latent-exact@0.5"] < 0.6


def test_too_few_samples_leave_kl_out_with_one_warning(tmp_path: Path) -> None:
    callback = GaussianityCallback(RADII)
    with pytest.warns(UserWarning, match="leaves out KL"):
        logged = trainer(tmp_path, callback).test(Module(), Points(size=4), verbose=False)[0]
    assert "test/kl" not in logged
    assert logged["test/mardia_tested_classes"] == 0
    assert math.isnan(logged["test/mardia_pass_rate"])
    assert callback.degradation is None


def test_validation_while_training_runs_every_so_many_epochs(tmp_path: Path) -> None:
    seen: list[int] = []

    class Spy(GaussianityCallback):
        def finish(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: Stage) -> None:
            super().finish(trainer, pl_module, stage)
            seen.append(pl_module.current_epoch)

    trainer(tmp_path, Spy(RADII, num_samples=100, every_n_epochs=2), max_epochs=4, num_sanity_val_steps=1).fit(
        Module(), Points(60)
    )
    assert seen == [1, 3]


def test_bad_arguments_and_modules_are_refused(tmp_path: Path) -> None:
    for bad in ({"radii": [1.0, 0.5]}, {"method": "best"}, {"alpha": 0.0}, {"estimator": "kde"}, {"num_samples": 0}):
        with pytest.raises(ValueError, match="Expected"):
            GaussianityCallback(**bad)
    headless = Module()
    del headless.head
    with pytest.raises(TypeError, match="head"):
        trainer(tmp_path, GaussianityCallback()).test(headless, Points(), verbose=False)

    class Silent(Module):
        def test_step(self, batch: FeatureBatch, batch_idx: int) -> None: ...

    with pytest.raises(TypeError, match="return a HeadOutput but got NoneType"):
        trainer(tmp_path, GaussianityCallback()).test(Silent(), Points(), verbose=False)


def test_radii_are_those_of_the_data_or_of_the_certification_beside_it(tmp_path: Path) -> None:
    """A grid made for another scale would say nothing of latents a thousandth as long."""
    data, module = Points(), Module()
    data.rows = [row._replace(feature=row.feature / 1000) for row in data.rows]
    module.head = EllipsHead(2, 2, latent_dim=None).fit(data.feature / 1000, data.label)
    own, after = GaussianityCallback(num_samples=50), GaussianityCallback(num_samples=50)
    trainer(tmp_path, own).validate(module, data, verbose=False)
    assert own.radii is not None
    assert 0 < own.radii[0] < own.radii[-1] < 0.01
    after.load_state_dict(own.state_dict())
    assert after.radii == own.radii
    assert GaussianityCallback(RADII).state_dict() == {}
    beside = GaussianityCallback(num_samples=50)
    certification = CertificationCallback(radii=[0.0005, 0.001], methods=["exact"], directory=str(tmp_path))
    logged = trainer(tmp_path, certification, beside).validate(module, data, verbose=False)[0]
    assert beside.radii == (0.0005, 0.001)
    names = [
        f"val/{name}/latent-exact@{radius:g}"
        for name in ("degradation_bound", "certified_accuracy")
        for radius in beside.radii
    ]
    assert set(names) <= set(logged)
