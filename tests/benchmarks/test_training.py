"""The training benchmarks run and report what they promise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import noise, objectives, training


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


def test_noise_reports_every_kind_of_gaussians(tmp_path: Path) -> None:
    result = noise.main(["--quick", "--sigmas", "0.25", "--json", str(tmp_path / "out.json")])
    rows = result["measurements"]["means"]["0.25"]
    assert len(rows) == 5
    assert all(row["test/vote"] > 85 for row in rows.values())
    assert result["ratios"]["test/certified@0.25 noisy_over_clean_fit sigma=0.25"] > 0.8
