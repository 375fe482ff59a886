"""SIGTERM and SIGINT stop a command within a batch, with a code that says so, and it goes on from there."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from commands.certify import certify
from datamodules import DigitsDataModule
from ellips import EllipsHead, FrozenEncoder
from ellips.commands import main
from ellips.files import Journal, ResultsFolder, RunFolder
from ellips.lightning_modules import Certifier, GenEllips, NoisyEncoderTraining
from ellips.theory.localization import Localizer
from ellips.types import Series
from tests.shipped import arguments

SIGNALS = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
DIGITS = [
    *("--data=ellips.datamodules.DigitsDataModule", "--data.encoder=ellips.encoders.FrozenEncoder"),
    *("--data.encoder.model=test_resnet", "--data.encoder.weights=digits"),
]
FIT = [
    *("fit", *DIGITS, "--data.cache_dir=cache"),
    *("--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"),
    *("--model.hidden_dim=16", "--model.latent_dim=4", "--data.batch_size=600", "--model.regularization=null"),
]


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Whatever happens, the test runner gets its handlers back."""
    outside = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore SIGINT
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        assert signal.getsignal(number) == handler, "a command left a handler behind"
        signal.signal(number, handler)
    signal.signal(signal.SIGINT, outside)


def counted(kind: type | ModuleType, method: str, number: int, after: int, patch: pytest.MonkeyPatch) -> list[int]:
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


ENCODE = [
    *("encode", "--accelerator=cpu", "--splits=[test]", *DIGITS),
    *("--data.batch_size=50", "--data.eval_batch_size=50", "--data.shard_rows=100"),
]


@SIGNALS
def test_encoding_ends_within_a_batch_and_goes_on(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = [*ENCODE, f"--data.cache_dir={tmp_path}"]
    with monkeypatch.context() as patch:
        calls = counted(FrozenEncoder, "encode", number, 4, patch)
        with pytest.raises(SystemExit) as stop:
            main(given)
    assert stop.value.code == 128 + number
    assert len(calls) == 4
    assert [path.name for path in (tmp_path / "test").glob("shard-*")] == ["shard-00000.safetensors"]
    again = counted(FrozenEncoder, "encode", number, 99, monkeypatch)
    assert main(given) == 0
    assert len(again) == 6, "359 images in batches of 50 and shards of 100, but for the shard that was there"


@SIGNALS
def test_an_audit_ends_within_a_batch_and_goes_on(
    number: int, digits_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("art", reason="the audit's attacks come with the extra `bench`")
    run = [*DIGITS, f"--ckpt_path={digits_checkpoint}", f"--out={tmp_path}", "--max=6", "--methods=[exact]"]
    assert main(["certify", *run, "--trainer.accelerator=cpu"]) == 0
    quick = ("steps=2", "restarts=1", "autoattack_points=0", "queries=2", "batch_size=2")
    given = ["audit", str(tmp_path), "--accelerator=cpu", *(f"--attack.{setting}" for setting in quick)]
    command = import_module("ellips.commands.audit")
    with monkeypatch.context() as patch:
        calls = counted(command, "audit_batch", number, 2, patch)
        with pytest.raises(SystemExit) as stop:
            main(given)
    assert stop.value.code == 128 + number
    assert len(calls) == 2
    assert not (tmp_path / "audit.json").exists()
    again = counted(command, "audit_batch", number, 99, monkeypatch)
    assert main(given) == 0
    assert len(again) == 2, "of three batches one was done"


@SIGNALS
def test_the_training_of_an_encoder_ends_within_a_batch_and_goes_on(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    quiet = [f"--trainer.enable_{part}=false" for part in ("progress_bar", "model_summary")]
    given = ["train-encoder", "fit", *arguments("encoders/digits_noise"), *quiet, "--data.batch_size=600"]
    given += ["--trainer.max_epochs=2", "--trainer.log_every_n_steps=1"]
    with monkeypatch.context() as patch:
        calls = counted(NoisyEncoderTraining, "training_step", number, 4, patch)
        with pytest.raises(SystemExit) as stop:
            main(given)
    assert stop.value.code == 128 + number
    assert len(calls) == 4, "two batches an epoch: the second epoch, in its second batch"
    folder = RunFolder.named("digits_noise_encoder")
    assert folder.last.is_file()
    assert not (folder.path / "digits_noise.safetensors").exists()
    assert main([*given, "--ckpt_path=last"]) == 0
    assert (folder.path / "digits_noise.safetensors").is_file()


@SIGNALS
def test_theory_ends_at_once(number: int, digits_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        calls = counted(Localizer, "best", number, 1, patch)
        with pytest.raises(SystemExit) as stop:
            main(["theory", "localization", str(digits_checkpoint), "--json", str(tmp_path / "found.json")])
    assert stop.value.code == 128 + number
    assert len(calls) == 1
    assert not (tmp_path / "found.json").exists()


def test_two_runs_do_not_write_to_one_folder(tmp_path: Path) -> None:
    series = [Series("latent", "exact")]
    with Journal(ResultsFolder(tmp_path), series, {}).open(0):
        with pytest.raises(ValueError, match="another run does; wait for it, or take another folder"):
            Journal(ResultsFolder(tmp_path), series, {}).open(0)
        Journal(ResultsFolder(tmp_path), series, {}).open(1).close()
    Journal(ResultsFolder(tmp_path), series, {}).open(0).close()
