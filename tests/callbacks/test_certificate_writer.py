"""What is certified is on disk at once, and once, and the run says how far it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from callbacks import CertificateWriter
from ellips.files import ImageRecord, Journal, ResultsFolder
from ellips.types import Series
from lightning_modules.certifier import CertifiedImage

SERIES = Series("latent", "exact")
MODULE: Any = None  # the writer does not look at it


def trainer(rank: int = 0, world: int = 1, received_sigterm: bool = False) -> SimpleNamespace:
    strategy = SimpleNamespace(barrier=lambda name: None)
    return SimpleNamespace(
        strategy=strategy,
        global_rank=rank,
        world_size=world,
        is_global_zero=rank == 0,
        received_sigterm=received_sigterm,
    )


def image(index: int) -> CertifiedImage:
    return CertifiedImage([ImageRecord(index, 1, 1, 0.5, 0.1, SERIES)], torch.ones(2, dtype=torch.float64))


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(ResultsFolder(tmp_path), [SERIES], {"seed": 0}) as found:
        yield found


def test_images_of_an_interrupted_run_are_not_written_again(journal: Journal) -> None:
    writer = CertificateWriter(journal, done={0}, total=3)
    writer.on_predict_start(trainer(), MODULE)
    writer.on_predict_batch_end(trainer(), MODULE, [image(0), image(1)], None, 0)
    assert [record.index for record in journal.records()] == [1]  # before the journal is closed
    writer.on_exception(trainer(), MODULE, KeyboardInterrupt())
    assert [record.index for record in journal.records()] == [1]


def test_a_process_that_is_to_end_ends_with_its_batch_on_disk(journal: Journal) -> None:
    writer = CertificateWriter(journal, done=set(), total=5)
    writer.on_predict_start(trainer(), MODULE)
    with pytest.raises(SystemExit) as stop:
        writer.on_predict_batch_end(trainer(received_sigterm=True), MODULE, [image(0), image(1)], None, 0)
    assert stop.value.code == 143  # what a batch script takes for SIGTERM
    assert [record.index for record in journal.records()] == [0, 1]


@pytest.mark.parametrize(("rank", "lines"), [(0, 2), (1, 0)])
def test_the_first_process_says_how_far_all_are(
    journal: Journal, capsys: pytest.CaptureFixture[str], rank: int, lines: int
) -> None:
    writer = CertificateWriter(journal, done=set(), total=5, report_every=0)
    writer.on_predict_start(trainer(rank, world=2), MODULE)
    writer.on_predict_batch_end(trainer(rank, world=2), MODULE, [image(0), image(2)], None, 0)
    writer.on_predict_end(trainer(rank, world=2), MODULE)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("of 5 images") == lines
    assert ("Certifying: about 4 of 5 images" in err) == (rank == 0)
