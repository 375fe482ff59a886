"""Kills in the stages that have no test of their own, a process that dies, a clock that jumps, weights that change.

Fits are killed in `test_resume.py`, certification in `test_certify_processes.py`; disks are full in
`test_full_disk.py`, bits flip in `ellips/files/test_damage.py` and `callbacks/test_atomic_checkpoints.py`, data
change in `datamodules/test_changed_data.py`, and signals come in `commands/test_signals.py`.
"""

from __future__ import annotations

import csv
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from importlib import import_module
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from torch.multiprocessing import get_context

from ellips import FrozenEncoder
from ellips.commands import main
from ellips.encoders.weights import shipped_provenance
from ellips.errors import EncoderMismatchError
from ellips.files import ResultsFolder
from ellips.pipeline import ImageClassifier
from tests.processes import _run, _start_server
from tests.shipped import arguments

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[1]
PATIENCE = 300
DIGITS = [
    *("--data=ellips.datamodules.DigitsDataModule", "--data.encoder=ellips.encoders.FrozenEncoder"),
    *("--data.encoder.model=test_resnet", "--data.encoder.weights=digits"),
]
Stage = Callable[[Path, Path], list[str]]


def encode(folder: Path, checkpoint: Path) -> list[str]:
    sizes = ["--data.batch_size=50", "--data.eval_batch_size=50", "--data.shard_rows=100"]
    return ["encode", *DIGITS, *sizes, "--splits=[test]", "--accelerator=cpu", f"--data.cache_dir={folder}"]


def certify(folder: Path, checkpoint: Path) -> list[str]:
    given = [f"--ckpt_path={checkpoint}", f"--out={folder}", "--max=12", "--batch_size=4", "--methods=[exact]"]
    return ["certify", *DIGITS, *given, "--trainer.accelerator=cpu"]


def audit(folder: Path, checkpoint: Path) -> list[str]:
    quick = ("steps=2", "restarts=1", "autoattack_points=0", "queries=2", "batch_size=4")
    return ["audit", str(folder), "--accelerator=cpu", *(f"--attack.{setting}" for setting in quick)]


def train_encoder(folder: Path, checkpoint: Path) -> list[str]:
    quiet = [f"--trainer.enable_{part}=false" for part in ("progress_bar", "model_summary")]
    small = ["--data.batch_size=600", "--trainer.max_epochs=3", "--trainer.log_every_n_steps=1"]
    return ["train-encoder", "fit", *arguments("encoders/digits_noise"), *quiet, *small, "--ckpt_path=last"]


def command(folder: Path, given: list[str], moment: tuple[str, str, int] | None) -> None:
    """Run a command as a process of its own, which kills itself at the so-many-th call of something."""
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    if moment is not None:
        place, name, after = moment
        module, _, kind = place.partition(":")
        owner: Any = import_module(module)
        owner = getattr(owner, kind) if kind else owner
        whole, calls = getattr(owner, name), []

        def counted(*rest: Any, **options: Any) -> Any:  # noqa: ANN401
            calls.append(name)
            if len(calls) == after:
                os.kill(os.getpid(), signal.SIGKILL)
            return whole(*rest, **options)

        setattr(owner, name, counted)
    with Path("said.txt").open("a") as said, redirect_stdout(said), redirect_stderr(said):
        code = main(given)
    if code:
        sys.exit(code)


def start(
    function: Callable[..., None], *given: object, rank: int = 0, world: int = 1, port: int = 29_511
) -> BaseProcess:
    """Start a function as one of several processes."""
    _start_server()
    process = get_context("forkserver").Process(target=_run, args=(rank, world, port, function, given))
    process.start()
    return process


def code_of(process: BaseProcess) -> int | None:
    """Wait for a process; one that hangs fails."""
    process.join(PATIENCE)
    if process.is_alive():
        process.kill()
        pytest.fail(f"a process did not end within {PATIENCE} s")
    return process.exitcode


def digests(folder: Path, *patterns: str) -> dict[str, str]:
    files = sorted(path for pattern in patterns for path in folder.rglob(pattern))
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def rows(path: Path) -> list[dict[str, str]]:
    """A table without its times."""
    return [
        {name: cell for name, cell in row.items() if name != "seconds"}
        for row in csv.DictReader(path.read_text().splitlines())
    ]


@pytest.mark.parametrize("after", [2, 4])
def test_a_killed_encode_ends_with_the_same_bytes(tmp_path: Path, after: int) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert code_of(start(command, whole, encode(whole, whole), None)) == 0
    moment = ("ellips.encoders.frozen:FrozenEncoder", "encode", after)
    assert code_of(start(command, killed, encode(killed, killed), moment)) == -signal.SIGKILL
    assert code_of(start(command, killed, encode(killed, killed), None)) == 0
    found, expected = (digests(folder, "*.safetensors", "*.json") for folder in (killed, whole))
    assert len(expected) == 5
    assert found == expected


