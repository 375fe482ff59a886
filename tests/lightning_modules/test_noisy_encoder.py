from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ellips.commands.train_encoder import train_encoder
from ellips.commands.training import RunFolderCLI
from ellips.encoders import CifarResNet, FrozenEncoder, LinearHead
from ellips.encoders.weights import file_digest
from ellips.splits import digits_part
from ellips.types import ImageBatch
from lightning_modules.noisy_encoder import NoisyEncoderTraining
from tests.shipped import arguments

QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
SMALL = """
model:
  init_args:
    encoder:
      class_path: ellips.encoders.FrozenEncoder
      init_args:
        model: {class_path: ellips.encoders.CifarResNet, init_args: {depth: 8, width: 4}}
        weights: null
        input_size: 8
"""
FIT = ["fit", *arguments("encoders/digits_noise"), *QUIET, "--trainer.check_val_every_n_epoch=1"]
FIT_SMALL = [*FIT, "--config", "small.yaml"]
WHOLE = {"input_size": 8, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("runs")
        patch.chdir(path)
        (path / "small.yaml").write_text(SMALL)
        yield path


@pytest.fixture(scope="module")
def cli(folder: Path) -> RunFolderCLI:
    given = ["--trainer.max_epochs=5", "--name=small", "--model.learning_rate=0.02", "--model.sigma=0.25"]
    return train_encoder([*FIT_SMALL, *given])


def reloaded(run: Path) -> FrozenEncoder:
    return FrozenEncoder(CifarResNet(8, 4), weights=run / "digits_noise.safetensors", **WHOLE)


def test_encoder_and_head_are_those_that_were_trained(cli: RunFolderCLI, folder: Path) -> None:
    encoder = reloaded(folder / "runs" / "small")
    head = LinearHead(folder / "runs" / "small" / "digits_noise-head.safetensors")
    images, labels = digits_part("val")
    cli.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(head(encoder(images)), cli.model(images), rtol=1e-4, atol=1e-4)
    accuracy = float((head(encoder.encode(images)).argmax(1) == labels).double().mean())
    assert accuracy == pytest.approx(float(cli.trainer.callback_metrics["val/accuracy"]), abs=0.01)
    assert accuracy > 0.7


def test_running_statistics_were_trained_too(cli: RunFolderCLI, folder: Path) -> None:
    state = load_file(folder / "runs" / "small" / "digits_noise.safetensors")
    steps = cli.trainer.global_step
    assert {int(value) for name, value in state.items() if name.endswith("num_batches_tracked")} == {steps}


def test_the_record_says_how_it_was_made(cli: RunFolderCLI, folder: Path) -> None:
    run = folder / "runs" / "small"
    record = json.loads((run / "digits_noise.json").read_text())
    assert len({path.stat().st_mode for path in run.glob("digits_noise*")}) == 1  # all can be read by the same people
    encoder = reloaded(run)
    assert record["sha256"] == file_digest(run / "digits_noise.safetensors")
    assert record["head"]["sha256"] == file_digest(run / record["head"]["file"])
    assert record["architecture"] == encoder.architecture
    assert record["preprocessing"] == encoder.preprocess.describe()
    assert record["feature_dim"] == encoder.feature_dim == 16
    assert record["recipe"]["epochs"] == 5
    assert record["recipe"]["sigma"] == 0.25
    assert CifarResNet(record["recipe"]["depth"], record["recipe"]["width"]).ARCHITECTURE == encoder.architecture
    clean, noisy = (record["validation"][f"val/{name}"] for name in ("accuracy", "noisy_accuracy"))
    assert clean >= noisy > 0.4
    assert {"torch", "lightning", "timm"} <= record["made_with"].keys()


def test_a_run_that_was_cut_off_ends_as_an_undisturbed_one(folder: Path) -> None:
    keep = "--trainer.callbacks=lightning.pytorch.callbacks.ModelCheckpoint"
    every = ["--trainer.callbacks.every_n_train_steps=13", "--trainer.callbacks.save_top_k=-1"]
    given = [*FIT_SMALL, "--trainer.max_epochs=2"]
    whole = train_encoder([*given, "--name=whole", keep, *every])
    (middle,) = (folder / "runs" / "whole" / "checkpoints").glob("*step=26.ckpt")  # within the second epoch
    train_encoder([*given, "--name=resumed", "--ckpt_path", str(middle)])
    for name in ("digits_noise.safetensors", "digits_noise-head.safetensors"):
        expected, found = (load_file(folder / "runs" / run / name) for run in ("whole", "resumed"))
        assert whole.trainer.global_step > 26
        for key in expected:
            torch.testing.assert_close(found[key], expected[key], rtol=1e-5, atol=1e-6)


def test_a_killed_run_goes_on_from_its_last_epoch(cli: RunFolderCLI, folder: Path) -> None:
    shutil.copytree(folder / "runs" / "small", folder / "runs" / "longer")  # others look at the run as it ended
    assert (folder / "runs" / "longer" / "checkpoints" / "last.ckpt").is_file()
    longer = train_encoder([*FIT_SMALL, "--name=longer", "--ckpt_path=last", "--trainer.max_epochs=6"])
    assert longer.trainer.current_epoch == 6
    assert longer.model.start["weights"] != cli.model.start["weights"] or longer.trainer.global_step == 6 * 19


def test_a_timm_model_and_adamw(folder: Path) -> None:
    train_encoder([*FIT, "--trainer.max_epochs=1", "--name=timm", "--trainer.limit_train_batches=2"])
    path = folder / "runs" / "timm" / "digits_noise.safetensors"
    encoder = FrozenEncoder("test_resnet", weights=path, **{**WHOLE, "input_size": 32})
    assert encoder.feature_dim == LinearHead(path.with_stem("digits_noise-head")).in_features == 96


def test_biases_and_normalisations_do_not_decay() -> None:
    training = NoisyEncoderTraining(10, FrozenEncoder(CifarResNet(8, 4)), optimizer="adamw", weight_decay=0.1)
    groups = training._optimizer().param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert all(parameter.ndim > 1 for parameter in groups[0]["params"])
    counted = sum(parameter.numel() for group in groups for parameter in group["params"])
    assert counted == sum(parameter.numel() for parameter in training.parameters())


def test_the_network_is_trained_on_noise_of_sigma(monkeypatch: pytest.MonkeyPatch) -> None:
    training = NoisyEncoderTraining(2, FrozenEncoder(CifarResNet(8, 2)), sigma=0.3, flip=False, shift=0)
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(training, "forward", lambda images: seen.append(images) or training.head(images[:, 0, 0, :8]))
    monkeypatch.setattr(training, "log", lambda *args, **kwargs: None)
    batch = ImageBatch(torch.full((64, 3, 32, 32), 0.5), torch.zeros(64, dtype=torch.int64), torch.arange(64))
    training.training_step(batch, 0)
    monkeypatch.setattr(NoisyEncoderTraining, "global_step", 100)  # the same batch, an epoch later
    training.training_step(batch, 0)
    training.validation_step(batch, 0)
    train, later, clean, noisy = (images - 0.5 for images in seen)
    assert not torch.equal(train, later)
    assert float(train.std()) == pytest.approx(0.3, rel=0.01)
    assert not clean.any()
    assert float(noisy.std()) == pytest.approx(0.3, rel=0.01)


def test_compiling_renames_no_weights() -> None:
    plain, compiled = (NoisyEncoderTraining(2, FrozenEncoder(CifarResNet(8, 2)), compile=c) for c in (False, True))
    assert plain.state_dict().keys() == compiled.state_dict().keys()


@pytest.mark.parametrize("wrong", [{"sigma": -1.0}, {"learning_rate": 0.0}, {"label_smoothing": 2.0}, {"shift": -1}])
def test_settings_out_of_range_are_named(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        NoisyEncoderTraining(2, FrozenEncoder(CifarResNet(8, 2)), **wrong)
