from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import smoothing


def test_every_ratio_is_measured_on_the_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = smoothing.Sizes(draws=300, images=3, copies=2, held_out=12, votes=40, rounds=1)
    monkeypatch.setitem(smoothing.SIZES, "quick", sizes)
    result = smoothing.main(["--quick", "--json", str(tmp_path / "result.json")])
    assert result["ratios"].keys() == {
        f"{name}_digits"
        for name in (
            "passes_saved_by_stopping",
            "passes_saved_by_stopping_3_sigma",
            "points_lost_by_stopping",
            "points_lost_by_stopping_3_sigma",
            "decision_over_encoder_mean_radius",
            "ellips_over_linear_mean_radius",
            "votes_over_bare_encoder",
        )
    }
    assert result["ratios"]["passes_saved_by_stopping_digits"] >= 1
    assert result["ratios"]["decision_over_encoder_mean_radius_digits"] > 1
    found = result["measurements"]["digits"]["classifiers"]
    assert found["ellips"]["passes_per_image"] == 400
    assert found["early"]["passes_per_image"] <= 400
    assert (tmp_path / "result.json").is_file()


def test_a_folder_needs_its_encoder(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        smoothing.main(["--quick", "--cifar", "somewhere"])
    assert "--encoder" in capsys.readouterr().err
