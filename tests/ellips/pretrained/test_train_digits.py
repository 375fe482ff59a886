from __future__ import annotations

import json
from pathlib import Path

import pytest

from ellips.encoders import FrozenEncoder
from ellips.encoders.weights import SHIPPED_FOLDER, shipped_provenance
from ellips.pretrained import train_digits
from ellips.splits import digits_part


def test_the_shipped_file_is_small_and_its_record_complete() -> None:
    assert (SHIPPED_FOLDER / "digits.safetensors").stat().st_size <= 2 * 2**20
    record = shipped_provenance("digits")
    assert {"command", "date", "sha256", "recipe", "data", "validation_accuracy", "made_with"} <= set(record)
    assert record["data"]["part"] == "train"
    assert record["data"]["images"] == len(digits_part("train")[0])
    assert record["recipe"] == json.loads(json.dumps(vars(train_digits.Recipe())))


def test_the_shipped_encoder_reaches_its_recorded_validation_accuracy() -> None:
    encoder = FrozenEncoder("test_resnet", weights="digits")
    measured = train_digits.validation_accuracy(encoder)
    assert measured == pytest.approx(shipped_provenance("digits")["validation_accuracy"], abs=0.005)
    assert min(measured.values()) >= 0.975


def test_training_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = (
        train_digits.main(["--output", str(tmp_path / name), "--epochs", "1"]) for name in ("first", "second")
    )
    assert first.read_bytes() == second.read_bytes()
    assert (first.parent / "digits.json").read_text() == (second.parent / "digits.json").read_text()
