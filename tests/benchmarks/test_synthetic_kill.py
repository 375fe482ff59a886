"""A killed run of the synthetic experiments goes on where it stood."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


def command(folder: Path) -> list[str]:
    options = ["--quick", "--points", "100", "--workers", "1", "--output", str(folder)]
    return [sys.executable, "-m", "benchmarks.synthetic", *options]


def finished(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.glob("*.json") if not path.name.startswith(".")}


@pytest.mark.faults
def test_what_was_done_before_a_sigkill_is_not_done_again(tmp_path: Path) -> None:
    process = subprocess.Popen(
        command(tmp_path), start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 200
    while len(finished(tmp_path)) < 3:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline, "no setting was finished in 200 s"
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = finished(tmp_path)
    assert 3 <= len(done) < 24
    again = subprocess.run(command(tmp_path), capture_output=True, text=True, check=True)
    assert again.stderr.count("from an earlier run") == len(done)
    assert all((tmp_path / name).read_text() == text for name, text in done.items())
    assert len(json.loads(again.stdout)["measurements"]["settings"]) == 24
