"""What version 0.1 left is read, or refused with the cure: its checkpoint, results, cache and configurations.

The files in ``tests/data/version_0_1`` were written by version 0.1 itself: a run of Gaussians on the shipped encoder of
constant 1, a certification run of every twelfth test image, and the features of the validation split.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from datamodules import DigitsDataModule
from ellips import EllipsHead, FrozenEncoder, ImageClassifier
from ellips.commands import main
from ellips.commands.certify import HARDWARE
from ellips.encoders import LipschitzEncoder
from ellips.files import Journal, ResultsFolder, RunFolder, load_certificates, read_table, read_tsv
from ellips.lipschitz import SpectralProduct
from ellips.reporting.summary import records_by_series
from ellips.types import Series

DATA = Path(__file__).parent / "data" / "version_0_1"
RUN = RunFolder(DATA / "run")
RESULTS = RUN.results("test")
INDICES = list(range(0, 359, 12))
LATENT = [Series("latent", method) for method in ("theorem", "pairwise", "exact")]
IMAGE = Series("input", "exact", "spectral-product")


@pytest.fixture(scope="module")
def encoder() -> FrozenEncoder:
    return FrozenEncoder(LipschitzEncoder("digits_lipschitz"))


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ResultsFolder:
    """The results in the folder that the run's own settings name, which is where commands are started."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(RUN.path, RunFolder.named("demo_lipschitz").path)
    return RunFolder.named("demo_lipschitz").results("test")


# ------------------------------------------------------------------ the checkpoint


def test_the_checkpoint_loads_as_a_head_and_as_the_classifier_that_was_certified(encoder: FrozenEncoder) -> None:
    head = EllipsHead.from_checkpoint(RUN.last)
    assert (head.in_features, head.num_classes, head.latent_dim) == (16, 10, 16)
    assert (head.ellips.regularization.pooling, head.ellips.regularization.shrinkage) == (0.5, 0.9)
    classifier = ImageClassifier.from_checkpoint(RUN.last, encoder)
    settings = json.loads(RESULTS.settings.read_text())
    assert classifier.digests() == {part: settings[f"{part}_digest"] for part in ("encoder", "head")}


def test_what_it_certifies_is_what_version_0_1_certified(encoder: FrozenEncoder) -> None:
    classifier = ImageClassifier.from_checkpoint(RUN.last, encoder)
    data = DigitsDataModule(encoder, batch_size=2000)
    data.setup("test")
    images = next(iter(data.test_dataloader())).image[INDICES]
    rows = records_by_series(read_table(RESULTS.table))
    certificates = {series: classifier.certify(images, method=series.method) for series in LATENT}
    certificates[IMAGE] = classifier.certify(images, SpectralProduct())
    assert list(rows) == list(certificates)
    for series, certificate in certificates.items():
        assert [row.prediction for row in rows[series]] == certificate.prediction.tolist()
        expected = torch.tensor([row.radius for row in rows[series]], dtype=torch.float64)
        torch.testing.assert_close(certificate.radius, expected, rtol=1e-4, atol=0)


# ------------------------------------------------------------------ results


def test_the_table_reads_with_its_series() -> None:
    rows = records_by_series(read_table(RESULTS.table))
    assert list(rows) == [*LATENT, IMAGE]
    for series, soundness in zip(rows, 3 * ["exact"] + ["deterministic"], strict=True):
        assert [row.index for row in rows[series]] == INDICES
        assert {row.soundness for row in rows[series]} == {soundness}
    first = rows[IMAGE][0]
    assert (first.label, first.prediction, first.correct, first.rival, first.seed) == (1, 1, True, 8, 0)
    assert first.latent_radius is not None
    assert first.lipschitz is not None
    assert first.radius == pytest.approx(first.latent_radius / first.lipschitz, rel=1e-12)
    assert "SpectralProduct" in str(first.source)
    assert rows[LATENT[0]][0].radius == 0.38988824352634877  # bit for bit


def test_the_tab_separated_file_reads_and_is_below_the_table() -> None:
    table = records_by_series(read_table(RESULTS.table))[IMAGE]
    for row, full in zip(read_tsv(RESULTS.path / "input-spectral-product.tsv"), table, strict=True):
        assert (row.index, row.label, row.prediction) == (full.index, full.label, full.prediction)
        assert full.radius * (1 - 1e-5) <= row.radius <= full.radius


def test_the_journal_reads_with_its_latents(encoder: FrozenEncoder) -> None:
    journal = Journal(RESULTS, [*LATENT, IMAGE], json.loads(RESULTS.settings.read_text()))
    assert journal.done() == set(INDICES)
    assert journal.records() == read_table(RESULTS.table)
    saved = load_certificates(RESULTS.proofs(LATENT[-1]))
    assert saved.index is not None
    assert saved.index.tolist() == INDICES
    assert torch.equal(torch.stack([journal.latents()[i] for i in INDICES]), saved.z)


def test_its_certificates_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(RESULTS.proofs(LATENT[-1]))]) == 0
    assert f"{len(INDICES)} of {len(INDICES)} certificates are proven (exact, " in capsys.readouterr().out


