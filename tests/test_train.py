"""train.py on the shipped configuration, shortened: what a run leaves behind, and what it refuses."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from ellips.commands import training
from ellips.errors import EncoderMismatchError
from ellips.head import EllipsHead
from tests.shipped import DIGITS

QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
SHORT = [*QUIET, "--trainer.max_epochs=2", "--trainer.check_val_every_n_epoch=1", "--model.hidden_dim=32"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[training.EllipsCLI, Path, dict[str, torch.Tensor]]:
    """A short fit in a folder of its own, and the encoder's state as it was before."""
    folder = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        before: dict[str, torch.Tensor] = {}
        original = training.EllipsCLI.after_instantiate_classes

        def remember(cli: training.EllipsCLI) -> None:
            original(cli)
            before.update({k: v.clone() for k, v in cli.datamodule.encoder.state_dict().items()})

        patch.setattr(training.EllipsCLI, "after_instantiate_classes", remember)
        cli = training.train(["fit", *DIGITS, *SHORT])
    return cli, folder, before


Run = tuple[training.EllipsCLI, Path, dict[str, torch.Tensor]]


def test_class_count_and_width_come_from_the_data(run: Run) -> None:
    cli, *_ = run
    assert cli.model.head.num_classes == cli.datamodule.num_classes == 10
    assert cli.model.head.in_features == cli.datamodule.feature_dim == 96


def test_the_encoder_is_bit_identical_after_fit(run: Run) -> None:
    cli, _, before = run
    after = cli.datamodule.encoder.state_dict()
    assert any("running_mean" in name for name in before)
    assert after.keys() == before.keys()
    for name, value in before.items():
        assert torch.equal(after[name], value), name
    assert not any(p.requires_grad for p in cli.datamodule.encoder.parameters())


def test_everything_of_a_run_lies_in_its_folder(run: Run) -> None:
    _, folder, _ = run
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {f"runs/digits/{name}" for name in ("config.yaml", "metrics.csv", "checkpoints/last.ckpt")} <= files
    assert "runs/digits/checkpoints/best.ckpt" in files
    assert all(name.startswith("runs/digits/") for name in files)
    saved = yaml.safe_load((folder / "runs/digits/config.yaml").read_text())
    assert saved["name"] == "digits"
    assert saved["trainer"]["max_epochs"] == 2
    assert "val/certified_accuracy/latent-exact@" in (folder / "runs/digits/metrics.csv").read_text()


def test_the_checkpoint_is_small_and_self_contained(run: Run) -> None:
    cli, folder, _ = run
    path = folder / "runs/digits/checkpoints/last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["encoder_fingerprint"] == cli.datamodule.encoder_fingerprint()
    assert not any("encoder" in name or "backbone" in name for name in checkpoint["state_dict"])
    assert EllipsHead.from_checkpoint(path).ellips.digest() == cli.model.head.ellips.digest()


@pytest.mark.parametrize("subcommand", ["test", "validate", "predict"])
def test_a_saved_run_can_be_used_and_stays_as_it_is(run: Run, subcommand: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, folder, _ = run
    monkeypatch.chdir(folder)
    kept = {p: p.read_bytes() for p in (folder / "runs/digits").glob("*") if p.is_file()}
    checkpoint = "runs/digits/checkpoints/last.ckpt"
    cli = training.train([subcommand, *DIGITS, *QUIET, "--ckpt_path", checkpoint])
    assert {p: p.read_bytes() for p in kept} == kept
    if subcommand == "test":
        assert float(cli.trainer.callback_metrics["test/accuracy"]) > 0.9


def test_a_second_fit_refuses_to_overwrite_and_a_resumed_one_does_not(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(run[1], tmp_path / "copy")  # other tests look at the run as it ended
    monkeypatch.chdir(folder)
    config, metrics = (folder / "runs/digits" / name for name in ("config.yaml", "metrics.csv"))
    kept = config.read_bytes(), metrics.read_bytes()
    with pytest.raises(SystemExit, match="already holds a run"):
        training.train(["fit", *DIGITS, *SHORT])
    assert (config.read_bytes(), metrics.read_bytes()) == kept
    training.train(["fit", *DIGITS, *SHORT, "--trainer.max_epochs=3", "--ckpt_path", "last"])
    assert config.read_bytes() == kept[0]
    assert metrics.with_stem("metrics-1").read_bytes() == kept[1]
    assert yaml.safe_load(config.with_stem("config-2").read_text())["trainer"]["max_epochs"] == 3
    assert re.search(r"^2,", metrics.read_text(), re.MULTILINE)


def test_early_stopping_reads_the_logged_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    stop = "--trainer.callbacks"
    options = [
        f"{stop}+=lightning.pytorch.callbacks.EarlyStopping",
        f"{stop}.monitor=val/certified_accuracy/latent-exact@1",
    ]
    options += [f"{stop}.mode=max", f"{stop}.patience=1", f"{stop}.min_delta=1.0"]
    cli = training.train(["fit", *DIGITS, *SHORT, *options, "--trainer.max_epochs=9"])
    assert cli.trainer.current_epoch == 2


def test_another_encoder_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    _, folder, _ = run
    monkeypatch.chdir(folder)
    with pytest.raises(EncoderMismatchError, match="weights"):
        training.train(
            [
                "test",
                *DIGITS,
                *QUIET,
                "--data.init_args.encoder.init_args.weights=random",
                "--ckpt_path",
                "runs/digits/checkpoints/last.ckpt",
            ]
        )
