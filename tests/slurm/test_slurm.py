"""The shipped batch script on a real SLURM of one node: two gloo processes, requeues of every command, an array."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml

from ellips.commands import collect
from ellips.head import EllipsHead
from tests.shipped import merged

ROOT = Path(__file__).parents[2]
SCRIPT = str(ROOT / "configs" / "slurm" / "run.sbatch")
CLUSTER = str(Path(__file__).with_name("single_node.sh"))
MISSING = [name for name in ("slurmctld", "slurmd", "sbatch", "munge") if shutil.which(name) is None]
REASON = f"{', '.join(MISSING)} missing (Debian: slurm-wlm, munge)" if MISSING else "starting SLURM needs root"

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(MISSING) or os.geteuid() != 0, reason=REASON),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Environment in which SLURM's commands reach a cluster of this test's own; it must come up."""
    state = tmp_path_factory.mktemp("slurm")
    result = subprocess.run([CLUSTER, "up", str(state)], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "PYTEST_"))},
        "SLURM_CONF": str(state / "slurm.conf"),
        "ELLIPS": str(Path(sys.executable).with_name("ellips")),
        "PYTHONPATH": str(ROOT),
    }
    yield environment
    # What a failed test left running would hold the port of a later cluster's job of the same number.
    subprocess.run(["scancel", "--signal=KILL", "--user=root"], env=environment, check=False)
    time.sleep(1)
    subprocess.run([CLUSTER, "down", str(state)], check=True)


def write_config(folder: Path, epochs: int) -> Path:
    config = merged("data/digits", "model/digits")
    config["data"]["init_args"].update(batch_size=120, keep_images=False)
    config["model"].update(hidden_dim=32)
    config["trainer"].update(max_epochs=epochs, enable_progress_bar=False, enable_model_summary=False)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def submit(cluster: dict[str, str], folder: Path, *arguments: str) -> str:
    """Submit from `folder` and return the job's number."""
    command = [
        "sbatch",
        "--parsable",
        "--gpus-per-node=0",
        "--ntasks-per-node=1",
        "--cpus-per-task=1",
        "--time=10",
        *arguments,
    ]
    return subprocess.run(command, env=cluster, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def show(cluster: dict[str, str], job: str) -> str:
    return subprocess.run(
        ["scontrol", "show", "job", job], env=cluster, check=True, capture_output=True, text=True
    ).stdout


def wait(cluster: dict[str, str], job: str, folder: Path, until: Callable[[str], bool]) -> str:
    """Wait until what SLURM says of the job is as wanted; on a failed job or after 300 s, fail with its log."""
    deadline = time.monotonic() + 300
    while True:
        said = show(cluster, job)
        if until(said):
            return said
        failed = any(f"JobState={state}" in said for state in ("FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"))
        if failed or time.monotonic() > deadline:
            logs = "\n".join(path.read_text()[-6000:] for path in folder.glob("*.out"))
            pytest.fail(f"Job {job} did not get there:\n{said}\n{logs}")
        time.sleep(0.5)


def completed(said: str) -> bool:
    states = [line for line in said.splitlines() if "JobState=" in line]
    return bool(states) and all("JobState=COMPLETED" in line for line in states)


def go_on(cluster: dict[str, str], job: str, folder: Path) -> None:
    """Wait until a job is requeued, start it again, and wait for its end."""
    wait(cluster, job, folder, lambda said: "Restarts=1" in said and "JobState=PENDING" in said)
    # SLURM lets two minutes pass before it starts a requeued job again; an administrator need not.
    subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], env=cluster, check=False)
    assert "Restarts=1" in wait(cluster, job, folder, completed)


def last_checkpoint(folder: Path, name: str) -> Path:
    return folder / "runs" / name / "checkpoints" / "last.ckpt"


def test_two_tasks_train_as_one(cluster: dict[str, str], tmp_path: Path) -> None:
    config = str(write_config(tmp_path, epochs=5))
    job = submit(cluster, tmp_path, "--nodes=1", "--ntasks-per-node=2", SCRIPT, "fit", "--config", config)
    wait(cluster, job, tmp_path, completed)
    log = next(tmp_path.glob("*.out")).read_text()
    assert "MEMBER: 2/2" in log
    checkpoint = torch.load(last_checkpoint(tmp_path, "digits"), weights_only=True)
    assert checkpoint["global_step"] == 25  # 1,168 images, 2 processes of 120 each
    assert "val/accuracy" in (tmp_path / "runs/digits/metrics.csv").read_text()


def test_a_job_that_is_preempted_is_requeued_and_ends_as_if_it_had_not_been(
    cluster: dict[str, str], tmp_path: Path
) -> None:
    config = str(write_config(tmp_path, epochs=60))
    command = ("--ntasks-per-node=2", SCRIPT, "fit", "--config", config)
    job = submit(cluster, tmp_path, *command, "--name", "preempted")
    wait(cluster, job, tmp_path, lambda said: last_checkpoint(tmp_path, "preempted").exists())
    subprocess.run(["scancel", "--signal=USR1", job], env=cluster, check=True)
    go_on(cluster, job, tmp_path)
    left = list((tmp_path / "runs/preempted").glob("hpc_ckpt_*.ckpt"))
    assert len(left) == 1
    step = torch.load(left[0], weights_only=True)["global_step"]
    assert 0 < step < 300
    whole = submit(cluster, tmp_path, *command, "--name", "whole")
    wait(cluster, whole, tmp_path, completed)
    states = []
    for name in ("preempted", "whole"):
        assert torch.load(last_checkpoint(tmp_path, name), weights_only=True)["global_step"] == 300
        states.append(EllipsHead.from_checkpoint(last_checkpoint(tmp_path, name)).state_dict())
    for key, value in states[1].items():
        torch.testing.assert_close(states[0][key], value, rtol=1e-6, atol=1e-6, msg=key)


