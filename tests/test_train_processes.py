"""train.py in two processes: started by Lightning itself, and by torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.shipped import DIGITS
from tests.test_docs import blocks, commands

ROOT = Path(__file__).parents[1]


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_devices_2_and_torchrun_end_where_one_process_does(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    script = str(ROOT / "train.py")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script]
    # 1,168 images: two processes of 146 take the same 292 a step as one.
    starts = {
        "one": ([script], ["--trainer.devices=1", "--data.init_args.batch_size=292"]),
        "two": ([script], ["--trainer.devices=2", "--data.init_args.batch_size=146"]),
        "torchrun": (torchrun, ["--trainer.devices=2", "--data.init_args.batch_size=146"]),
    }
    checkpoints = {}
    for name, (start, options) in starts.items():
        command = [sys.executable, "-W", "ignore", *start, "fit", *DIGITS]
        command += ["--name", name, "--trainer.max_epochs=5", "--trainer.strategy=ddp", *options]
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280)
        assert result.returncode == 0, result.stderr[-6000:]
        assert ("MEMBER: 2/2" in result.stderr + result.stdout) == (name != "one")
        path = tmp_path / "runs" / name / "checkpoints" / "last.ckpt"
        checkpoints[name] = torch.load(path, weights_only=True)
        assert sorted(p.name for p in path.parents[1].glob("config*")) == ["config.yaml"]
    one, two, other = (checkpoints[name]["state_dict"] for name in ("one", "two", "torchrun"))
    for key, value in one.items():
        assert torch.equal(other[key], two[key]), key
        # The bias before a BatchNorm is cancelled by it: its gradient is rounding error, which AdamW scales up to whole
        # steps. The running mean follows the bias with a lag, and the Gaussians see that lag.
        if key.endswith(("pre_feature.0.bias", "running_mean")):
            continue
        tolerance = 5e-3 if ".ellips." in key else 1e-4
        torch.testing.assert_close(two[key], value, rtol=tolerance, atol=tolerance, msg=key)


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_the_lines_of_the_page_on_clusters_run_in_two_processes(tmp_path: Path) -> None:
    """They are parsed by the tests of pages; here each starts its processes, for an epoch."""
    variables: dict[str, str] = {}
    lines = [
        words for block in blocks("cluster") if block.language == "sh" for words in commands(block.text, variables)
    ]
    lines = [words for words in lines if "--trainer.devices" in words and words[0] != "sbatch"]
    assert {words[0] for words in lines} == {"ellips", "torchrun"}
    for name in ("configs", "train.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    programs = {"ellips": ["train.py"], "torchrun": ["-m", "torch.distributed.run", "--standalone"]}
    for words in lines:
        command = [sys.executable, "-W", "ignore", *programs[words[0]], *words[1:]]
        command += ["--name", words[0], "--trainer.max_epochs=1"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280)
        assert result.returncode == 0, result.stderr[-6000:]
        assert "MEMBER: 2/2" in result.stderr + result.stdout
        assert (tmp_path / "runs" / words[0] / "checkpoints" / "last.ckpt").is_file()
