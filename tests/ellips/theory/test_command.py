"""``python -m ellips.theory`` on a checkpoint and on a run of certify.py."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

from ellips.classifier import Ellips
from ellips.files.proofs import save_certificates
from ellips.files.records import records_from_certificate
from ellips.files.tsv import write_tsv
from ellips.head import EllipsHead
from ellips.theory.__main__ import _finite, load_latents, main
from ellips.theory.degradation import degradation
from ellips.theory.localization import Localizer
from ellips.theory.normality import mardia


def mixture() -> Ellips:
    means = torch.tensor([[0.0, 0.0], [6.0, 0.0], [0.0, 6.0]], dtype=torch.float64)
    return Ellips.from_parameters(means, torch.ones(3, 2, dtype=torch.float64), torch.full((3,), 1 / 3))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    ellips = mixture()
    z, labels = ellips.sample(240, torch.Generator().manual_seed(0))
    index = torch.arange(240).flip(0)
    found = ellips.certify(z)
    save_certificates(tmp_path / "latent-exact.safetensors", found, z, ellips, index)
    records = records_from_certificate(found, index, labels, series="latent exact", seconds=0.1)
    write_tsv(tmp_path / "latent-exact.tsv", sorted(records, key=lambda r: r.index))
    return tmp_path


def test_localization_of_a_checkpoint_and_of_a_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    z, labels = mixture().sample(500, torch.Generator().manual_seed(1))
    head = EllipsHead(2, 3, latent_dim=None).fit(z, labels)
    state = {f"head.{name}": value for name, value in head.state_dict().items()}
    torch.save({"state_dict": state, "head": head.config}, run / "last.ckpt")
    out = run / "answer.json"
    args = ["localization", str(run / "last.ckpt"), "--epsilon", "0.5", "30", "--accuracy", "0.8"]
    assert main([*args, "--delta", "0.05", "--gamma", "0.05", "--json", str(out)]) == 0
    answer = json.loads(out.read_text())
    expected = Localizer(head.ellips).best(0.5)
    assert [a["exists"] for a in answer["localization"]] == [True, False]
    assert answer["localization"][0]["certified_accuracy"] == pytest.approx(expected.certified_accuracy)
    assert answer["largest_epsilon"] > 0.5
    printed = capsys.readouterr().out
    assert "Pal et al." in printed
    assert "not shown" in printed
    assert main(["localization", str(run), "--json", str(out)]) == 0
    found = json.loads(out.read_text())["localization"]
    radius = mixture().certify(mixture().means).radius
    assert float(radius.min()) / 2 < found[0]["epsilon"] <= found[-1]["epsilon"] <= float(radius.max())


def test_normality_and_degradation_of_a_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ellips, z, labels = load_latents(run)
    assert (ellips.predict(z) == labels).double().mean() > 0.95  # latents and labels were matched by index
    assert main(["normality", str(run), "--json", str(run / "n.json")]) == 0
    assert json.loads((run / "n.json").read_text())["pass_rate"] == mardia(z, labels).pass_rate()
    assert (
        main(["degradation", str(run), "--radii", "0", "1", "--num-samples", "500", "--json", str(run / "d.json")]) == 0
    )
    found = degradation(ellips, z, labels, [0.0, 1.0], num_samples=500)
    assert json.loads((run / "d.json").read_text())["bound"] == found.bound.tolist()
    printed = capsys.readouterr().out
    assert "of 3 classes tested" not in printed.replace("3 of 3 classes tested", "")
    assert "biased" in printed


def test_degradation_is_shown_at_the_radii_of_the_runs_table(run: Path) -> None:
    (run / "summary.json").write_text(json.dumps({"radii": {"latent": {"radii": [0.7, 2.0]}}}))
    assert main(["degradation", str(run), "--num-samples", "100", "--json", str(run / "d.json")]) == 0
    ellips, z, labels = load_latents(run)
    found = degradation(ellips, z, labels, [0.0, 0.7, 2.0], num_samples=100)
    assert json.loads((run / "d.json").read_text())["bound"] == found.bound.tolist()


def test_unusable_input_exits_with_2_and_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["normality", str(tmp_path)]) == 2
    assert "there is none" in capsys.readouterr().err
    (tmp_path / "x.ckpt").write_bytes(b"")
    torch.save({"state_dict": {}}, tmp_path / "x.ckpt")
    assert main(["localization", str(tmp_path / "x.ckpt")]) == 2
    assert "head" in capsys.readouterr().err


def test_labels_of_other_images_are_refused(run: Path) -> None:
    lines = (run / "latent-exact.tsv").read_text().splitlines()
    (run / "latent-exact.tsv").write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(ValueError, match="same images"):
        load_latents(run)


def test_json_holds_no_nan_or_infinity() -> None:
    assert _finite({"a": [float("nan"), float("inf"), 1.0]}) == {"a": [None, "inf", 1.0]}


def test_it_is_a_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["ellips.theory", "--help"])
    with pytest.raises(SystemExit) as stopped, pytest.warns(RuntimeWarning, match="sys.modules"):
        runpy.run_module("ellips.theory", run_name="__main__")
    assert stopped.value.code == 0
    assert "localization" in capsys.readouterr().out