def test_a_sweep_runs_one_job_per_value(cluster: dict[str, str], tmp_path: Path) -> None:
    config = str(write_config(tmp_path, epochs=5))
    sweep = {**cluster, "SETTING": "model.shrinkage", "VALUES": "0.1 0.4", "NAME": "shrinkage"}
    job = submit(sweep, tmp_path, "--array=0-1", SCRIPT, "fit", "--config", config)
    wait(cluster, job, tmp_path, completed)
    for value in (0.1, 0.4):
        assert (
            EllipsHead.from_checkpoint(last_checkpoint(tmp_path, f"shrinkage-{value}")).ellips.regularization.shrinkage
            == value
        )
    runs = sorted(str(path) for path in (tmp_path / "runs").glob("shrinkage-*"))
    assert collect.main([*runs, "--out", str(tmp_path / "all.csv")]) == 1  # nothing is certified
    rows = list(csv.DictReader((tmp_path / "all.csv").read_text().splitlines()))
    assert [row["model.shrinkage"] for row in rows] == ["0.1", "0.4"]
    assert all(float(row["val/accuracy"]) > 0.8 for row in rows)


def lines(folder: Path, pattern: str) -> int:
    return sum(path.read_bytes().count(b"\n") for path in folder.glob(pattern))


# What a job has done when the signal comes, and which signal; nothing of it may be done twice.
@pytest.mark.parametrize("signal", ["USR1", "TERM"])
def test_encode_certify_and_audit_are_requeued_and_end_as_if_they_had_not_been(
    cluster: dict[str, str], tmp_path: Path, digits_checkpoint: Path, signal: str
) -> None:
    encoder = {
        "class_path": "ellips.encoders.FrozenEncoder",
        "init_args": {"model": "test_resnet", "weights": "digits"},
    }
    kept = {"encoder": encoder, "cache_dir": "cache", "shard_rows": 1, "eval_batch_size": 1}
    data = {"data": {"class_path": "ellips.datamodules.DigitsDataModule", "init_args": kept}}
    source = {
        "class_path": "ellips.lipschitz.Clever",
        "init_args": {"num_batches": 5, "num_samples": 8, "num_iterations": 2},
    }
    over = {"certifiers": [source], "methods": ["exact"], "batch_size": 2, "max": 80, "out": "run"}
    over |= {"ckpt_path": str(digits_checkpoint)}
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(data))
    (tmp_path / "certify.yaml").write_text(yaml.safe_dump({**data, **over}))
    attack = ["--attack.steps=3", "--attack.restarts=1", "--attack.autoattack_points=0", "--attack.batch_size=2"]
    attack += ["--max=20"]
    jobs = {
        "encode": (["--config", "data.yaml", "--accelerator", "cpu"], "cache/test/shard-*", 20),
        "certify": (["--config", "certify.yaml", "--trainer.accelerator", "cpu"], "run/journal/rows-*.csv", 12),
        "audit": (["run", "--accelerator", "cpu", *attack], "run/audit-journal/lines-*.jsonl", 4),
    }
    for command, (arguments, pattern, enough) in jobs.items():
        job = submit(cluster, tmp_path, "--ntasks-per-node=2", SCRIPT, command, *arguments)

        def begun(said: str, command: str = command, pattern: str = pattern, enough: int = enough) -> bool:
            count = len(list(tmp_path.glob(pattern))) if command == "encode" else lines(tmp_path, pattern)
            return count >= enough

        wait(cluster, job, tmp_path, begun)
        subprocess.run(["scancel", f"--signal={signal}", job], env=cluster, check=True)
        go_on(cluster, job, tmp_path)
    assert len(list((tmp_path / "cache/test").glob("shard-*"))) == 359
    assert json.loads((tmp_path / "run/summary.json").read_text())["complete"]
    rows = lines(tmp_path, "run/journal/rows-*.csv")
    assert rows == 2 * 80 + 2, "an image was certified twice"  # two series, two headers
    audited = list(csv.DictReader((tmp_path / "run/audit.csv").read_text().splitlines()))
    names = [(row["series"], row["index"]) for row in audited]
    assert len(names) == len(set(names)) > 20
    assert not (tmp_path / "run/audit-journal").exists()


def test_a_job_that_is_cancelled_stays_cancelled(cluster: dict[str, str], tmp_path: Path) -> None:
    data = ["--data=ellips.datamodules.DigitsDataModule", "--data.encoder=ellips.encoders.FrozenEncoder"]
    data += ["--data.encoder.model=test_resnet", "--data.encoder.weights=digits", "--data.cache_dir=cache"]
    more = ["--data.shard_rows=1", "--data.eval_batch_size=1", "--accelerator=cpu"]
    job = submit(cluster, tmp_path, SCRIPT, "encode", *data, *more)
    wait(cluster, job, tmp_path, lambda said: len(list(tmp_path.glob("cache/train/shard-*"))) > 2)
    subprocess.run(["scancel", job], env=cluster, check=True)
    deadline = time.monotonic() + 60
    while "JobState=CANCELLED" not in (said := show(cluster, job)) and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(8)  # longer than SLURM waits before it kills
    said = show(cluster, job)
    assert "JobState=CANCELLED" in said
    assert "Restarts=0" in said
