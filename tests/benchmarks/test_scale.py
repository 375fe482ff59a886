from __future__ import annotations

from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from benchmarks import scale

SIZES = {**scale.QUICK, "classes": 6, "dim": 8, "hidden": 8, "rank": 2, "batch": 12}


def test_the_commands_fit_and_go_on_and_say_what_each_stage_took(tmp_path: Path) -> None:
    found = scale.pipeline(SIZES, 1, tmp_path)
    for run in ("fit", "resume"):
        assert list(found[run]) == ["train", "fit_and_select", "certify", "checkpoint"]
        assert all(stage["gigabytes"] > 0.1 and stage["seconds"] > 0 for stage in found[run].values())
    assert found["checkpoint_gigabytes"] > 0


def test_the_full_model_is_proven_and_its_memory_measured() -> None:
    found = scale.full(6, 16)
    assert found["proven"] == 1.0
    assert all(found[stage]["gigabytes"] > 0 for stage in ("fit", "score", "certify", "check"))
    assert found["points_per_second_scoring"] > found["points_per_second_certifying"] > 0


def test_an_encoder_is_run_and_sampled() -> None:
    found = scale.encoder(scale.QUICK_VIT, SIZES)
    assert found["clever"]["points"] == 8
    assert all(found[stage]["seconds"] > 0 for stage in ("encode", "clever"))


def test_steps_are_timed_with_and_without_a_mixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "STEPS", 2)
    queue: SimpleQueue[dict[str, Any]] = SimpleQueue()
    scale._steps(0, 1, str(tmp_path), SIZES, queue)
    found = queue.get()
    assert all(len(found[kind]) == 2 and min(found[kind]) > 0 for kind in ("mixture", "bare"))
    assert all(found[f"{kind}_bytes"] >= 0 for kind in ("mixture", "bare"))
