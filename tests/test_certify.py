import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from certify import main
from datamodules import DigitsDataModule
from ellips.audit import AttackSettings
from ellips.commands.audit import audit
from ellips.encoders import FrozenEncoder
from ellips.errors import EncoderMismatchError
from ellips.files import ResultsFolder
from ellips.files.proofs import load_certificates, save_certificates
from ellips.files.table import read_table
from ellips.files.tsv import read_tsv
from ellips.pipeline import ImageClassifier

ENCODER = {"class_path": "ellips.encoders.FrozenEncoder", "init_args": {"model": "test_resnet", "weights": "digits"}}
DATA = {"class_path": "datamodules.DigitsDataModule", "init_args": {"encoder": ENCODER, "batch_size": 512}}
SOURCE = {"class_path": "ellips.lipschitz.JacobianNorm", "init_args": {"num_iterations": 4, "ball_radius": 0.8}}
SERIES = ["latent-theorem", "latent-pairwise", "latent-exact", "input-exact-jacobian-norm"]


@pytest.fixture(scope="module")
def encoder() -> FrozenEncoder:
    return FrozenEncoder("test_resnet", weights="digits")


@pytest.fixture(scope="module")
def checkpoint(digits_checkpoint: Path) -> Path:
    return digits_checkpoint


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    content = {
        # As a training run's configuration, with parts that certify.py does not use.
        "seed_everything": 3,
        "name": "digits",
        "data": DATA,
        "model": {"latent_dim": 16, "objective": None},
        "trainer": {"accelerator": "cpu", "devices": 1, "max_epochs": 7, "callbacks": None},
        "ckpt_path": str(checkpoint),
        "certifiers": [SOURCE],
        "skip": 10,
    }
    path = tmp_path_factory.mktemp("config") / "certify.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, config: Path) -> Path:
    out = tmp_path_factory.mktemp("run") / "out"
    assert main(["--config", str(config), "--out", str(out)]) == 0
    return out


def test_every_file_is_there(run: Path) -> None:
    names = {path.name for path in run.iterdir()}
    assert names >= {f"{name}.tsv" for name in SERIES} | {"certificates.csv", "summary.json", "report.html"}
    assert names >= {
        f"curve_{claim}.{kind}" for claim in ("latent_exact", "input_estimated") for kind in ("png", "svg")
    }
    assert names >= {f"{name}.safetensors" for name in SERIES[:3]}


def test_rows_are_what_the_classifier_says(run: Path, checkpoint: Path, encoder: FrozenEncoder) -> None:
    classifier = ImageClassifier.from_checkpoint(checkpoint, encoder)
    data = DigitsDataModule(encoder, batch_size=2000)
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    expected = classifier.certify(batch.image[::10])
    rows = [row for row in read_table(run / "certificates.csv") if row.series.name == "latent-exact"]
    assert [row.index for row in rows] == list(range(0, 359, 10))
    assert [row.label for row in rows] == batch.label[::10].tolist()
    assert [row.prediction for row in rows] == expected.prediction.tolist()
    np.testing.assert_allclose([row.radius for row in rows], expected.radius.numpy(), rtol=1e-4)
    assert {row.seed for row in rows} == {3}


def test_the_compatible_file_never_promises_more_than_the_table(run: Path) -> None:
    table = {(row.series.name, row.index): row for row in read_table(run / "certificates.csv")}
    for series in SERIES:
        for row in read_tsv(run / f"{series}.tsv"):
            full = table[series, row.index]
            assert (row.label, row.prediction) == (full.label, full.prediction)
            assert full.radius * (1 - 1e-5) <= row.radius <= full.radius


def test_methods_and_spaces_are_in_order(run: Path) -> None:
    table = read_table(run / "certificates.csv")
    radius = {(row.series.name, row.index): row.radius for row in table}
    for row in table:
        theorem, pairwise, exact = (radius[f"latent-{m}", row.index] for m in ("theorem", "pairwise", "exact"))
        assert theorem <= pairwise * (1 + 1e-12) <= exact * (1 + 1e-9)
        assert (row.lowered, row.confirmed) == (0.0, True)
        if row.space == "input":
            assert row.soundness == "estimated"
            assert row.latent_radius == exact
            assert row.ball_radius == 0.8
            assert row.diagnostics.keys() == {"residual"}
            assert row.radius <= min(row.latent_radius / row.lipschitz, 0.8)