def test_its_results_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(RESULTS.path), "--out", str(tmp_path)]) == 0
    entries = json.loads((tmp_path / "compare.json").read_text())["entries"]
    assert [(entry["space"], entry["soundness"], entry["images"]) for entry in entries] == [
        *3 * [("latent", "exact", 30)],
        ("input", "deterministic", 30),
    ]
    assert main(["compare", str(RESULTS.path), "--series", f"[{IMAGE.name}]", "--out", str(tmp_path / "one")]) == 0
    assert len(json.loads((tmp_path / "one" / "compare.json").read_text())["entries"]) == 1


def test_its_results_are_audited(demo: ResultsFolder) -> None:
    pytest.importorskip("art", reason="the audit's attacks come with the extra `bench`")
    quick = ["--max=6", "--attack.steps=5", "--attack.restarts=1", "--attack.autoattack_points=0", "--attack.queries=5"]
    assert main(["audit", str(demo.path), *quick]) == 0
    found = json.loads(demo.audit[0].read_text())["series"]
    assert list(found) == [series.name for series in (*LATENT, IMAGE)]
    assert all(entry["attacked"] == 6 and entry["passed"] is True for entry in found.values())
    assert found[IMAGE.name]["constants_attacked"] == 6


def test_an_audit_of_another_classifier_is_refused(demo: ResultsFolder) -> None:
    pytest.importorskip("art", reason="the audit's attacks come with the extra `bench`")
    settings = json.loads(demo.settings.read_text())
    demo.settings.write_text(json.dumps({**settings, "head_digest": "sha256:other"}))
    with pytest.raises(ValueError, match="encoder or head changed since"):
        main(["audit", str(demo.path), "--max=1"])


def today(demo: ResultsFolder) -> Path:
    """The configuration of the old certification run as one would write it now."""
    text = demo.config.read_text()
    for old, new in (("sources:", "certifiers:"), ("ellips.lipschitz.Lipschitz", "ellips.encoders.Lipschitz")):
        assert old in text
        text = text.replace(old, new)
    config = yaml.safe_load(text)
    # Trainer options come and go with Lightning's versions; only the hardware is used.
    config["trainer"] = {name: config["trainer"][name] for name in HARDWARE}
    path = Path("today.yaml")
    path.write_text(yaml.safe_dump(config))
    return path


def test_its_run_is_not_resumed_but_refused_with_what_differs_and_the_cure(demo: ResultsFolder) -> None:
    kept = {path: path.read_bytes() for path in demo.path.rglob("*") if path.is_file()}
    command = ["certify", "--config", str(today(demo)), "--out", str(demo.path)]
    message = r"differs in certifiers .*SpectralProduct.*; sources .*\. Choose another folder, or delete this one\."
    with pytest.raises(ValueError, match=message):
        main(command)
    assert {path: path.read_bytes() for path in demo.path.rglob("*") if path.is_file()} == kept
    # The cure works, and gives what version 0.1 gave.
    assert main([*command, "--overwrite=true", "--max=3"]) == 0
    old = {(row.series, row.index): row for row in read_table(RESULTS.table)}
    for row in read_table(demo.table):
        assert row.radius == pytest.approx(old[row.series, row.index].radius, rel=1e-4)
    assert "sources" not in yaml.safe_load(demo.config.read_text())


# ------------------------------------------------------------------ the cache


def test_the_feature_cache_opens_and_holds_what_is_encoded_now(encoder: FrozenEncoder, tmp_path: Path) -> None:
    shutil.copytree(DATA / "cache", tmp_path / "cache")
    before = {path.name: path.read_bytes() for path in (tmp_path / "cache" / "val").iterdir()}
    data = DigitsDataModule(encoder, batch_size=2000, cache_dir=str(tmp_path / "cache"))
    cache = data.open_cache("val")
    assert len(cache) == 270
    assert {path.name: path.read_bytes() for path in (tmp_path / "cache" / "val").iterdir()} == before
    plain = DigitsDataModule(encoder, batch_size=2000)
    plain.setup("validate")
    expected = plain.encode(next(iter(plain.val_dataloader())))
    found = cache.read(range(270))
    assert torch.equal(found.label, expected.label)
    assert torch.equal(found.index, expected.index)
    torch.testing.assert_close(found.feature, expected.feature)


# ------------------------------------------------------------------ configurations


def test_configurations_that_name_what_moved_say_where_it_is(
    demo: ResultsFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = "ellips.lipschitz.LipschitzEncoder has moved: it is ellips.encoders.LipschitzEncoder now"
    for command in (["certify", "--config", str(demo.config)], ["fit", "--config", "runs/demo_lipschitz/config.yaml"]):
        with pytest.raises(SystemExit) as stop:
            main(command)
        assert stop.value.code == 2
        assert moved in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["SmoothedEncoder", "MarginClever"])
def test_certifiers_under_their_old_class_path_say_where_they_are(
    kind: str, demo: ResultsFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["certify", "--config", str(today(demo)), f"--certifiers=[{{class_path: ellips.lipschitz.{kind}}}]"])
    assert f"ellips.lipschitz.{kind} has moved: it is ellips.input_certifiers.{kind} now" in capsys.readouterr().err


def test_sources_say_that_they_are_called_certifiers(demo: ResultsFolder, capsys: pytest.CaptureFixture[str]) -> None:
    path = today(demo)
    path.write_text(path.read_text().replace("certifiers:", "sources:"))
    with pytest.raises(SystemExit) as stop:
        main(["certify", "--config", str(path)])
    assert stop.value.code == 2
    assert "Expected `certifiers`, as `sources` is called since" in capsys.readouterr().err
