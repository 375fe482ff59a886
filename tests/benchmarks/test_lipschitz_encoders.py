from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from benchmarks import lipschitz_encoders
from ellips.encoders import LipNeXtArchitecture, LipschitzArchitecture

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("deel") is None, reason="deel-torchlip is not installed (extra `lipschitz`)"
)


def test_both_architectures_are_trained_proven_and_certified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = lipschitz_encoders.digits_task()
    small = {
        "lipnext": LipNeXtArchitecture((1, 8, 8), (2,), (16,), (1,), 0.25, 10),
        "torchlip": LipschitzArchitecture((1, 8, 8), (), (16,), 10),
    }
    task = lipschitz_encoders.Task(task.parts, small, task.rates, task.training, task.batch_sizes, (0.5,))
    monkeypatch.setattr(lipschitz_encoders, "digits_task", lambda: task)
    monkeypatch.setattr(lipschitz_encoders, "SEARCH", {"pooling": (1.0,), "shrinkage": (0.1, 0.5)})
    monkeypatch.setattr(lipschitz_encoders, "RADII", (36 / 255, 1.0))
    arguments = ["--quick", "--full", "--minutes", "0.01", "--json", str(tmp_path / "result.json")]
    result = lipschitz_encoders.main(arguments)
    assert result["ratios"].keys() == {
        "certified_36_over_torchlip",
        "ellips_over_margin_36",
        "ellips_over_margin_mean_radius",
        "orthogonal_over_plain_step",
    }
    networks = result["measurements"]["networks"]
    assert networks.keys() == {"lipnext", "torchlip", "lipnext_0.5"}
    for found in networks.values():
        assert found["seconds"] >= 0.6
        assert found["steps"] > 0
        for each in (found["margin"], found["ellips"]):
            values = list(each["certified_accuracy"].values())
            assert values == sorted(values, reverse=True)
            assert 100 >= values[0] > 15
    first = [networks[name]["margin"]["certified_accuracy"]["0.1412"] for name in ("lipnext", "torchlip")]
    assert result["ratios"]["certified_36_over_torchlip"] == pytest.approx(first[0] / first[1])
    assert (tmp_path / "result.json").is_file()
