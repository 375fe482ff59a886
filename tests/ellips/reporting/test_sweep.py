"""Runs of a sweep in one table: nothing is left out silently, and nothing is chosen on the test split."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from ellips.commands import collect
from ellips.files import RunFolder
from ellips.reporting.sweep import as_csv, differing, order, read_run, sweep_rows


def write_run(folder: Path, shrinkage: float, metrics: str | None = None, complete: bool | None = None) -> Path:
    folder.mkdir(parents=True)
    model = {"shrinkage": shrinkage, "objective": None}
    config = {"name": folder.name, "model": model, "trainer": {"logger": {"init_args": {"name": folder.name}}}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    if metrics is not None:
        (folder / "metrics.csv").write_text(metrics)
    if complete is not None:
        series: dict[str, Any] = {
            "soundness": "exact",
            "clean_accuracy": {"accuracy": 0.9},
            "certified_accuracy": [{"radius": 0.25, "accuracy": 0.5}],
        }
        summary = {"complete": complete, "series": {"latent-exact": series, "input-votes": {"soundness": "estimated"}}}
        (folder / "certify/test").mkdir(parents=True)
        (folder / "certify/test/summary.json").write_text(json.dumps(summary))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    logged = "epoch,train/loss,val/accuracy\n0,1.0,\n0,,{first}\n1,,{last}\n1,0.5,\n"
    return [
        write_run(tmp_path / "s-0.1", 0.1, logged.format(first=0.9, last=0.6), complete=True),
        write_run(tmp_path / "s-0.3", 0.3, logged.format(first=0.5, last=0.8), complete=False),
        write_run(tmp_path / "s-0.5", 0.5),
    ]


def test_a_row_has_what_differs_the_last_metrics_and_the_results(runs: list[Path]) -> None:
    read = [read_run(RunFolder(path)) for path in runs]
    assert differing(read) == ["model.shrinkage"]
    rows = sweep_rows(read)
    certified = "test latent-exact exact"
    assert rows[0] == {
        "run": "s-0.1",
        "model.shrinkage": 0.1,
        "val/accuracy": 0.6,
        f"{certified} clean": 0.9,
        f"{certified} @0.25": 0.5,
        "lacking": "",
    }
    assert rows[1]["lacking"] == "certify/test is not complete"
    assert rows[2]["val/accuracy"] is None
    assert rows[2]["lacking"] == "no metrics of the validation split; nothing certified"
    back = list(csv.DictReader(io.StringIO(as_csv(rows))))
    assert [row["val/accuracy"] for row in back] == ["0.6", "0.8", ""]


def test_what_a_resumed_fit_logged_counts_for_the_whole_run(runs: list[Path]) -> None:
    (runs[0] / "metrics.csv").rename(runs[0] / "metrics-1.csv")
    (runs[0] / "metrics.csv").write_text("epoch,train/loss,val/loss\n2,0.1,\n3,,0.25\n")
    assert read_run(RunFolder(runs[0])).metrics == {"val/accuracy": 0.6, "val/loss": 0.25}


def test_the_best_is_told_by_the_validation_split_alone(runs: list[Path]) -> None:
    read = [read_run(RunFolder(path)) for path in runs]
    assert [run.name for run in order(read, "val/accuracy")] == ["s-0.3", "s-0.1", "s-0.5"]
    assert order(read, None) == read
    for name in ("test latent-exact exact clean", "train/loss", "test/accuracy"):
        with pytest.raises(ValueError, match="metric of the validation split"):
            order(read, name)


def test_the_command_prints_the_runs_and_says_that_something_is_lacking(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "all.csv"), "--show", "[val/accuracy]", "--best", "val/accuracy"]
    assert collect.main([*map(str, runs), *out]) == 1
    text = capsys.readouterr().out
    assert text.index("s-0.3") < text.index("s-0.1") < text.index("s-0.5")
    assert len((tmp_path / "all.csv").read_text().splitlines()) == 4
    assert collect.main([str(runs[0]), *out]) == 0
    with pytest.raises(FileNotFoundError, match=r"config\.yaml"):
        collect.main([str(tmp_path / "none")])
