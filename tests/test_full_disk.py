"""A disk that is full, and one that cannot be written to: what was there stays, and the work goes on with room."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from callbacks import AtomicCheckpointIO
from commands.certify import certify
from datamodules import DigitsDataModule
from ellips import Ellips, FrozenEncoder
from ellips.checkpoints import load_checkpoint
from ellips.commands import main
from ellips.files import load_certificates, read_table, save_certificates

pytestmark = pytest.mark.faults


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of eight megabytes, of which the file `ballast` takes as much as a test lets it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a disk of its own cannot be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def fill_up(disk: Path, left: int) -> None:
    """Leave so many bytes."""
    statistics = os.statvfs(disk)
    (disk / "ballast").write_bytes(bytes(statistics.f_bavail * statistics.f_frsize - left))


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != "ballast"
    }


def digits(folder: Path) -> DigitsDataModule:
    encoder = FrozenEncoder("test_resnet", weights="digits")
    return DigitsDataModule(encoder, batch_size=64, shard_rows=100, cache_dir=folder)


def test_the_checkpoint_before_stays(disk: Path) -> None:
    path = disk / "checkpoints/last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1, "weight": torch.rand(20_000)}, path)
    fill_up(disk, 20_000)
    with pytest.raises((OSError, RuntimeError)):  # torch's own writer has its own error
        AtomicCheckpointIO().save_checkpoint({"step": 2, "weight": torch.rand(60_000)}, path)
    assert load_checkpoint(path)["step"] == 1
    assert [p.name for p in path.parent.iterdir()] == ["last.ckpt"], "nothing is left of what could not be written"


def test_a_file_of_certificates_before_stays(disk: Path) -> None:
    z = torch.randn(400, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ellips = Ellips(2, 3, shrinkage=0.5).fit(z, torch.arange(400) % 2)
    path = save_certificates(disk / "c.safetensors", ellips.certify(z[:5]), z[:5], ellips)
    fill_up(disk, 4096)
    with pytest.raises(OSError, match="No space left") as full:
        save_certificates(path, ellips.certify(z), z, ellips)
    assert full.value.errno == errno.ENOSPC
    assert len(load_certificates(path).z) == 5
    assert len(list(disk.iterdir())) == 2


def test_a_cache_goes_on_when_there_is_room(disk: Path, tmp_path: Path) -> None:
    digits(tmp_path / "whole").open_cache("test")
    fill_up(disk, 100_000)
    with pytest.raises(OSError, match="No space left"):
        digits(disk).open_cache("test")
    finished = [p.name for p in (disk / "test").glob("shard-*")]
    assert 0 < len(finished) < 4
    (disk / "ballast").unlink()
    digits(disk).open_cache("test")
    assert contents(disk) == contents(tmp_path / "whole")


def test_a_certification_goes_on_when_there_is_room(disk: Path, tmp_path: Path, digits_checkpoint: Path) -> None:
    options: dict[str, Any] = {"ckpt_path": str(digits_checkpoint), "methods": ["exact"], "batch_size": 8}
    options |= {"skip": 6, "hardware": {"accelerator": "cpu"}}
    data = DigitsDataModule(FrozenEncoder("test_resnet", weights="digits"))
    certify(data, out=str(tmp_path / "whole"), **options)
    fill_up(disk, 24_576)
    with pytest.raises(OSError, match="No space left"):
        certify(data, out=str(disk / "out"), **options)
    (disk / "ballast").unlink()
    assert certify(data, out=str(disk / "out"), **options)["complete"]
    found, expected = (read_table(folder / "certificates.csv") for folder in (disk / "out", tmp_path / "whole"))
    assert [(r.index, r.prediction, r.radius) for r in found] == [(r.index, r.prediction, r.radius) for r in expected]
    for space, name in (("disk", disk / "out"), ("whole", tmp_path / "whole")):
        assert main(["check", str(name / "latent-exact.safetensors")]) == 0, space


def test_a_folder_that_cannot_be_written_to_is_said_and_left_as_it_is(disk: Path, digits_checkpoint: Path) -> None:
    data = DigitsDataModule(FrozenEncoder("test_resnet", weights="digits"))
    options: dict[str, Any] = {"ckpt_path": str(digits_checkpoint), "methods": ["exact"], "max": 4}
    options |= {"hardware": {"accelerator": "cpu"}, "out": str(disk / "out")}
    certify(data, **options)
    before = contents(disk)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    for work in (
        lambda: certify(data, **options | {"overwrite": True}),
        lambda: digits(disk / "cache").open_cache("test"),
        lambda: AtomicCheckpointIO().save_checkpoint({}, disk / "last.ckpt"),
    ):
        with pytest.raises((OSError, RuntimeError), match=r"Read-only|cannot be opened|file failed"):
            work()
    assert contents(disk) == before
