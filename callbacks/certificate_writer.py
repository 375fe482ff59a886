"""Writes each certified image to the journal as soon as it is finished, and shows how far the run is."""

from __future__ import annotations

import signal
from typing import Any

import lightning as L

from ellips.files import Journal
from ellips.progress import ImageProgress


class CertificateWriter(L.Callback):
    """Appends what ``Certifier.predict_step`` returns to this process's journal, image by image.

    Images that an interrupted run has finished already are not written again.

    Args:
        journal: Where to write.
        done: Positions of the images that are in the journal already.
        total: Images of the whole run, for the progress.
        report_every: Seconds between two lines of progress where the output is no terminal (a batch job's log).
    """

    def __init__(self, journal: Journal, done: set[int], total: int, report_every: float = 30.0) -> None:
        super().__init__()
        self.journal = journal
        self.done = done
        self.total = total
        self.report_every = report_every
        self._progress: ImageProgress | None = None

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the journal; every process has read it by now."""
        trainer.strategy.barrier("journal")
        self.journal.open(trainer.global_rank)
        if trainer.is_global_zero:
            left, processes = self.total - len(self.done), trainer.world_size
            self._progress = ImageProgress("Certifying", left, processes=processes, report_every=self.report_every)

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,  # noqa: ANN401 - Lightning's signature; the Certifier's list of CertifiedImage
        batch: Any,  # noqa: ANN401
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write a batch's images, each flushed by itself; end after a SIGTERM, which Lightning only notes here."""
        for image in outputs:
            if image.records[0].index in self.done:
                continue
            self.journal.append(image.records, image.latent, image.kept)
            if self._progress is not None:
                self._progress.advance()
        if trainer.received_sigterm:
            raise SystemExit(128 + signal.SIGTERM)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Close the journal and wait until every process has."""
        self._close()
        trainer.strategy.barrier("journal")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Close the journal; what it holds stays."""
        self._close()

    def _close(self) -> None:
        self.journal.close()
        if self._progress is not None:
            self._progress.close()
            self._progress = None