@pytest.mark.parametrize("after", [1, 3, 5, 7])
def test_killed_amid_the_report_everything_is_written_anew(tmp_path: Path, digits_checkpoint: Path, after: int) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert code_of(start(command, whole, certify(whole, digits_checkpoint), None)) == 0
    moment = ("ellips.files.atomic", "sync_folder", 2 + after)  # the journal's two files come first
    assert code_of(start(command, killed, certify(killed, digits_checkpoint), moment)) == -signal.SIGKILL
    assert code_of(start(command, killed, certify(killed, digits_checkpoint), None)) == 0
    assert {p.name for p in killed.iterdir()} == {p.name for p in whole.iterdir()}, "a file less, or a part of one more"
    assert rows(killed / "certificates.csv") == rows(whole / "certificates.csv")
    assert main(["check", str(killed / "latent-exact.safetensors")]) == 0


def test_a_killed_audit_ends_with_what_one_finds_that_is_not(tmp_path: Path, digits_checkpoint: Path) -> None:
    pytest.importorskip("art", reason="the audit's attacks come with the extra `bench`")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert code_of(start(command, whole, certify(whole, digits_checkpoint), None)) == 0
    shutil.copytree(whole, killed)
    assert code_of(start(command, tmp_path / "a", audit(whole, whole), None)) == 0
    moment = ("ellips.commands.audit", "audit_batch", 2)
    assert code_of(start(command, tmp_path / "b", audit(killed, killed), moment)) == -signal.SIGKILL
    assert not (killed / "audit.json").exists()
    assert code_of(start(command, tmp_path / "b", audit(killed, killed), None)) == 0
    assert rows(killed / "audit.csv") == rows(whole / "audit.csv")
    assert not ResultsFolder(killed).audit_journal.exists()


def test_a_killed_training_of_an_encoder_ends_with_its_files(tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    moment = ("ellips.lightning_modules:NoisyEncoderTraining", "training_step", 4)
    assert code_of(start(command, killed, train_encoder(killed, killed), moment)) == -signal.SIGKILL
    run = killed / "runs/digits_noise_encoder"
    assert torch.load(run / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 2
    assert not (run / "digits_noise.safetensors").exists()
    assert code_of(start(command, killed, train_encoder(killed, killed), None)) == 0
    assert torch.load(run / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 6
    encoder = FrozenEncoder(
        "test_resnet", weights=run / "digits_noise.safetensors", input_size=32, interpolation="bilinear"
    )
    assert bool(torch.isfinite(encoder(torch.rand(2, 1, 8, 8))).all())


def test_a_process_that_dies_ends_the_others_and_the_work_goes_on(tmp_path: Path) -> None:
    given = [*encode(tmp_path, tmp_path), "--devices=2"]
    moment = ("ellips.encoders.frozen:FrozenEncoder", "encode", 2)
    both = [start(command, tmp_path, given, moment if r else None, rank=r, world=2) for r in range(2)]
    codes = [code_of(process) for process in both]
    assert codes[1] == -signal.SIGKILL
    assert codes[0] not in (0, None), "as if all were done"
    both = [start(command, tmp_path, given, None, rank=rank, world=2, port=29_513) for rank in range(2)]
    assert [code_of(process) for process in both] == [0, 0]


@pytest.mark.parametrize("shift", ["-10y", "+10y"])
def test_a_clock_that_jumps_changes_nothing(tmp_path: Path, digits_checkpoint: Path, shift: str) -> None:
    library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
    if library is None:
        pytest.skip("libfaketime is not installed (Debian: apt-get install faketime)")
    whole, jumped = tmp_path / "whole", tmp_path / "jumped"
    assert code_of(start(command, whole, certify(whole, digits_checkpoint), None)) == 0
    moment = ("ellips.lightning_modules:Certifier", "predict_step", 2)
    assert code_of(start(command, jumped, certify(jumped, digits_checkpoint), moment)) == -signal.SIGKILL
    fake = {"LD_PRELOAD": str(library), "FAKETIME": shift, "FAKETIME_DONT_FAKE_MONOTONIC": "1", "NO_FAKE_STAT": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(ROOT / "certify.py"), *certify(jumped, digits_checkpoint)[1:]],
        cwd=tmp_path,
        env={**os.environ, **fake, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    years = {time.gmtime(path.stat().st_mtime).tm_year for path in jumped.glob("*.csv")}
    assert years == {time.gmtime().tm_year}, "files are dated by the kernel"
    assert rows(jumped / "certificates.csv") == rows(whole / "certificates.csv")


def test_weights_with_a_flipped_bit_are_other_weights(tmp_path: Path, digits_checkpoint: Path) -> None:
    """A file of one's own says nothing of what it should hold: the checkpoint does, by the encoder's fingerprint."""
    record = shipped_provenance("digits")
    shipped = ROOT / "ellips/pretrained" / "digits.safetensors"
    settings = {**record["preprocessing"], "input_size": record["preprocessing"]["size"]}
    settings.pop("size")
    path = tmp_path / "weights.safetensors"
    shutil.copy(shipped, path)
    ImageClassifier.from_checkpoint(digits_checkpoint, FrozenEncoder("test_resnet", weights=path, **settings))
    whole, draw, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(60):
        bit = draw.randrange(8 * len(whole))
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        try:
            encoder = FrozenEncoder("test_resnet", weights=path, **settings)
            ImageClassifier.from_checkpoint(digits_checkpoint, encoder)
        except (ValueError, SafetensorError, EncoderMismatchError, FileNotFoundError):
            refused += 1
    assert refused == 60
