from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ellips import Ellips
from ellips.commands.train_encoder import train_encoder
from ellips.commands.training import RunFolderCLI, train
from ellips.encoders import FrozenEncoder, LinearHead, LipNeXtArchitecture, LipschitzEncoder
from ellips.encoders.weights import file_digest
from ellips.lipschitz import SpectralProduct
from ellips.losses import CertifiedRadius, ScoreCrossEntropy, signed_radius
from ellips.pipeline import ImageClassifier
from ellips.splits import digits_part
from lightning_modules.lipschitz_encoder import LipschitzEncoderTraining
from tests.shipped import arguments

QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
needs_torchlip = pytest.mark.skipif(
    importlib.util.find_spec("deel") is None, reason="deel-torchlip is not installed (extra `lipschitz`)"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("runs")
        patch.chdir(path)
        yield path


@needs_torchlip
def test_training_writes_a_proven_encoder_with_its_record(folder: Path) -> None:
    short = ["--trainer.max_epochs=6", "--trainer.check_val_every_n_epoch=6", "--model.architecture.widths=[32]"]
    cli = train_encoder(["fit", *arguments("encoders/digits_lipschitz"), *QUIET, *short])
    run = folder / "runs" / "digits_lipschitz_encoder"
    record = json.loads((run / "digits_lipschitz.json").read_text())
    encoder = LipschitzEncoder(run / "digits_lipschitz.safetensors")
    assert encoder.constant == record["proven_constant"] <= 1.00001
    # torchlip's own constraint was nearly exact before the export divided by what was left.
    assert record["proven_constant_before_division"] == pytest.approx(1, abs=0.02)
    assert record["recipe"]["epochs"] == 6
    assert record["validation"]["val/accuracy"] > 0.7
    images, _ = digits_part("val")
    cli.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(encoder(images), cli.model.encoder(images), rtol=0.05, atol=1e-3)
        assert torch.equal((encoder(images) @ cli.model.classifier.directions.T).argmax(1), cli.model(images).argmax(1))


SMALL = ["--model.architecture.widths=[20]", "--model.architecture.depths=[2]", "--model.other_rate=1"]
CHANGES = ["--model.shift=1", "--model.cutout=2", "--model.flip=true", "--model.learned_directions=true"]
FIT_SMALL = ["fit", *arguments("encoders/digits_lipnext"), *QUIET, *SMALL, "--model.learning_rate=0.02"]


@pytest.fixture(scope="module")
def lipnext(folder: Path) -> RunFolderCLI:
    return train_encoder(
        [*FIT_SMALL, "--name=lipnext", "--trainer.max_epochs=12", "--trainer.check_val_every_n_epoch=6"]
    )


def test_training_on_the_manifold_ends_within_a_hair_of_one(lipnext: RunFolderCLI, folder: Path) -> None:
    run = folder / "runs" / "lipnext"
    record = json.loads((run / "digits_lipnext.json").read_text())
    assert record["proven_constant_before_division"] == pytest.approx(1, abs=1e-4)
    assert record["recipe"]["architecture"]["kind"] == "lipnext"
    assert record["validation"]["val/accuracy"] > 0.7
    encoder, head = (
        LipschitzEncoder(run / "digits_lipnext.safetensors"),
        LinearHead(run / "digits_lipnext-head.safetensors"),
    )
    assert encoder.constant == record["proven_constant"]
    assert record["head"]["sha256"] == file_digest(run / record["head"]["file"])
    images, labels = digits_part("val")
    scores = head(encoder(images))
    with torch.no_grad():
        torch.testing.assert_close(scores, lipnext.model(images), rtol=1e-4, atol=1e-4)
    logged = lipnext.trainer.callback_metrics
    prediction, radius = lipnext.model.classifier.certify(scores)
    right = prediction == labels
    assert float(logged["val/accuracy"]) == pytest.approx(float(right.double().mean()), abs=0.004)
    share = float((right & (radius >= 0.25)).double().mean())
    assert float(logged["val/certified_accuracy/linear@0.25"]) == pytest.approx(share, abs=0.01)
    assert float(logged["val/certified_accuracy/linear@0.25"]) > 0.3


def test_a_training_that_was_cut_off_ends_as_an_undisturbed_one(folder: Path) -> None:
    keep = "--trainer.callbacks=lightning.pytorch.callbacks.ModelCheckpoint"
    every = ["--trainer.callbacks.every_n_train_steps=13", "--trainer.callbacks.save_top_k=-1"]
    given = [*FIT_SMALL, *CHANGES, "--trainer.max_epochs=2", "--trainer.enable_checkpointing=true"]
    whole = train_encoder([*given, "--name=whole", keep, *every])
    (middle,) = (folder / "runs" / "whole" / "checkpoints").glob("*step=13.ckpt")  # within the second epoch
    assert whole.trainer.global_step > 13
    resumed = train_encoder([*given, "--name=resumed", "--ckpt_path", str(middle)])
    for expected, found in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert len(list(whole.model.classifier.parameters())) == 2


def test_a_cpu_without_a_compiler_is_told_before_the_first_step(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(RuntimeError, match=r"no-such-compiler.*--model\.compile=false"):
        train_encoder([*FIT_SMALL, "--name=uncompiled", "--trainer.max_epochs=1", "--model.compile=true"])


def test_the_gaussians_own_radius_can_be_trained() -> None:
    torch.manual_seed(0)
    losses = [ScoreCrossEntropy(weight=0.3), CertifiedRadius(0.5, weight=2.0)]
    architecture = LipNeXtArchitecture((1, 4, 4), (2,), (10,), (1,), 0.5, 4)
    training = LipschitzEncoderTraining(3, architecture, latent_losses=losses, shrinkage=0.4)
    images, labels = torch.rand(30, 1, 4, 4), torch.arange(30) % 3
    features = training.encoder(images)
    found = training.latent_loss(features, labels)
    mixture = Ellips(3, 4, pooling=0.8, shrinkage=0.4).fit(features.detach(), labels)
    radius = mixture.certify(features.detach(), "exact").radius
    assert (mixture(features).argmax(1) == labels).double().mean() < 1  # some are on the other side
    signed = signed_radius(mixture, features.detach(), labels)
    right = signed > 0
    torch.testing.assert_close(signed[right], radius[right], rtol=1e-6, atol=1e-6)
    wanted = 0.3 * torch.nn.functional.cross_entropy(mixture(features.detach()) / 2, labels)
    wanted = wanted + 2 * (0.5 - signed).clamp(min=0).mean()
    assert float(found.detach()) == pytest.approx(float(wanted), rel=1e-5)
    found.backward()
    assert training.encoder.stages[0].rotations.grad.abs().max() > 0
    assert float(training.latent_loss(features[:2], labels[:2]).detach()) == 0  # a class is missing
    assert training.recipe["latent_losses"][1] == {
        "class_path": "ellips.losses.mixture.CertifiedRadius",
        "weight": 2.0,
        "start_step": 0,
        "gaussians": "batch",
        "radius": 0.5,
        "method": "exact",
    }


def test_gaussians_that_nothing_fits_are_refused() -> None:
    architecture = LipNeXtArchitecture((1, 4, 4), (2,), (10,), (1,), 0.5, 4)
    losses = [CertifiedRadius(0.5, gaussians="fitted")]
    with pytest.raises(ValueError, match="gaussians='batch'"):
        LipschitzEncoderTraining(3, architecture, latent_losses=losses)


def test_gaussians_on_the_shipped_encoder_give_deterministic_radii(folder: Path) -> None:
    """The run of configs/data/digits_lipschitz.yaml: no projector, nothing to train, and a checkpoint all the same."""
    train(["fit", *arguments("data/digits_lipschitz", "model/gaussians"), *QUIET])
    path = folder / "runs" / "digits_lipschitz" / "checkpoints" / "last.ckpt"
    classifier = ImageClassifier.from_checkpoint(path, FrozenEncoder(LipschitzEncoder()))
    images, labels = digits_part("val")
    certificate = classifier.certify(images, SpectralProduct())
    assert certificate.soundness == "deterministic"
    right = certificate.prediction == labels
    assert right.double().mean() >= 0.97
    assert (right & (certificate.radius >= 0.25)).double().mean() >= 0.85
    assert (right & (certificate.radius >= 0.5)).double().mean() >= 0.65
