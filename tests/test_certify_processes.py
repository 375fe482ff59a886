"""certify.py as processes: shared by two of them, and killed in the middle."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from certify import main
from tests.processes import run_together

ROOT = Path(__file__).parents[1]
SERIES = 5  # three latent methods and two certifiers
# One thread, so that sums are added up in one order whatever the number of processes.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def command(digits_checkpoint: Path) -> list[str]:
    arguments = {
        "data": "datamodules.DigitsDataModule",
        "data.encoder": "ellips.encoders.FrozenEncoder",
        "data.encoder.model": "test_resnet",
        "data.encoder.weights": "digits",
        "certifiers+": "ellips.lipschitz.JacobianNorm",
        "certifiers.num_iterations": "5",
        "certifiers+ ": "ellips.input_certifiers.SmoothedDecision",
        "certifiers.num_samples": "32",
        "certifiers.num_selection": "8",
        "batch_size": "8",
        "ckpt_path": str(digits_checkpoint),
        "trainer.accelerator": "cpu",
    }
    return [sys.executable, "certify.py", *(f"--{name.strip()}={value}" for name, value in arguments.items())]


def run(command: list[str], out: Path, *more: str) -> None:
    done = subprocess.run(
        [*command, f"--out={out}", *more], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr


def certify(arguments: list[str]) -> None:
    """Certify as one of several processes that another program started."""
    assert main(arguments) == 0


def table(out: Path) -> list[list[str]]:
    """The full table without its time column."""
    rows = list(csv.reader((out / "certificates.csv").read_text().splitlines()))
    place = rows[0].index("seconds")
    return [[*row[:place], *row[place + 1 :]] for row in rows]


def journal_rows(out: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in out.glob("journal/rows-*.csv"))


def test_two_processes_give_the_table_of_one(command: list[str], tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the processes
    assert main([*command[2:], f"--out={tmp_path / 'one'}", "--skip=4"]) == 0
    torch.set_num_threads(threads)
    run(command, tmp_path / "two", "--skip=4", "--trainer.devices=2", "--trainer.strategy=ddp")
    assert len(table(tmp_path / "one")) == 1 + SERIES * 90
    assert table(tmp_path / "two") == table(tmp_path / "one")
    shares = [path.read_bytes().count(b"\n") - 1 for path in sorted(tmp_path.glob("two/journal/rows-*.csv"))]
    assert len(shares) == 2
    assert min(shares) > 25 * SERIES, f"one process did all the work: {shares}"


def test_processes_without_a_batch_wait_for_those_that_have_one(command: list[str], tmp_path: Path) -> None:
    more = [f"--out={tmp_path}", "--max=5", "--certifiers=[]", "--trainer.devices=2", "--trainer.strategy=ddp"]
    run_together(certify, [*command[2:], *more])
    assert json.loads((tmp_path / "summary.json").read_text())["complete"]
    assert len(table(tmp_path)) == 1 + 3 * 5


def kill_at(command: list[str], out: Path, rows: int) -> None:
    """Start the run and kill it, and whatever it started, once its journal has so many rows."""
    process = subprocess.Popen(
        [*command, f"--out={out}"], cwd=ROOT, env=ENVIRONMENT, start_new_session=True, stderr=subprocess.DEVNULL
    )
    try:
        while process.poll() is None and journal_rows(out) < rows:
            time.sleep(0.002)
        assert process.poll() is None, "the run ended before it was killed"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not (out / "summary.json").exists()


@pytest.mark.faults
@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_killed_three_times_ends_with_the_undisturbed_table(
    command: list[str], tmp_path: Path, processes: int
) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    moments = sorted(random.Random(seed).sample(range(10, SERIES * 325), 3))
    command = [*command, f"--trainer.devices={processes}", f"--trainer.strategy={'ddp' if processes > 1 else 'auto'}"]
    run(command, tmp_path / "undisturbed")
    for rows in moments:
        kill_at(command, tmp_path / "killed", rows)
    before = {tuple(row[:-1]) for row in _journal(tmp_path / "killed")}  # a journal's rows end with a checksum
    run(command, tmp_path / "killed")
    assert len(table(tmp_path / "killed")) == 1 + SERIES * 359
    assert table(tmp_path / "killed") == table(tmp_path / "undisturbed")
    # Times tell whether an image was certified again: those from before the last kill are unchanged.
    after = {tuple(row) for row in csv.reader((tmp_path / "killed" / "certificates.csv").read_text().splitlines())}
    assert len(before & after) >= moments[-1] - SERIES * processes
    assert len(_journal(tmp_path / "killed")) == SERIES * 359, "an image was certified twice"


def _journal(out: Path) -> list[list[str]]:
    """Whole rows of whole images in every process's file."""
    rows = []
    for path in sorted(out.glob("journal/rows-*.csv")):
        whole = path.read_text().rpartition("\n")[0].splitlines()[1:]
        rows += list(csv.reader(whole[: len(whole) // SERIES * SERIES]))
    return rows
