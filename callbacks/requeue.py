"""Requeueing under SLURM at a moment when the training state is whole."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

import lightning as L
from lightning.pytorch.utilities.rank_zero import rank_zero_info


class SafeRequeue(L.Callback):
    """Lets Lightning's requeueing under SLURM run between two batches, in all processes at once.

    Lightning saves and requeues from within its signal handler, which Python may run between any two instructions:
    amid a backward pass the checkpoint would hold half a step, and amid a collective operation some processes would
    save while others wait for them for ever (Lightning's issue 21406). This callback takes the handler's place, only
    notes the signal, and calls Lightning's handler at the end of the batch by which any process has noted it. Then the
    process ends; SLURM starts the job again, and ``train.py fit --ckpt_path last`` goes on from what was saved.

    Outside a SLURM job it does nothing.

    Args:
        requeue_signal: Name of the signal, as in ``#SBATCH --signal=SIGUSR1@120``.

    Raises:
        ValueError: If there is no such signal.
    """

    def __init__(self, requeue_signal: str = "SIGUSR1") -> None:
        super().__init__()
        if requeue_signal not in signal.Signals.__members__:
            raise ValueError(f"Expected `requeue_signal` to name a signal but got {requeue_signal!r}.")
        self.requeue_signal = signal.Signals[requeue_signal]
        self.noted = False
        self._requeue: Callable[..., Any] | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the place of Lightning's handler, if it has set one."""
        handler = signal.getsignal(self.requeue_signal)
        if "SLURM_JOB_ID" in os.environ and callable(handler) and handler != self._note:
            self._requeue = handler
            signal.signal(self.requeue_signal, self._note)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,  # noqa: ANN401 - Lightning's signature
        batch: Any,  # noqa: ANN401
        batch_idx: int,
    ) -> None:
        """Save, requeue and end, if any process has noted the signal."""
        # Half an accumulated gradient is in no checkpoint.
        if (batch_idx + 1) % trainer.accumulate_grad_batches and not trainer.is_last_batch:
            return
        # Every process has a handler or none has: all run the same job with the same configuration.
        if self._requeue is None or not trainer.strategy.reduce_boolean_decision(self.noted, all=False):
            return
        rank_zero_info(f"Requeueing after step {trainer.global_step}.")
        self._requeue(self.requeue_signal, None)
        trainer.strategy.barrier("requeue")
        raise SystemExit(0)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Give the handler back."""
        if self._requeue is not None:
            signal.signal(self.requeue_signal, self._requeue)
            self._requeue = None

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.noted = True