def test_the_summary_says_it_all(run: Path, checkpoint: Path, encoder: FrozenEncoder) -> None:
    summary = json.loads((run / "summary.json").read_text())
    assert summary["complete"] is True
    assert summary["expected"] == 36
    assert list(summary["series"]) == SERIES
    assert summary["settings"]["seed"] == 3
    assert summary["encoder"] == encoder.fingerprint()
    assert summary["digests"] == ImageClassifier.from_checkpoint(checkpoint, encoder).digests()
    assert torch.__version__.startswith(summary["versions"]["torch"])
    for name, entry in summary["series"].items():
        rows = read_tsv(run / f"{name}.tsv")
        correct = np.array([row.correct for row in rows])
        assert entry["clean_accuracy"]["accuracy"] == pytest.approx(correct.mean())
        assert entry["seconds_per_image"]["median"] <= entry["seconds_per_image"]["p95"]
        for point in entry["certified_accuracy"]:
            radii = np.array([row.radius for row in rows])
            assert point["accuracy"] == pytest.approx((correct & (radii >= point["radius"])).mean(), abs=1 / 36 + 1e-9)
            assert point["lower"] <= point["accuracy"] <= point["upper"]


def test_the_report_needs_nothing_else(run: Path) -> None:
    page = (run / "report.html").read_text()
    assert page.count("<svg") == 6  # of two claims the curves and the radii by class, the latents, the spectra
    assert "data:image/png;base64," in page
    assert "http" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    ).replace("https://matplotlib.org", "")
    assert "Latent space, exact" in page
    assert "Input space, estimated" in page
    assert "<script" not in page


def test_saved_certificates_hold_and_tampered_ones_do_not(run: Path, tmp_path: Path) -> None:
    path = run / "latent-exact.safetensors"
    assert main(["check", str(path)]) == 0
    saved = load_certificates(path)
    assert saved.index.tolist() == list(range(0, 359, 10))
    larger = replace(saved.certificate, radius=saved.certificate.radius * 1.001)
    save_certificates(tmp_path / "larger.safetensors", larger, saved.z, saved.ellips)
    assert main(["check", str(tmp_path / "larger.safetensors")]) == 1


def test_max_counts_after_skipping_and_val_is_another_split(config: Path, tmp_path: Path) -> None:
    args = ["--config", str(config), "--out", str(tmp_path), "--skip", "20", "--max", "5", "--split", "val"]
    assert main([*args, "--certifiers", "[]", "--methods", "[exact]"]) == 0
    assert [row.index for row in read_tsv(tmp_path / "latent-exact.tsv")] == [0, 20, 40, 60, 80]
    assert not list(tmp_path.glob("input*"))


def test_abstentions_are_written_as_the_field_writes_them(config: Path, tmp_path: Path) -> None:
    # Features this long, projected on the unit ball, tell nothing apart under so much noise.
    source = {"class_path": "ellips.input_certifiers.SmoothedEncoder", "init_args": {"sigma": 2.0, "num_samples": 20}}
    args = ["--config", str(config), "--out", str(tmp_path), "--max", "3", "--certifiers", yaml.safe_dump([source])]
    with pytest.warns(UserWarning, match="Projection on the ball"):
        assert main(args) == 0
    lines = (tmp_path / "input-exact-smoothed-encoder.tsv").read_text().splitlines()[1:]
    assert [line.split("\t")[2:5] for line in lines] == 3 * [["-1", "0.0", "0"]]
    summary = json.loads((tmp_path / "summary.json").read_text())["series"]["input-exact-smoothed-encoder"]
    assert (summary["soundness"], summary["abstentions"]) == ("probabilistic", 3)
    assert summary["clean_accuracy"]["accuracy"] == 0


