from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import low_rank


def test_every_ratio_is_measured_and_certificates_are_proven(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(low_rank, "QUICK", {"classes": 20, "dim": 16, "rank": 3, "points": 16})
    result = low_rank.main(["--quick", "--json", str(tmp_path / "result.json")])
    names = ("scoring_speedup", "exact_over_scoring", "exact_over_scoring_again")
    assert result["ratios"].keys() == {f"low_rank_{name}_20_16" for name in names}
    assert all(value > 0 for value in result["ratios"].values())  # times of so few points say nothing more
    memory = result["measurements"]["memory"]
    assert memory["check"]["proven"] == 1.0
    assert all(stage["peak_megabytes"] > 0 for stage in memory.values())
    assert (tmp_path / "result.json").is_file()
    assert '"ratios"' in capsys.readouterr().out
