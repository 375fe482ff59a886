"""A fit that was interrupted and resumed ends as one that was not: same weights, mixture, metrics, predictions."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import lightning as L
import pytest
import torch
import yaml

from datamodules import DigitsDataModule
from ellips.commands.training import EllipsCLI, train
from ellips.encoders import FrozenEncoder
from ellips.head import EllipsHead
from tests.shipped import merged

ROOT = Path(__file__).parents[1]


class Interrupt(Exception):
    """Ends a fit where a kill would."""


class StopAt(L.Callback):
    """Raises at an optimiser step, before its batch is trained on or, if told so, in the validation before it."""

    def __init__(self, step: int, in_validation: bool = False) -> None:
        self.step = step
        self.in_validation = in_validation

    def on_train_batch_start(self, trainer: L.Trainer, *rest: object) -> None:
        if trainer.global_step == self.step and not self.in_validation:
            raise Interrupt

    def on_validation_start(self, trainer: L.Trainer, *rest: object) -> None:
        if trainer.global_step == self.step and self.in_validation:
            raise Interrupt


def write_config(folder: Path, name: str, every_steps: int | None, epochs: int = 3) -> Path:
    """The shipped configuration, smaller, with five batches an epoch and a checkpoint every few steps."""
    config = merged("data/digits", "model/digits")
    config["name"] = name
    config["data"]["init_args"].update(batch_size=240, keep_images=False)
    config["model"].update(hidden_dim=32)
    last = {"filename": "last", "enable_version_counter": False, "every_n_train_steps": every_steps}
    config["trainer"].update(
        max_epochs=epochs,
        check_val_every_n_epoch=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[
            {"class_path": "callbacks.CertificationCallback"},
            {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": last},
        ],
    )
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def compare(folder: Path, one: str, other: str) -> None:
    """Hold the last checkpoints and what they predict against each other."""
    heads = [EllipsHead.from_checkpoint(folder / f"runs/{name}/checkpoints/last.ckpt") for name in (one, other)]
    for (name, a), b in zip(heads[0].state_dict().items(), heads[1].state_dict().values(), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-6, atol=1e-6, msg=name)
    encoder = yaml.safe_load((folder / f"{one}.yaml").read_text())["data"]["init_args"]["encoder"]["init_args"]
    data = DigitsDataModule(FrozenEncoder(**encoder))
    data.setup("test")
    features = data.encode(next(iter(data.test_dataloader()))).feature
    certificates = [head.ellips.certify(head.latents(features).detach()) for head in heads]
    assert torch.equal(certificates[0].prediction, certificates[1].prediction)
    torch.testing.assert_close(certificates[1].radius, certificates[0].radius, rtol=1e-6, atol=1e-6)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    """Folder and last metrics of a fit that nothing disturbs: three epochs of five steps, a checkpoint at each."""
    folder = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        cli = train(["fit", "--config", str(write_config(folder, "whole", 1))])
    assert cli.trainer.global_step == 15
    return folder, {name: float(value) for name, value in cli.trainer.callback_metrics.items()}


@pytest.mark.parametrize(
    "stops",
    [
        [StopAt(5)],
        [StopAt(7)],
        # The checkpoint is that of an epoch's last batch; then the epoch after it is interrupted twice.
        [StopAt(5, in_validation=True), StopAt(8), StopAt(9)],
    ],
    ids=["between epochs", "within an epoch", "in validation and again"],
)
def test_interrupted_and_resumed(
    whole: tuple[Path, dict[str, float]], stops: list[StopAt], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, expected = whole
    monkeypatch.chdir(folder)
    name = f"broken-{len(stops)}-{stops[0].step}"
    command = ["fit", "--config", str(write_config(folder, name, 1)), "--ckpt_path", "last"]
    original = EllipsCLI.after_instantiate_classes
    for stop in stops:

        def add(cli: EllipsCLI, stop: StopAt = stop) -> None:
            original(cli)
            cli.trainer.callbacks.insert(0, stop)

        with monkeypatch.context() as patch:
            patch.setattr(EllipsCLI, "after_instantiate_classes", add)
            with pytest.raises(Interrupt):
                train(command)
    resumed = train(command)
    assert resumed.trainer.global_step == 15
    compare(folder, "whole", name)
    metrics = resumed.trainer.callback_metrics
    if stops[0].in_validation:  # radii of the data are decided at the first validation: here there was none
        expected = {key: value for key, value in expected.items() if "@" not in key}
        assert expected.keys() <= metrics.keys()
    else:
        assert metrics.keys() == expected.keys()
    for key, value in expected.items():
        assert float(metrics[key]) == pytest.approx(value, rel=1e-6, abs=1e-6), key


@pytest.mark.faults
@pytest.mark.timeout(900)
@pytest.mark.parametrize("every_steps", [None, 1])
def test_killed_four_times_the_run_ends_the_same(tmp_path: Path, every_steps: int | None) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

    def start(name: str, *options: str) -> subprocess.Popen[bytes]:
        config = str(write_config(tmp_path, name, every_steps, epochs=12))
        command = [sys.executable, "-W", "ignore", str(ROOT / "train.py"), "fit", "--config", config, *options]
        return subprocess.Popen(command, cwd=tmp_path, env=environment)

    assert start("whole").wait() == 0
    last = tmp_path / "runs/killed/checkpoints/last.ckpt"
    for goal, pause in ((1, 0.0), (12, 0.05), (27, 0.11), (43, 0.17)):
        process = start("killed", "--ckpt_path", "last")
        while process.poll() is None and not (
            last.exists() and torch.load(last, weights_only=True)["global_step"] >= goal
        ):
            time.sleep(0.01)
        time.sleep(pause)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "the run ended before it was killed"
    assert start("killed", "--ckpt_path", "last").wait() == 0
    compare(tmp_path, "whole", "killed")