def test_votes_are_a_series_like_any_other(config: Path, tmp_path: Path) -> None:
    settings = {"sigma": 0.1, "num_samples": 300, "radii": [0.05, 0.1]}
    votes = {"class_path": "ellips.input_certifiers.SmoothedDecision", "init_args": settings}
    args = ["--config", str(config), "--out", str(tmp_path), "--max", "4", "--certifiers", yaml.safe_dump([votes])]
    assert main(args) == 0
    rows = [row for row in read_table(tmp_path / "certificates.csv") if row.series.space == "input"]
    assert {row.series.name for row in rows} == {"input-votes-smoothed-decision"}
    assert all(row.soundness == "probabilistic" for row in rows)
    assert all(0 < row.diagnostics["votes"] <= row.diagnostics["draws"] <= 300 for row in rows)
    assert (tmp_path / "input-votes-smoothed-decision.tsv").exists()
    summary = json.loads((tmp_path / "summary.json").read_text())["series"]["input-votes-smoothed-decision"]
    assert summary["soundness"] == "probabilistic"
    shared = {**votes, "init_args": {**settings, "num_images": 3}}
    with pytest.raises(ValueError, match="at most num_images=3 images to share"):
        main([*args[:2], "--out", str(tmp_path / "b"), "--max", "4", "--certifiers", yaml.safe_dump([shared])])


def test_another_linear_head_in_the_same_file_makes_another_run(config: Path, tmp_path: Path) -> None:
    head, out = tmp_path / "head.safetensors", tmp_path / "out"
    settings = {"sigma": 0.1, "num_samples": 20, "num_selection": 4, "stopping": "fixed", "linear_head": str(head)}
    votes = {"class_path": "ellips.input_certifiers.SmoothedDecision", "init_args": settings}
    args = ["--config", str(config), "--out", str(out), "--certifiers", yaml.safe_dump([votes]), "--max"]
    weight = torch.randn(10, 96, generator=torch.Generator().manual_seed(0))
    save_file({"weight": weight, "bias": torch.zeros(10)}, head)
    assert main([*args, "2"]) == 0
    save_file({"weight": -weight, "bias": torch.zeros(10)}, head)
    with pytest.raises(ValueError, match="differs in certifier_files"):
        main([*args, "2"])
    with pytest.raises(ValueError, match="Expected the certifiers' files of the run"):
        audit(ResultsFolder(out), AttackSettings(steps=1), 1)


def test_means_under_noise_are_kept_and_their_certificates_hold(config: Path, tmp_path: Path) -> None:
    settings = {"sigma": 0.05, "num_samples": 2000, "norm_bound": 20.0}
    source = {"class_path": "ellips.input_certifiers.SmoothedEncoder", "init_args": settings}
    twice = [source, {**source, "init_args": {**settings, "seed": 1}}]
    args = ["--config", str(config), "--out", str(tmp_path), "--max", "4", "--batch_size", "2"]
    assert main([*args, "--certifiers", yaml.safe_dump(twice)]) == 0
    found = {}
    for name in ("input-exact-smoothed-encoder", "input-exact-smoothed-encoder-2"):
        path = tmp_path / f"{name}.safetensors"
        assert main(["check", str(path)]) == 0
        saved = found[name] = load_certificates(path)
        assert (saved.certificate.radius > 0).any()
        assert saved.certificate.latent_error is not None
        assert (saved.certificate.latent_error > 0.01).all()
        larger = replace(saved.certificate, diagnostics={"latent_error": saved.certificate.latent_error * 3})
        save_certificates(tmp_path / "forged.safetensors", larger, saved.z, saved.ellips)
        assert main(["check", str(tmp_path / "forged.safetensors")]) == 1
    first, second = found.values()
    assert not torch.equal(first.z, second.z)
    assert not torch.equal(first.z, load_certificates(tmp_path / "latent-exact.safetensors").z)


def cells(path: Path) -> list[list[str]]:
    """The full table without its time column."""
    rows = list(csv.reader(path.read_text().splitlines()))
    time = rows[0].index("seconds")
    return [[*row[:time], *row[time + 1 :]] for row in rows]


def test_an_interrupted_run_goes_on_where_it_was(config: Path, run: Path, tmp_path: Path) -> None:
    args = ["--config", str(config), "--out", str(tmp_path)]
    assert main(args) == 0
    assert cells(tmp_path / "certificates.csv") == cells(run / "certificates.csv")
    rows = tmp_path / "journal" / "rows-0.csv"
    # As if killed in the middle of writing an image of the second batch; results are gone.
    lines = rows.read_text().splitlines(keepends=True)
    kept = "".join(lines[: 1 + 4 * 33 + 2]) + lines[1 + 4 * 33 + 2][:20]
    rows.write_text(kept)
    (tmp_path / "certificates.csv").unlink()
    times = {(r.series, r.index): r.seconds for r in read_table(run / "certificates.csv")}
    first = {(r.series, r.index): r.seconds for r in read_table(rows, allow_partial=True)[: 4 * 33]}
    assert main(args) == 0
    assert cells(tmp_path / "certificates.csv") == cells(run / "certificates.csv")
    again = {(r.series, r.index): r.seconds for r in read_table(tmp_path / "certificates.csv")}
    assert len(times) == len(again) == 36 * 4
    assert all(again[key] == seconds for key, seconds in first.items()), "an image was certified twice"
    # Nothing left to do: nothing is computed again.
    assert main(args) == 0
    assert {(r.series, r.index): r.seconds for r in read_table(tmp_path / "certificates.csv")} == again


