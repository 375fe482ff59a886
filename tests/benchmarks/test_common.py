from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from benchmarks import _common


def test_reports_one_json_object_on_the_screen_and_in_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "folder" / "result.json"
    _common.report("x", {"a_over_b": 2}, {"quick": True}, measurements={"seconds": 1.5}, json_file=file)
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(file.read_text())
    assert printed["ratios"] == {"a_over_b": 2.0}
    assert printed["settings"] == {"quick": True}
    assert printed["machine"]["cores"] >= 1
    assert printed["machine"]["versions"]["torch"]


def test_functions_take_turns_and_warm_up_first() -> None:
    calls: list[str] = []
    times = _common.interleaved_seconds(
        {name: lambda name=name: calls.append(name) for name in "ab"}, rounds=2, warmup=1
    )
    assert calls == list("ababab")
    assert {name: len(values) for name, values in times.items()} == {"a": 2, "b": 2}


def test_medians() -> None:
    assert _common.median_ratio([2, 9, 4], [1, 3, 1]) == 3
    assert _common.seconds(lambda: time.sleep(0.01)) >= 0.01
    assert _common.median_seconds(lambda: None, rounds=3) < 1


def test_every_benchmark_takes_the_same_options(tmp_path: Path) -> None:
    options = _common.make_parser("Title.\n\nMore.").parse_args(["--quick", "--json", str(tmp_path / "x.json")])
    assert options.quick
    assert options.json == tmp_path / "x.json"
    assert not _common.make_parser(None).parse_args([]).quick
