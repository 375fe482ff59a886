from __future__ import annotations

import pytest

from benchmarks import streaming


def test_measures_every_way_to_an_epoch(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("CIFAR10_JPEG_ROOT", raising=False)
    monkeypatch.setattr(streaming, "COUNTS", {"quick": {"test_resnet": 64, "resnet10t": 2}})
    monkeypatch.setattr(streaming, "FILES", {"quick": 4})
    result = streaming.main(["--quick"])
    assert set(result["ratios"]) == {
        "stream_over_bare_test_resnet", "stream_over_bare_resnet10t", "cached_speedup",
        "files_over_imagefolder", "photos_over_imagefolder", "photos_torch_over_imagefolder",
    }  # fmt: skip
    assert all(value > 0 for value in result["ratios"].values())
    assert '"ratios"' in capsys.readouterr().out