def test_a_folder_keeps_the_rows_of_one_setting(config: Path, run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"differs in skip \(there 10, here 12\)"):
        main(["--config", str(config), "--out", str(run), "--skip", "12"])
    small = ["--config", str(config), "--out", str(tmp_path), "--max", "2", "--certifiers", "[]"]
    assert main(small) == 0
    assert main([*small, "--skip", "100", "--overwrite", "true"]) == 0
    assert [row.index for row in read_tsv(tmp_path / "latent-exact.tsv")] == [0, 100]


@pytest.mark.parametrize(
    ("name", "value"), [("tolerance", 0.5), ("seed", 1), ("num_iterations", 5), ("ball_radius", 0.7)]
)
def test_certifiers_that_differ_deep_inside_are_not_mixed(config: Path, run: Path, name: str, value: float) -> None:
    """A source inside of a certifier counts with all of its settings, also those that the configuration left out."""
    kept = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    source = {**SOURCE, "init_args": {**SOURCE["init_args"], name: value}}
    wrapped = [{"class_path": "ellips.input_certifiers.ByConstant", "init_args": {"source": source}}]
    message = rf"differs in certifiers \(there .*, here .*'{name}': {value}.* delete this one"
    with pytest.raises(ValueError, match=message):
        main(["--config", str(config), "--out", str(run), "--certifiers", yaml.safe_dump(wrapped)])
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == kept


def test_the_same_certifier_written_otherwise_is_the_same_run(config: Path, tmp_path: Path) -> None:
    args = ["--config", str(config), "--out", str(tmp_path), "--max", "2"]
    assert main(args) == 0
    table = (tmp_path / "certificates.csv").read_bytes()
    wrapped = [{"class_path": "ellips.input_certifiers.ByConstant", "init_args": {"source": SOURCE}}]
    assert main([*args, "--certifiers", yaml.safe_dump(wrapped)]) == 0
    assert (tmp_path / "certificates.csv").read_bytes() == table  # times included: nothing was certified again


def test_what_is_missing_is_said_and_the_run_fails(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from callbacks.certificate_writer import CertificateWriter

    def lose_some(self: CertificateWriter, trainer: object, module: object, outputs: list, *rest: object) -> None:
        for image in outputs:
            if image.records[0].index != 30:
                self.journal.append(image.records, image.latent)

    monkeypatch.setattr(CertificateWriter, "on_predict_batch_end", lose_some)
    assert main(["--config", str(config), "--out", str(tmp_path), "--max", "5", "--certifiers", "[]"]) == 1
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["complete"] is False
    assert summary["series"]["latent-exact"]["missing"] == [30]
    assert "Not complete. " in (tmp_path / "report.html").read_text()


def test_mistakes_are_named(config: Path, checkpoint: Path, tmp_path: Path) -> None:
    base = ["--config", str(config), "--out", str(tmp_path / "out")]
    with pytest.raises(ValueError, match="`skip` to be at least 1"):
        main([*base, "--skip", "0"])
    with pytest.raises(ValueError, match="`split` to be one of"):
        main([*base, "--split", "exam"])
    with pytest.raises(FileNotFoundError, match="nowhere"):
        main([*base, "--ckpt_path", str(tmp_path / "nowhere.ckpt")])
    other = torch.load(checkpoint, weights_only=True)
    other["encoder_fingerprint"]["weights"] = "sha256:other"
    torch.save(other, tmp_path / "other.ckpt")
    with pytest.raises(EncoderMismatchError, match="sha256:other"):
        main([*base, "--ckpt_path", str(tmp_path / "other.ckpt")])
    with pytest.raises(SystemExit):
        main([*base, "--skips", "1"])
