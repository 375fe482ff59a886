"""SIGTERM and SIGINT stop a command within a batch, with a code that says so, and it goes on from there."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from commands.certify import certify
from datamodules import DigitsDataModule
from ellips import EllipsHead, FrozenEncoder
from ellips.commands import main
from ellips.files import Journal, ResultsFolder, RunFolder
from ellips.lightning_modules import Certifier, GenEllips
from ellips.types import Series

SIGNALS = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
FIT = [
    "fit",
    *("--data=ellips.datamodules.DigitsDataModule", "--data.encoder=ellips.encoders.FrozenEncoder"),
    *("--data.encoder.model=test_resnet", "--data.encoder.weights=digits", "--data.cache_dir=cache"),
    *("--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"),
    *("--model.hidden_dim=16", "--model.latent_dim=4", "--data.batch_size=600", "--model.regularization=null"),
]


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Whatever happens, the test runner gets its handlers back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        assert signal.getsignal(number) == handler, "a command left a handler behind"
        signal.signal(number, handler)


def counted(kind: type, method: str, number: int, after: int, patch: pytest.MonkeyPatch) -> list[int]:
    """Send a signal in the middle of a method's so-many-th call; returns the calls."""
    calls: list[int] = []
    whole: Callable[..., Any] = getattr(kind, method)

    def signalled(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401
        calls.append(len(calls))
        if len(calls) == after:
            os.kill(os.getpid(), number)
        return whole(*arguments, **options)

    patch.setattr(kind, method, signalled)
    return calls


@SIGNALS
def test_a_fit_ends_within_a_batch_and_goes_on(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        calls = counted(GenEllips, "training_step", number, 6, patch)
        with pytest.raises(SystemExit) as stop:
            main([*FIT, "--trainer.max_epochs=4"])
    assert stop.value.code == 128 + number
    assert len(calls) == 6, "two batches an epoch: the third epoch, in its second batch"
    folder = RunFolder.named("default")
    assert folder.last.is_file()
    assert main([*FIT, "--trainer.max_epochs=4", "--ckpt_path=last"]) == 0


def test_a_fit_ends_amid_the_exact_fit_of_the_gaussians(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    calls = counted(EllipsHead, "update", signal.SIGTERM, 1, monkeypatch)
    with pytest.raises(SystemExit) as stop:
        main([*FIT, "--trainer.max_epochs=2", "--data.eval_batch_size=100"])
    assert stop.value.code == 143
    assert len(calls) == 1


@SIGNALS
def test_certification_ends_within_a_batch_says_what_is_missing_and_goes_on(
    number: int, digits_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = DigitsDataModule(FrozenEncoder("test_resnet", weights="digits"))
    options: dict[str, Any] = {
        "ckpt_path": str(digits_checkpoint),
        "out": str(tmp_path),
        "hardware": {"accelerator": "cpu"},
    }
    options |= {"max": 12, "batch_size": 4, "methods": ["exact"]}
    with monkeypatch.context() as patch:
        calls = counted(Certifier, "predict_step", number, 2, patch)
        with pytest.raises(SystemExit) as stop:
            certify(data, **options)
    assert stop.value.code == 128 + number
    assert len(calls) == 2
    assert json.loads((tmp_path / "summary.json").read_text())["complete"] is False
    again = counted(Certifier, "predict_step", signal.SIGTERM, 99, monkeypatch)
    assert certify(data, **options)["complete"]
    assert len(again) == (1 if number == signal.SIGTERM else 2), "SIGTERM lets the batch end, SIGINT does not"


def test_two_runs_do_not_write_to_one_folder(tmp_path: Path) -> None:
    series = [Series("latent", "exact")]
    with Journal(ResultsFolder(tmp_path), series, {}).open(0):
        with pytest.raises(ValueError, match="another run does; wait for it, or take another folder"):
            Journal(ResultsFolder(tmp_path), series, {}).open(0)
        Journal(ResultsFolder(tmp_path), series, {}).open(1).close()
    Journal(ResultsFolder(tmp_path), series, {}).open(0).close()
