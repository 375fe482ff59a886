from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ellips.commands.train_encoder import train_encoder
from ellips.commands.training import RunFolderCLI, train
from ellips.encoders import Denoised, FrozenEncoder, ResidualDenoiser
from ellips.encoders.augmentation import add_noise, step_generator
from ellips.encoders.weights import file_digest
from ellips.errors import EncoderMismatchError
from ellips.pipeline import ImageClassifier
from ellips.splits import digits_part
from ellips.types import ImageBatch
from lightning_modules.denoiser import DenoiserTraining
from tests.shipped import arguments

QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
SHORT = ["--trainer.max_epochs=3", "--trainer.check_val_every_n_epoch=3", "--model.depth=3", "--model.width=16"]
SHORT += ["--model.encoder.input_size=8"]


def digits_encoder() -> FrozenEncoder:
    return FrozenEncoder("test_resnet", weights="digits", input_size=8)  # small, for speed


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("runs")
        patch.chdir(path)
        yield path


@pytest.fixture(scope="module")
def cli(folder: Path) -> RunFolderCLI:
    return train_encoder(["fit", *arguments("encoders/digits_denoiser"), *QUIET, *SHORT])


def test_training_writes_a_denoiser_that_removes_noise(cli: RunFolderCLI, folder: Path) -> None:
    path = folder / "runs" / "digits_denoiser" / "digits_denoiser.safetensors"
    denoiser = ResidualDenoiser(path)
    batches = [batch.image for batch in cli.datamodule.val_dataloader()]
    images = torch.cat(batches)
    # With the noise of the validation.
    noisy = torch.cat([add_noise(x, 0.25, step_generator(x.device, i, 0)) for i, x in enumerate(batches)])
    before, after = ((x - images).square().mean() for x in (noisy, denoiser(noisy)))
    assert float(after) < 0.75 * float(before)
    cli.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(denoiser(noisy), cli.model(noisy), rtol=1e-4, atol=1e-5)
    record = json.loads(path.with_suffix(".json").read_text())
    assert record["sha256"] == file_digest(path)
    assert record["layers"] == {"sigma": 0.25, "channels": 1, "depth": 3, "width": 16}
    assert record["encoder"] == digits_encoder().fingerprint()
    validation = record["validation"]
    assert validation["val/noise_mse"] == pytest.approx(float(before))
    assert validation["val/mse"] == pytest.approx(float(after), rel=1e-4)
    encoder = digits_encoder()
    clean, with_it, without = encoder.encode(images), Denoised(encoder, denoiser).encode(noisy), encoder.encode(noisy)
    error, worse = ((x - clean).square().sum(1) / clean.square().sum(1) for x in (with_it, without))
    assert validation["val/feature_error"] == pytest.approx(float(error.mean()), rel=1e-3)
    assert float(error.mean()) < float(worse.mean())


DENOISED = """
name: denoised
data:
  init_args:
    encoder:
      class_path: ellips.encoders.Denoised
      init_args:
        encoder:
          class_path: ellips.encoders.FrozenEncoder
          init_args: {model: test_resnet, weights: digits}
        denoiser:
          class_path: ellips.encoders.ResidualDenoiser
          init_args: {weights: runs/digits_denoiser/digits_denoiser.safetensors}
"""


def test_gaussians_are_fitted_behind_the_denoiser_that_a_configuration_names(cli: RunFolderCLI, folder: Path) -> None:
    (folder / "denoised.yaml").write_text(DENOISED)
    train(["fit", *arguments("data/digits", "model/gaussians"), "--config", "denoised.yaml", *QUIET])
    denoiser = ResidualDenoiser(folder / "runs" / "digits_denoiser" / "digits_denoiser.safetensors")
    whole = FrozenEncoder("test_resnet", weights="digits")
    checkpoint = folder / "runs" / "denoised" / "checkpoints" / "last.ckpt"
    classifier = ImageClassifier.from_checkpoint(checkpoint, Denoised(whole, denoiser))
    images, labels = digits_part("val")
    assert float((classifier(images).argmax(1) == labels).double().mean()) > 0.9
    with pytest.raises(EncoderMismatchError, match="denoiser"):
        ImageClassifier.from_checkpoint(checkpoint, whole)


def test_the_example_of_the_documentation_is_this_one() -> None:
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    assert DENOISED.partition("name: denoised\n")[2] in page


def test_checkpoints_hold_no_encoder_and_the_encoder_does_not_change(cli: RunFolderCLI, folder: Path) -> None:
    state = torch.load(folder / "runs" / "digits_denoiser" / "checkpoints" / "last.ckpt", weights_only=True)
    assert {name.split(".")[0] for name in state["state_dict"]} == {"layers"}
    (encoder,) = cli.model._encoder
    assert encoder.fingerprint() == digits_encoder().fingerprint()


def test_features_have_a_say_only_where_they_are_asked() -> None:
    torch.manual_seed(0)
    encoder = digits_encoder()
    training = DenoiserTraining(channels=1, depth=2, width=4, encoder=encoder, stability=1.0)
    images, _ = digits_part("val")
    assert float(training.feature_error(images, images)) == pytest.approx(0, abs=1e-6)
    denoised = training(add_noise(images[:32], 0.25, step_generator(images.device, 0)))
    training.feature_error(denoised, images[:32]).backward()
    assert all(float(parameter.grad.abs().sum()) > 0 for parameter in training.layers.parameters())
    assert all(parameter.grad is None for parameter in encoder.parameters())


def test_the_loss_is_that_of_pixels_and_stability_times_that_of_features(monkeypatch: pytest.MonkeyPatch) -> None:
    training = DenoiserTraining(channels=1, depth=2, width=4, encoder=digits_encoder(), flip=False)
    monkeypatch.setattr(training, "log", lambda *args, **kwargs: None)
    images, labels = (part[:32] for part in digits_part("val"))
    denoised = training(add_noise(images, 0.25, step_generator(images.device, training.seed, 0, 0)))
    pixels, features = (denoised - images).square().mean(), training.feature_error(denoised, images)
    for stability in (0.0, 2.0):
        training.stability = stability
        loss = training.training_step(ImageBatch(images, labels, torch.arange(32)), 0)
        torch.testing.assert_close(loss, pixels + stability * features)


def test_stability_without_an_encoder_is_refused() -> None:
    with pytest.raises(ValueError, match="Expected `encoder` with stability"):
        DenoiserTraining(stability=0.5)
    with pytest.raises(ValueError, match="there is none"):
        DenoiserTraining(depth=2, width=2).feature_error(torch.rand(1, 3, 4, 4), torch.rand(1, 3, 4, 4))
