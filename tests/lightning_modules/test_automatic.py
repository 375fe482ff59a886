"""`regularization: auto`, the default: what it chooses, where it stays away, and classes of one or two images."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from ellips.automatic_regularization import choose_automatically
from ellips.classifier import Ellips
from ellips.commands import main
from ellips.commands.training import train
from ellips.gaussians import Regularization
from ellips.head import EllipsHead
from ellips.progress import ImageProgress
from ellips.regularization_search import RegularizationSearch
from lightning_modules import GenEllips, regularizing
from tests.lightning_modules.feature_data import FeatureData, latents_of
from tests.lightning_modules.test_gen_ellips import make_module, make_trainer

DATA = """
data:
  class_path: tests.lightning_modules.few_digits.FewDigits
  init_args:
    nines: {nines}
    encoder:
      class_path: ellips.encoders.FrozenEncoder
      init_args: {{model: test_resnet, weights: digits}}
model: {{latent_dim: 32, hidden_dim: 32{more}}}
trainer: {{accelerator: cpu, max_epochs: 1, enable_progress_bar: false, enable_model_summary: false}}
"""


def test_it_is_the_default_and_what_it_chose_is_logged(tmp_path: Path) -> None:
    data, module = FeatureData(), make_module(shrinkage=None)
    assert module.head.ellips.regularization == Regularization(0.0, 0.1)
    trainer = make_trainer(tmp_path)
    trainer.fit(module, data)
    latents = latents_of(module.head, data.val)
    best, _ = choose_automatically(
        Ellips(4, 5), module.head.moments.compute(), latents, data.val.label, torch.arange(len(latents))
    )
    assert best.regularization != Regularization(0.0, 0.1)
    assert module.head.ellips.regularization == best.regularization
    logged = trainer.callback_metrics
    assert float(logged["val/pooling"]) == pytest.approx(best.regularization.pooling)
    assert float(logged["val/shrinkage"]) == pytest.approx(best.regularization.shrinkage)


@pytest.mark.parametrize("search", ["auto", RegularizationSearch(0.1, (0.0, 0.5), (0.1,))], ids=["auto", "a grid"])
def test_how_many_settings_were_tried_is_shown(
    search: RegularizationSearch | str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shown = functools.partial(ImageProgress, report_every=0.0)

    def at_once(*given: Any, after: float, show: bool, **options: Any) -> ImageProgress:
        assert after > 0  # nothing where it is over soon
        assert not show  # these tests have no bar
        return shown(*given, **options)

    monkeypatch.setattr(regularizing, "ImageProgress", at_once)
    module = make_module(shrinkage=None, regularization=search)
    make_trainer(tmp_path, max_epochs=1).fit(module, FeatureData())
    lines = [line for line in capsys.readouterr().err.splitlines() if "Choosing pooling and shrinkage" in line]
    assert " settings/s, " in lines[-1]
    if search != "auto":
        assert "2 of 2 settings" in lines[-1]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"shrinkage": 0.4}, Regularization(0.0, 0.4)),
        ({"pooling": 0.4}, Regularization(0.4, 0.1)),
        ({"regularization": None}, Regularization(0.0, 0.1)),
    ],
)
def test_what_is_given_stays(tmp_path: Path, options: dict[str, Any], expected: Regularization) -> None:
    module = make_module(**{"shrinkage": None, **options})
    make_trainer(tmp_path, max_epochs=1).fit(module, FeatureData())
    assert module.head.ellips.regularization == expected


def test_data_without_a_validation_split_keep_what_they_start_with(tmp_path: Path) -> None:
    class Alone(L.LightningDataModule):
        inner = FeatureData()
        train_dataloader = fit_dataloader = lambda self: self.inner.train_dataloader()

    module = make_module(shrinkage=None)
    with pytest.warns(UserWarning, match="Alone has no validation split to choose pooling and shrinkage on"):
        make_trainer(tmp_path, max_epochs=1).fit(module, Alone())
    assert module.head.ellips.regularization == Regularization(0.0, 0.1)


def test_scikit_learns_estimators_need_nothing_switched_off() -> None:
    assert GenEllips(10, 4, covariance_estimator="oas").regularization is None


@pytest.mark.parametrize("nines", [1, 2])
def test_a_class_of_one_or_two_images_is_fitted_tested_and_certified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nines: int
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("few.yaml").write_text(DATA.format(nines=nines, more=""))
    train(["fit", "--config", "few.yaml"])
    head = EllipsHead.from_checkpoint(next(Path("runs").rglob("best.ckpt")))
    assert head.ellips.priors[9] < 0.002
    assert head.ellips.regularization.pooling > 0 or nines > 1
    tested = train(["test", "--config", "few.yaml"]).trainer.callback_metrics
    assert float(tested["test/clean_accuracy"]) > 0.8
    assert main(["certify", "--config", "few.yaml", "--skip", "10", "--methods", "[exact]"]) == 0
    summary = json.loads(next(Path("runs").rglob("summary.json")).read_text())
    assert summary["complete"]
    assert summary["series"]["latent-exact"]["unconfirmed"] == 0
    assert summary["series"]["latent-exact"]["average_certified_radius"] > 0


def test_without_it_the_error_names_the_class_and_the_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("few.yaml").write_text(DATA.format(nines=1, more=", regularization: null"))
    with pytest.raises(ValueError, match="class 9 has 1; raise `shrinkage` or `pooling`"):
        train(["fit", "--config", "few.yaml"])
