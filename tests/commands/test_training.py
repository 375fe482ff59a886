"""A configuration of ten lines is enough: what a run cannot do without is there without being named."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, ModelCheckpoint

from callbacks import CertificationCallback
from ellips.commands import main
from ellips.commands.training import EllipsCLI, train, with_defaults
from ellips.files import RunFolder
from ellips.head import EllipsHead

SHORT = """
data:
  class_path: ellips.datamodules.DigitsDataModule
  init_args:
    encoder:
      class_path: ellips.encoders.FrozenEncoder
      init_args:
        model: test_resnet
        weights: digits
"""
QUIET = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
FIT = ["fit", "--config", "short.yaml", *QUIET, "--trainer.max_epochs=3", "--model.hidden_dim=32"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[EllipsCLI, RunFolder]:
    """A fit with the short configuration, and its run folder."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "short.yaml").write_text(SHORT)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        cli = train(FIT)
    return cli, RunFolder(folder / "runs" / "default")


def epoch_of(path: Path) -> int:
    """The epoch after which a checkpoint was written."""
    return int(torch.load(path, weights_only=True)["epoch"])


@pytest.fixture
def work(run: tuple[EllipsCLI, RunFolder], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the fit was started in."""
    folder = run[1].path.parents[1]
    monkeypatch.chdir(folder)
    return folder


def test_the_configuration_is_short() -> None:
    assert len(SHORT.strip().splitlines()) <= 10


def test_a_fit_leaves_the_best_and_the_last_checkpoint_and_its_curves(run: tuple[EllipsCLI, RunFolder]) -> None:
    cli, folder = run
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == ["best.ckpt", "last.ckpt"]
    assert epoch_of(folder.last) == 2
    assert folder.config.is_file()
    assert (folder.path / "certified_accuracy_val_latent_exact.png").is_file()
    logged = cli.trainer.callback_metrics
    best = cli.trainer.checkpoint_callback
    assert isinstance(best, ModelCheckpoint)
    assert best.monitor == "val/relative_radius/latent-exact"
    assert best.best_model_score is not None
    assert float(best.best_model_score) >= float(logged[best.monitor]) > 0
    assert Path(best.best_model_path) == folder.best.relative_to(folder.path.parents[1])


def test_test_works_without_naming_a_checkpoint_and_takes_the_best(
    run: tuple[EllipsCLI, RunFolder], work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli = train(["test", "--config", "short.yaml", *QUIET, "--model.hidden_dim=32"])
    assert cli.config.test.ckpt_path == str(RunFolder.named("default").best)
    best = torch.load(run[1].best, weights_only=True)["state_dict"]
    assert torch.equal(cli.model.state_dict()["head.ellips.means"], best["head.ellips.means"])
    logged = cli.trainer.callback_metrics
    assert float(logged["test/accuracy"]) > 0.9
    assert logged["test/clean_accuracy"] == logged["test/accuracy"]
    assert float(logged["test/average_certified_radius/latent-exact"]) > 0
    assert "Certified accuracy on 359 test images" in capsys.readouterr().out
    assert list(work.glob("runs/default/test/certified_accuracy_test_latent_exact.png"))


def test_test_takes_the_last_checkpoint_where_there_is_no_best(
    run: tuple[EllipsCLI, RunFolder], work: Path, tmp_path: Path
) -> None:
    kept = run[1].best.rename(tmp_path / "best.ckpt")
    try:
        cli = train(["validate", "--config", "short.yaml", *QUIET, "--model.hidden_dim=32"])
    finally:
        kept.rename(run[1].best)
    assert cli.config.validate.ckpt_path == str(RunFolder.named("default").last)


def test_a_fit_goes_on_from_the_last_epoch_not_from_the_best(run: tuple[EllipsCLI, RunFolder], work: Path) -> None:
    shutil.copytree(run[1].path, "runs/longer")
    cli = train([*FIT, "--name", "longer", "--ckpt_path", "last", "--trainer.max_epochs=4"])
    assert cli.trainer.current_epoch == 4
    metrics = list(csv.DictReader(RunFolder.named("longer").metrics.read_text().splitlines()))
    assert {row["epoch"] for row in metrics if row["val/accuracy"]} == {"3"}


def test_the_last_checkpoint_is_of_the_last_epoch_also_where_the_first_was_the_best(work: Path) -> None:
    still = ["--model.hidden_dim=0", "--model.optimization.learning_rate=0.0"]  # every epoch is as good as the first
    train([*FIT, "--name", "still", *still])
    folder = RunFolder.named("still")
    assert (epoch_of(folder.best), epoch_of(folder.last)) == (0, 2)


def test_epochs_without_validation_are_in_the_last_checkpoint(work: Path) -> None:
    train([*FIT, "--name", "rare", "--trainer.check_val_every_n_epoch=2"])
    folder = RunFolder.named("rare")
    assert (epoch_of(folder.best), epoch_of(folder.last)) == (1, 2)
    checkpoint = torch.load(folder.last, weights_only=True)
    assert checkpoint["mixture_step"] == checkpoint["global_step"]


def test_gaussians_without_a_projector_are_kept_though_nothing_is_trained(work: Path) -> None:
    nothing = ["--model.latent_dim=null", "--model.shrinkage=0.3", "--trainer.max_epochs=1"]
    train([*FIT, "--name", "gaussians", *nothing])
    assert EllipsHead.from_checkpoint(RunFolder.named("gaussians").checkpoint()).ellips.is_fitted


def test_a_run_that_was_not_trained_is_named(work: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"runs/nobody/checkpoints/best\.ckpt .* train first"):
        main(["test", "--config", "short.yaml", *QUIET, "--name", "nobody"])
    assert not (work / "runs" / "nobody").exists()


def test_a_callback_more_does_not_take_the_place_of_the_defaults(work: Path) -> None:
    stop = "--trainer.callbacks"
    options = [f"{stop}+=lightning.pytorch.callbacks.EarlyStopping", f"{stop}.monitor=val/accuracy", f"{stop}.mode=max"]
    cli = train([*FIT, "--name", "stopped", *options, "--trainer.max_epochs=1"])
    kinds = [type(callback) for callback in cli.trainer.callbacks]
    assert [kinds.count(kind) for kind in (EarlyStopping, CertificationCallback, ModelCheckpoint)] == [1, 1, 2]
    assert RunFolder.named("stopped").best.is_file()


def test_a_quick_try_writes_no_checkpoint(work: Path) -> None:
    cli = train([*FIT, "--name", "tried", "--trainer.fast_dev_run=true"])
    assert cli.trainer.global_step == 1
    assert not RunFolder.named("tried").checkpoints.exists()
    cli = train([*FIT, "--name", "without", "--trainer.enable_checkpointing=false", "--trainer.max_epochs=1"])
    assert cli.trainer.checkpoint_callbacks == []
    assert not RunFolder.named("without").checkpoints.exists()


def test_what_is_named_is_kept_and_only_what_is_missing_added() -> None:
    certification = CertificationCallback(methods=["exact", "pairwise"])
    found = with_defaults([certification])
    assert found[0] is certification
    assert [(c.filename, c.monitor) for c in found[1:] if isinstance(c, ModelCheckpoint)] == [
        ("best", "val/relative_radius/latent-pairwise"),
        ("last", None),
    ]
    own = ModelCheckpoint(monitor="val/accuracy")
    found = with_defaults([own])
    assert found[0] is own
    assert [type(callback) for callback in found] == [ModelCheckpoint, CertificationCallback]
    given: list[L.Callback] = [own, certification]
    assert with_defaults(given) == given
    assert not any(isinstance(callback, Checkpoint) for callback in with_defaults([], checkpoint=False))
