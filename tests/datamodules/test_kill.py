from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
VARIABLE = "CIFAR10_JPEG_ROOT"
CONFIG = """
data:
  class_path: datamodules.ImageFolderDataModule
  init_args:
    root: {root}
    encoder:
      class_path: ellips.encoders.FrozenEncoder
      init_args: {{model: test_resnet, weights: random, input_size: 32}}
    batch_size: 256
    val_fraction: 0.1
"""


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def shards(folder: Path) -> int:
    return len(list(folder.rglob("shard-*.safetensors")))


@pytest.mark.faults
@pytest.mark.timeout(1500)
@pytest.mark.skipif(VARIABLE not in os.environ, reason=f"{VARIABLE} does not name the folder of CIFAR-10 as JPEG files")
def test_killed_three_times_the_cache_ends_the_same(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.format(root=os.environ[VARIABLE]))

    def start(cache: Path) -> subprocess.Popen[bytes]:
        program = "from ellips.commands import main; main()"
        command = [sys.executable, "-W", "ignore", "-c", program, "encode", "--config", str(config)]
        command += ["--accelerator", "cpu", "--data.cache_dir", str(cache)]
        return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "2"})

    assert start(tmp_path / "whole").wait() == 0
    for goal in (2, 8, 13):  # of 11 training, 2 validation and 3 test shards
        process = start(tmp_path / "killed")
        while shards(tmp_path / "killed") < goal and process.poll() is None:
            time.sleep(0.05)
        time.sleep(0.1)  # in the middle of the next shard
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert goal <= shards(tmp_path / "killed") < 16
    assert start(tmp_path / "killed").wait() == 0
    whole, killed = digests(tmp_path / "whole"), digests(tmp_path / "killed")
    assert len(whole) == shards(tmp_path / "whole") + 3
    assert killed == whole
