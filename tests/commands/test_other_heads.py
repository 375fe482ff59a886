"""A table is of one classifier: what tensors do not tell of it, its settings do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ellips.commands.certify import main as certify
from ellips.files import ResultsFolder


def arguments(folder: Path) -> list[str]:
    values = {
        "data": "ellips.datamodules.DigitsDataModule",
        "data.encoder": "ellips.encoders.FrozenEncoder",
        "data.encoder.model": "test_resnet",
        "data.encoder.weights": "digits",
        "methods": "[exact]",
        "max": "2",
        "ckpt_path": str(folder / "last.ckpt"),
        "out": str(folder / "out"),
        "trainer.accelerator": "cpu",
    }
    return [f"--{name}={value}" for name, value in values.items()]


def save(checkpoint: Path, folder: Path, **settings: Any) -> None:
    """Write a checkpoint with the same tensors and such settings of its head."""
    content = torch.load(checkpoint, weights_only=True)
    content["head"] |= settings
    torch.save(content, folder / "last.ckpt")


@pytest.fixture
def run(digits_checkpoint: Path, tmp_path: Path) -> ResultsFolder:
    """A run of which one image is left to do."""
    save(digits_checkpoint, tmp_path)
    assert certify(arguments(tmp_path)) == 0
    rows = tmp_path / "out" / "journal" / "rows-0.csv"
    rows.write_text("".join(rows.read_text().splitlines(keepends=True)[:2]))
    return ResultsFolder(tmp_path / "out")


def test_a_run_does_not_go_on_with_a_head_of_the_same_tensors(run: ResultsFolder, digits_checkpoint: Path) -> None:
    folder, table = run.path.parent, run.table.read_bytes()
    save(digits_checkpoint, folder, feature_power=0.5)
    with pytest.raises(
        ValueError, match=r"differs in head \(there .*'feature_power': 1.0.*here .*'feature_power': 0.5"
    ):
        certify(arguments(folder))
    save(digits_checkpoint, folder)
    assert certify(arguments(folder)) == 0
    assert len(run.table.read_bytes().splitlines()) == len(table.splitlines()) == 3


def test_a_run_that_was_begun_before_heads_were_recorded_goes_on(run: ResultsFolder) -> None:
    settings = json.loads(run.settings.read_text())
    assert settings.pop("head")["feature_power"] == 1.0
    # As such a run has begun: rows are bound to the settings that they were written under.
    for path in run.journal.iterdir():
        path.unlink()
    run.settings.write_text(json.dumps(settings))
    assert certify(arguments(run.path.parent)) == 0
    assert "head" not in json.loads(run.settings.read_text())


def test_an_audit_of_a_head_of_the_same_tensors_is_refused(run: ResultsFolder, digits_checkpoint: Path) -> None:
    pytest.importorskip("art", reason="the audit's attacks come with the extra `bench`")
    from ellips.commands.audit import read_claims

    assert read_claims(run, None, torch.device("cpu")).records
    save(digits_checkpoint, run.path.parent, feature_power=0.5)
    with pytest.raises(ValueError, match=r"encoder or head changed since: .*'feature_power': 0.5"):
        read_claims(run, None, torch.device("cpu"))
