"""What commands are given wrongly is said before any work is done, in words, with the file that it is about."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from commands.certify import certify
from datamodules import DigitsDataModule
from ellips import Ellips, FrozenEncoder
from ellips.commands import console, main
from ellips.files import RunFolder, save_certificates
from ellips.reporting.sweep import SweepRun, read_run, sweep_table

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join(10 * [f'*a{i - 1}'])}]\n" for i in range(1, 30)
)


@pytest.mark.parametrize("command", ["certify", "fit", "test", "plan", "encode", "train-encoder fit"])
def test_a_configuration_that_repeats_itself_without_end_is_refused(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bomb.yaml"
    path.write_text(BOMB)
    with pytest.raises((SystemExit, ValueError)) as refused:
        main([*command.split(), "--config", str(path)])
    assert "aliases repeat themselves" in f"{capsys.readouterr().err} {refused.value}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"radii": [-1.0]}, "`radii` to be at least 0"),
        ({"radii": []}, "strictly ascending"),
        ({"radii": [0.5, 0.5]}, "strictly ascending"),
        ({"radii": [0.5, 0.1]}, "strictly ascending"),
        ({"radii": [float("nan")]}, "`radii` to be at least 0"),
        ({"radii": [0.1, float("inf")]}, "`radii` to be finite"),
        ({"input_radii": [-0.1, 0.1]}, "`input_radii` to be at least 0"),
        ({"input_radii": [0.1, float("inf")]}, "`input_radii` to be finite"),
        ({"confidence": 0.0}, "`confidence` to be in"),
        ({"confidence": 1.0}, "`confidence` to be in"),
        ({"confidence": float("nan")}, "`confidence` to be in"),
        ({"skip": 0}, "`skip` to be at least 1"),
        ({"max": 0}, "`max_images` to be at least 1"),
        ({"batch_size": 0}, "`batch_size` to be at least 1"),
        ({"split": "all"}, "`split` to be one of"),
        ({"methods": ["best"]}, "`methods` to be one of"),
        ({"methods": []}, "at least one method"),
        ({"input_method": "best"}, "`input_method` to be one of"),
    ],
)
def test_certify_refuses_before_any_image_is_certified(
    arguments: dict[str, Any], message: str, digits_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning.Trainer.predict", lambda *_, **__: pytest.fail("work was begun"))
    data = DigitsDataModule(FrozenEncoder("test_resnet", weights="digits"))
    with pytest.raises(ValueError, match=message):
        certify(data, ckpt_path=str(digits_checkpoint), out=str(tmp_path / "out"), **arguments)
    assert not (tmp_path / "out").exists()


DATA = [
    *("--data=ellips.datamodules.DigitsDataModule", "--data.encoder=ellips.encoders.FrozenEncoder"),
    *("--data.encoder.model=test_resnet", "--data.encoder.weights=digits"),
]
QUIET = [*DATA, "--trainer.logger=false", "--trainer.accelerator=cpu"]
ROWS: list[tuple[list[str], str]] = [
    (["fit"], "data"),
    (["fit", "--config=nowhere.yaml"], "nowhere.yaml"),
    (["fit", *QUIET, "--model.latent_dim=many"], "latent_dim"),
    (["fit", *QUIET, "--model.latent_dim=0"], "`latent_dim` to be at least 1 but got 0"),
    (["fit", *QUIET, "--model.shrinkage=2"], "`shrinkage` to be in"),
    (["fit", *QUIET, "--model.lattent_dim=4"], "lattent_dim"),
    (["fit", *QUIET, "--model.latent_norm=cube"], "latent_norm"),
    (["fit", *QUIET, "--data.batch_size=0"], "`batch_size` to be at least 1 but got 0"),
    (["fit", *QUIET, "--data.encoder.weights=nowhere.pth"], "nowhere.pth"),
    (["fit", *QUIET, "--data.encoder.precision=8"], "precision"),
    (["fit", *QUIET, "--data=ellips.datamodules.NoSuchModule"], "NoSuchModule"),
    (["fit", *QUIET, "--ckpt_path=https://example.org/x.ckpt"], "a checkpoint on this machine but got https"),
    (["test", *QUIET], "best.ckpt or .*last.ckpt but there is neither"),
    (["test", *QUIET, "--ckpt_path=nowhere.ckpt"], "nowhere.ckpt"),
    (["certify"], "data"),
    (["certify", *DATA], "best.ckpt or .*last.ckpt but there is neither"),
    (["certify", *DATA, "--ckpt_path=nowhere.ckpt"], "a checkpoint at nowhere.ckpt but there is none"),
    (["certify", *DATA, "--ckpt_path=CHECKPOINT", "--max=none"], "max"),
    (["certify", *DATA, "--ckpt_path=CHECKPOINT", "--split=all"], "`split` to be one of"),
    (["certify", *DATA, "--ckpt_path=CHECKPOINT", "--certifiers=[{class_path: no.Such}]"], "no.Such"),
    (["certify", *DATA, "--ckpt_path=EMPTY"], "EMPTY.*whole checkpoint"),
    (["certify", *DATA, "--ckpt_path=TEXT"], "TEXT.*whole checkpoint"),
    (["certify", "--config=TEXT"], "TEXT: expected a configuration with sections"),
    (["encode"], "`data` section"),
    (["encode", "--config=nowhere.yaml"], "`--config` to be a file but got nowhere.yaml"),
    (["encode", *DATA], "`cache_dir`"),
    (["encode", *DATA, "--data.cache_dir=cache", "--splits=[all]"], "splits"),
    (["encode", *DATA, "--data.cache_dir=cache", "--data.shard_rows=0"], "`shard_rows` to be at least 1 but got 0"),
    (["check"], "file"),
    (["check", "nowhere.safetensors"], "a file of certificates at nowhere.safetensors but there is none"),
    (["check", "EMPTY"], "EMPTY.*safetensors file"),
    (["check", "TEXT"], "TEXT.*safetensors file"),
    (["check", "."], "a file of certificates at . but there is none"),
    (["audit"], "folder"),
    (["audit", "nowhere"], "config.yaml, which `ellips certify` writes, but there is none"),
    (["audit", ".", "--attack.steps=0"], "`steps` to be at least 1 but got 0"),
    (["audit", ".", "--max=few"], "max"),
    (["compare"], "runs"),
    (["compare", "nowhere"], "nowhere"),
    (["compare", "nowhere.tsv:exact"], "nowhere.tsv"),
    (["compare", "TEXT:sure"], "sure"),
    (["compare", "TEXT:exact"], "TEXT:exact/certificates.csv, which `ellips certify` writes, but there is none"),
    (["reproduce"], "table"),
    (["reproduce", "nowhere"], "one of the tables cifar10, imagenet, time, or a file, but got 'nowhere'"),
    (["reproduce", "TEXT"], "TEXT: expected a configuration with sections"),
    (["collect"], "runs"),
    (["collect", "nowhere"], "nowhere"),
    (["theory", "localization", "nowhere.ckpt"], "a checkpoint at nowhere.ckpt but there is none"),
    (["theory", "localization", "CHECKPOINT", "--epsilon=-1"], "`epsilon` to be at least 0 but got -1"),
    (["theory", "localization", "CHECKPOINT", "--epsilon=far"], "epsilon"),
    (["theory", "normality", "nowhere"], "nowhere.* but there is none"),
    (["theory", "fate", "nowhere"], "fate"),
    (["plan", *DATA, "--counts={train: 3}"], "`counts` of train, val, test and classes but got none of"),
    (["plan", *DATA, "--images_per_second=fast"], "images_per_second"),
    (["train-encoder", "fit"], "data"),
    (["train-encoder", "fit", "--config=nowhere.yaml"], "nowhere.yaml"),
    (["no-such-command"], "usage: ellips COMMAND"),
]


@pytest.mark.parametrize(("words", "message"), ROWS, ids=lambda value: None if isinstance(value, str) else value[:1])
def test_commands_refuse_before_anything_is_written(
    words: list[str],
    message: str,
    digits_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("TEXT").write_text("some words\n")
    Path("EMPTY").touch()
    monkeypatch.setattr(
        sys, "argv", ["ellips", *(word.replace("CHECKPOINT", str(digits_checkpoint)) for word in words)]
    )
    try:
        code: object = console()
    except SystemExit as stop:  # as jsonargparse and argparse refuse options
        code = stop.code
    out, err = capsys.readouterr()
    assert code == 2, err
    assert "Traceback" not in err
    assert re.search(message, " ".join(f"{out} {err}".split())), err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["EMPTY", "TEXT"], "something was written"


@pytest.mark.parametrize("most", ["0", "-1"])
def test_an_audit_of_no_image_is_refused(most: str, tmp_path: Path) -> None:
    pytest.importorskip("art", reason="the audit's attacks come with the extra `bench`")
    with pytest.raises(ValueError, match="`max` to be at least 1"):
        main(["audit", str(tmp_path), f"--max={most}", "--accelerator=cpu"])


def test_no_certificates_are_not_proven(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    z = torch.randn(40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ellips = Ellips(2, 3, shrinkage=0.5).fit(z, torch.arange(40) % 2)
    path = save_certificates(tmp_path / "c.safetensors", ellips.certify(z[:0]), z[:0], ellips)
    assert main(["check", str(path)]) == 1
    assert "holds no certificates" in capsys.readouterr().out


def test_certificates_of_one_image_do_not_count_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    z = torch.randn(40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ellips = Ellips(2, 3, shrinkage=0.5).fit(z, torch.arange(40) % 2)
    index = torch.tensor([0, 1, 1, 2, 1])
    path = save_certificates(tmp_path / "c.safetensors", ellips.certify(z[index]), z[index], ellips, index)
    assert main(["check", str(path)]) == 1
    assert "2 certificates are of images that the file has already" in capsys.readouterr().out


# ------------------------------------------------------------------ files that are not what they should be


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\udc80", '{"series": 3}', '{"series": {"a": {}}}', "{}"])
def test_a_summary_that_is_none_is_named(text: str, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.config.write_text("name: x\n")
    path = folder.results("test").summary
    path.parent.mkdir(parents=True)
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=str(path)):
        read_run(folder)


@pytest.mark.parametrize("text", ["val/a\nx\n", "val/a\n1,2\n\x00"])
def test_metrics_that_are_none_are_named(text: str, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.config.write_text("name: x\n")
    folder.metrics.write_text(text)
    with pytest.raises(ValueError, match=str(folder.metrics)):
        read_run(folder)


def test_names_are_printed_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Square brackets are no markup: "[/red]" in a folder's name would end the command after all its work."""
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(sweep_table([SweepRun("[/red]", {"data.root": "[bold]a"}), SweepRun("b", {"data.root": "c"})], []))
    assert "[/red]" in (text := console.export_text())
    assert "[bold]a" in text


@pytest.mark.parametrize("name", ["[/red]", "[bold]x"])
def test_results_go_to_folders_of_any_name(
    name: str, digits_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = DigitsDataModule(FrozenEncoder("test_resnet", weights="digits"))
    out = tmp_path / name
    certify(data, ckpt_path=str(digits_checkpoint), out=str(out), max=2, hardware={"accelerator": "cpu"})
    assert json.loads((out / "summary.json").read_text())["complete"]
    assert name in "".join(capsys.readouterr().out.split())
    assert main(["compare", str(out), "--out", str(tmp_path / "compare" / name)]) == 0
