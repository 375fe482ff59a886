"""The training benchmarks run and report what they promise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import objectives, training


def test_training_reports_its_ratio(tmp_path: Path) -> None:
    result = training.main(["--quick", "--json", str(tmp_path / "out.json")])
    assert result["ratios"]["train_over_bare"] > 0
    assert json.loads((tmp_path / "out.json").read_text())["ratios"] == result["ratios"]
    assert len(result["measurements"]["samples_per_second"]["bare"]) == 2


def test_objectives_reports_every_objective(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kept = {name: objectives.OBJECTIVES[name] for name in ("paper, raw latents", "paper", "certified radius")}
    monkeypatch.setattr(objectives, "OBJECTIVES", kept)
    result = objectives.main(["--quick", "--json", str(tmp_path / "out.json")])
    test = result["measurements"]["test"]
    assert set(test) == set(kept)
    assert all(row["clean"] > 90 for row in test.values())
    assert "certified@0.5" not in test["paper, raw latents"]
    assert {"certified@0.25", "certified@0.4", "certified@0.5", "mardia"} <= test["certified radius"].keys()
