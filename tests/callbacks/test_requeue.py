"""The requeue signal is acted on between two batches, by the handler that was there, once."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import lightning as L
import pytest
import torch

from callbacks import SafeRequeue
from lightning_modules import GenEllips
from tests.lightning_modules.feature_data import FeatureData


class SendSignal(L.Callback):
    """Sends the signal to its own process amid a batch."""

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step == 3:
            os.kill(os.getpid(), signal.SIGUSR1)


@pytest.fixture
def handled() -> Iterator[list[int]]:
    """What a handler like Lightning's has seen: the optimiser steps made when it was called."""
    seen: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(number))
    yield seen
    signal.signal(signal.SIGUSR1, before)


def make_trainer(folder: Path, *callbacks: L.Callback) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=list(callbacks),
    )


def make_module() -> GenEllips:
    torch.manual_seed(0)
    return GenEllips(10, 4, latent_dim=5, hidden_dim=16, shrinkage=0.1)


def test_the_handler_runs_after_the_batch_and_the_fit_ends(
    tmp_path: Path, handled: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    requeue = SafeRequeue()
    trainer = make_trainer(tmp_path, SendSignal(), requeue)
    # Only what SLURM sets for the job is needed here; Lightning must not look for srun's variables.
    with pytest.raises(SystemExit):
        trainer.fit(make_module(), FeatureData())
    assert requeue.noted
    assert handled == [signal.SIGUSR1]
    assert trainer.global_step == 4


def test_outside_slurm_nothing_changes(tmp_path: Path, handled: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    requeue = SafeRequeue()
    trainer = make_trainer(tmp_path, SendSignal(), requeue)
    trainer.fit(make_module(), FeatureData())
    assert handled == [signal.SIGUSR1]
    assert not requeue.noted
    assert trainer.global_step == 10


def test_the_handler_is_given_back(tmp_path: Path, handled: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    before = signal.getsignal(signal.SIGUSR1)
    make_trainer(tmp_path, SafeRequeue()).fit(make_module(), FeatureData())
    assert signal.getsignal(signal.SIGUSR1) is before
    assert handled == []


def test_an_unknown_signal_is_refused() -> None:
    with pytest.raises(ValueError, match="requeue_signal"):
        SafeRequeue("SIGNOTHING")
