from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ellips.commands.train_encoder import train_encoder
from ellips.commands.training import train
from ellips.encoders import FrozenEncoder, LipschitzEncoder
from ellips.lipschitz import SpectralProduct
from ellips.pipeline import ImageClassifier
from ellips.splits import digits_part
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
