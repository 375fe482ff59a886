"""What commands are given wrongly is said before any work is done, in words, with the file that it is about."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from commands.certify import certify
from datamodules import DigitsDataModule
from ellips import Ellips, FrozenEncoder
from ellips.commands import main
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
    console = Console(width=200, record=True, file=open("/dev/null", "w"))
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
