"""Tables of the paper: shipped ones can be read and run, and a small one is run, stopped, resumed and written."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import lightning as L
import pytest
import yaml

from ellips.commands import reproduce
from ellips.commands.certify import certify_parser
from ellips.commands.program import main
from ellips.files import ResultsFolder
from ellips.lightning_modules import GenEllips
from ellips.reporting.published import RunRow, TableRow, measured_row, read_paper_table
from tests.configs.test_configs import Parsed
from tests.shipped import CONFIGS

TABLES = ("cifar10", "imagenet", "time")
FIT = (
    "--trainer.max_epochs 1 --trainer.check_val_every_n_epoch 1 --trainer.enable_progress_bar false "
    "--trainer.enable_model_summary false --trainer.accelerator cpu --model.hidden_dim 64 --model.shrinkage 0.5"
)
SMALL = {
    "title": "Digits",
    "radii": [0.1, 0.2],
    "rows": [
        {
            "label": "by Jacobian norms | here",
            "name": "small",
            "fit": ["data/digits.yaml", "model/digits.yaml"],
            "certify": ["data/digits.yaml", "certify/digits.yaml"],
            "series": "input-exact-jacobian-norm",
            "arguments": ["--input_radii", "[0.1, 0.2]", "--trainer.accelerator", "cpu"],
        }
    ],
    "published": [
        {"method": "theirs", "soundness": "probabilistic", "clean": 90, "certified": {0.2: 50.5}, "source": "a paper"}
    ],
}


@pytest.mark.parametrize("name", TABLES)
def test_the_shipped_tables_name_runs_that_their_commands_accept(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["ellips"])  # Lightning warns of arguments in two places
    table = read_paper_table(CONFIGS / "paper" / f"{name}.yaml")
    assert {row.soundness for row in table.published} >= {"estimated", "probabilistic"}
    assert all(row.source for row in table.published)
    for row in table.rows:
        given = reproduce.configurations(row.fit)
        cli = Parsed(GenEllips, L.LightningDataModule, subclass_mode_data=True, run=False, args=given)
        assert "fare4" in cli.config.data.init_args.encoder.init_args.weights
        config = certify_parser().parse_args(reproduce.certify_arguments(row, name))
        assert list(config.input_radii) == list(table.radii) or name == "time"
        certifier = config.certifiers[0]
        if certifier.class_path.endswith("Clever"):
            assert (certifier.init_args.num_batches, certifier.init_args.num_samples) == (500, 1024)
            assert config.input_method == "theorem"
            assert max(table.radii) <= certifier.init_args.radius


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    return path


def test_a_table_is_run_written_and_not_run_twice(
    small: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["reproduce", str(small), "--run", "false"]) == 0
    assert "not run here yet" in Path("runs/reproduce/small.md").read_text()
    command = ["reproduce", str(small), "--fit", FIT, "--certify", "--max 2"]
    assert main(command) == 0
    written = json.loads(Path("runs/reproduce/small.json").read_text())
    ours, theirs = written["rows"]
    assert (ours["soundness"], ours["images"], ours["source"]) == ("estimated", 2, "measured here")
    assert ours["minutes"] > 0
    assert set(ours["certified"]) == {"0.1", "0.2"}
    assert (theirs["soundness"], theirs["certified"], theirs["source"]) == ("probabilistic", {"0.2": 50.5}, "a paper")
    lines = Path("runs/reproduce/small.md").read_text().splitlines()
    assert lines[-1] == "| theirs | probabilistic | 90.0 |  | 50.5 |  |  | a paper |"
    fits: list[list[str]] = []
    certified: list[list[str]] = []
    monkeypatch.setattr(reproduce, "train", fits.append)
    monkeypatch.setattr(reproduce, "certify", certified.append)
    assert main(command) == 0
    assert fits == []
    assert certified[0][-2:] == ["--max", "2"]  # goes on by itself
    (Path("runs/small") / reproduce.FITTED).unlink()  # as if the fit had been stopped
    assert main(command) == 0
    assert fits[0][-2:] == ["--ckpt_path", "last"]
    assert "theirs" in capsys.readouterr().out


def test_what_cannot_be_a_table_is_refused(small: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="cifar10, imagenet, time"):
        main(["reproduce", "nothing"])
    for broken in ({"rows": [{"label": "a"}]}, {"published": [{"method": "a", "soundness": "proven", "source": "b"}]}):
        small.write_text(yaml.safe_dump({**SMALL, **broken}))
        with pytest.raises(ValueError, match=r"small\.yaml: expected"):
            main(["reproduce", str(small)])


def test_results_that_lack_the_series_or_images_say_so(tmp_path: Path) -> None:
    row = RunRow("ours", "run", (), (), "input-exact-clever")
    folder = ResultsFolder(tmp_path)
    assert measured_row(row, folder) == TableRow("ours", None, "not run here yet")
    folder.summary.write_text(json.dumps({"series": {"latent-exact": {}}}))
    with pytest.raises(ValueError, match="input-exact-clever"):
        measured_row(row, folder)
    found = {
        "soundness": "estimated",
        "complete": False,
        "missing_count": 3,
        "present": 2,
        "clean_accuracy": {"accuracy": 0.5},
        "certified_accuracy": [{"radius": 0.25, "accuracy": 0.5}],
        "seconds_per_image": {"median": 90.0},
    }
    folder.summary.write_text(json.dumps({"series": {row.series: found}}))
    got = measured_row(row, folder)
    assert (got.source, got.clean, got.certified, got.minutes) == ("measured here, 3 missing", 50, {0.25: 50}, 1.5)
