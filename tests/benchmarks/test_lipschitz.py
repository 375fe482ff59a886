from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from benchmarks import lipschitz


@pytest.mark.skipif(importlib.util.find_spec("art") is None, reason="ART is not installed (extra `bench`)")
def test_every_ratio_is_measured_and_the_norms_are_exact_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(lipschitz.SIZES, "quick", lipschitz.Sizes(points=32, rounds=1, images=1, steps=2))
    result = lipschitz.main(["--quick", "--latent-dim", "12", "--json", str(tmp_path / "result.json")])
    required = {
        "norm_over_jvp_plus_vjp",
        "speedup_over_full_jacobian",
        "speedup_over_art_clever_u",
        "spectral_norm_relative_error",
    }
    assert required <= result["ratios"].keys()
    assert all(value > 0 for value in result["ratios"].values())  # times of so few points say nothing more
    assert result["ratios"]["spectral_norm_relative_error"] <= 0.01
    assert (tmp_path / "result.json").is_file()
    assert '"ratios"' in capsys.readouterr().out
