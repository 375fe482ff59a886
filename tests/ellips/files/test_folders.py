"""What lies where in the folders of runs and of their results."""

from __future__ import annotations

import os
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from ellips.files import RUNS, ResultsFolder, RunFolder
from ellips.types import Series


def touch(path: Path, time: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.utime(path, (time, time))
    return path


def test_a_run_of_a_name_lies_among_the_runs() -> None:
    run = RunFolder.named("digits/first")
    assert run == RunFolder(RUNS / "digits" / "first")
    assert run.path == Path("runs/digits/first")
    assert {name: str(getattr(run, name)) for name in ("config", "metrics", "checkpoints", "last", "best")} == {
        "config": "runs/digits/first/config.yaml",
        "metrics": "runs/digits/first/metrics.csv",
        "checkpoints": "runs/digits/first/checkpoints",
        "last": "runs/digits/first/checkpoints/last.ckpt",
        "best": "runs/digits/first/checkpoints/best.ckpt",
    }
    assert run.results("val") == ResultsFolder(Path("runs/digits/first/certify/val"))


def test_results_lie_where_they_always_did(tmp_path: Path) -> None:
    folder = ResultsFolder(tmp_path)
    latent, image = Series("latent", "exact"), Series("input", "exact", "clever")
    found = [
        *(folder.config, folder.journal, folder.settings, folder.table, folder.summary, folder.report, *folder.audit),
        *(folder.tsv(image), folder.proofs(latent), *folder.curves("input", "estimated")),
        *(folder.radii("input", "estimated"), folder.latents, folder.spectra),
    ]
    assert [str(path.relative_to(tmp_path)) for path in found] == [
        "config.yaml",
        "journal",
        "journal/settings.json",
        "certificates.csv",
        "summary.json",
        "report.html",
        "audit.json",
        "audit.csv",
        "input-exact-clever.tsv",
        "latent-exact.safetensors",
        "curve_input_estimated.png",
        "curve_input_estimated.svg",
        "radii_input_estimated.svg",
        "latents.svg",
        "spectra.svg",
    ]
    with pytest.raises(FrozenInstanceError):
        folder.path = Path()  # type: ignore[misc]


def test_configurations_are_those_that_are_there_the_first_one_first(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert run.configs() == []
    names = ["config.yaml", "config-2.yaml", "config-3.yaml"]
    for name in reversed(names):
        touch(tmp_path / name)
    touch(tmp_path / "config.json")
    assert [path.name for path in run.configs()] == names


def test_the_best_checkpoint_is_used_else_the_last_else_none(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    with pytest.raises(FileNotFoundError, match=r"best\.ckpt or .*last\.ckpt .* train first, or name .* --ckpt_path"):
        run.checkpoint()
    touch(run.last, 9)
    assert run.checkpoint() == run.last
    touch(run.best, 1)
    assert run.checkpoint() == run.best


def test_what_requeueing_left_is_used_if_it_is_newer_than_the_last_checkpoint(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert run.requeued() is None
    touch(run.last, 2)
    assert run.requeued() is None
    first = touch(tmp_path / "hpc_ckpt_1.ckpt", 1)
    assert run.requeued() is None
    os.utime(first, (3, 3))
    assert run.requeued() == first
    second = touch(tmp_path / "hpc_ckpt_2.ckpt", 4)
    assert run.requeued() == second
    touch(run.checkpoints / "last-v1.ckpt", 5)  # the run went on, and its last file has another version
    assert run.requeued() is None


def test_requeueing_before_the_first_checkpoint_is_found(tmp_path: Path) -> None:
    left = touch(tmp_path / "hpc_ckpt_1.ckpt")
    assert RunFolder(tmp_path).requeued() == left
