"""The first newcomer's path: own pictures and the shortest configuration, from the fit to single files."""

from __future__ import annotations

import csv
import math
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.folder import Reading
from ellips import FrozenEncoder, ImageClassifier
from ellips.certificates import Certificate
from ellips.commands import main
from ellips.commands.pictures import PictureRow, _show
from ellips.errors import DataMismatchError, EncoderMismatchError
from ellips.files import RunFolder, load_certificates
from ellips.lipschitz import JacobianNorm
from tests.newcomers import CLASSES, TEST, YAML, make_pictures

QUIET = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
GAUSSIANS = ["--model.latent_dim=null", "--model.shrinkage=0.3"]
CONFIG = ["--config", "my.yaml"]
CERTIFY = ["certify", *CONFIG, "--trainer.accelerator=cpu"]
RUN = RunFolder.named("default")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, the configuration, and what a fit and a certification leave."""
    folder = tmp_path_factory.mktemp("newcomer")
    make_pictures(folder / "pictures")
    (folder / "pictures" / "train" / "one" / "notes.txt").write_text("mine")
    (folder / "pictures" / "test" / "one" / "Thumbs.db").write_bytes(b"no picture")
    (folder / "my.yaml").write_text(YAML)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["fit", *CONFIG, *QUIET, *GAUSSIANS, "--trainer.max_epochs=1"]) == 0
        assert main([*CERTIFY, "--methods=[exact]"]) == 0
    return folder


@pytest.fixture
def work(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_configuration_is_short() -> None:
    assert len(YAML.splitlines()) <= 10


def test_the_checkpoint_says_what_it_is_about(work: Path) -> None:
    recorded = torch.load(RUN.best, weights_only=True)["data"]
    assert recorded["class_names"] == list(CLASSES)
    assert recorded["reading"] == asdict(Reading("L"))
    assert recorded["encoder"]["init_args"]["model"] == "digits"


def test_the_whole_classifier_in_one_line(work: Path) -> None:
    classifier = ImageClassifier.from_run("runs/default")
    assert classifier.class_names == list(CLASSES)
    images = torch.rand(2, 1, 8, 8)
    expected = ImageClassifier.from_checkpoint(RUN.best, FrozenEncoder("digits"))
    assert torch.equal(classifier(images), expected(images))
    assert torch.equal(ImageClassifier.from_run(RUN.last)(images), expected(images))


def test_a_run_of_a_version_before_is_joined_to_its_configuration(work: Path, tmp_path: Path) -> None:
    old = RunFolder(tmp_path / "old")
    shutil.copytree(RUN.path, old.path)
    checkpoint = torch.load(old.best, weights_only=True)
    del checkpoint["data"]
    torch.save(checkpoint, old.best)
    classifier, images = ImageClassifier.from_run(old.path), torch.rand(2, 1, 8, 8)
    assert classifier.class_names is None
    assert torch.equal(classifier(images), ImageClassifier.from_run("runs/default")(images))
    old.config.write_text(old.config.read_text().replace("ellips.encoders.FrozenEncoder", "os.system"))
    with pytest.raises(ValueError, match="of which nothing is imported"):
        ImageClassifier.from_run(old.path)
    old.config.unlink()
    with pytest.raises(ValueError, match="which encoder it belongs to"):
        ImageClassifier.from_run(old.path)
    with pytest.raises(EncoderMismatchError):
        ImageClassifier.from_run(old.path, FrozenEncoder("test_resnet", weights="random"))


@pytest.mark.parametrize("command", ["test", "certify", "predict"])
def test_other_classes_and_another_reading_are_refused(command: str, work: Path, tmp_path: Path) -> None:
    given = [*CERTIFY, "--out", str(tmp_path)] if command == "certify" else [command, *CONFIG, *QUIET, *GAUSSIANS]
    with pytest.raises(DataMismatchError, match="resize: None against 4"):
        main([*given, "--data.init_args.resize=4"])
    other = tmp_path / "others"
    shutil.copytree(work / "pictures", other)
    for split in ("train", "test"):
        (other / split / "four").rename(other / split / "five")
    with pytest.raises(DataMismatchError, match="lacking: four; besides: five"):
        main([*given, f"--data.init_args.root={other}"])


def test_tested_and_checked(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["test", *CONFIG, *QUIET, *GAUSSIANS]) == 0
    assert "Certified accuracy on 12 test images" in capsys.readouterr().out
    assert main(["check", str(RUN.results("test").path / "latent-exact.safetensors")]) == 0
    assert "12 of 12 certificates are proven" in capsys.readouterr().out


def test_pictures_of_a_flat_folder(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The table has what certification of the same files finds, and what is printed is the table, cut off."""
    flat = work / "flat"
    shutil.copytree(work / "pictures" / "test" / "zero", flat)
    (flat / "notes.txt").write_text("mine")
    (flat / ".hidden.png").write_bytes(b"")
    assert main(["predict", "flat", "--out", "table.csv"]) == 0
    rows = rows_of(work / "table.csv")
    assert [row["file"] for row in rows] == [f"flat/{i:02}.png" for i in range(TEST)]
    assert {row["class"] for row in rows} == {"zero"}
    assert {(row["space"], row["soundness"]) for row in rows} == {("latent", "exact")}
    saved = load_certificates(RUN.results("test").path / "latent-exact.safetensors").certificate.radius[-TEST:]
    assert [float(row["radius"]) for row in rows] == pytest.approx(saved.tolist(), rel=1e-4)
    capsys.readouterr()
    assert main(["certify-image", *[row["file"] for row in rows]]) == 0
    printed = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [(line[0], line[1], line[4]) for line in printed] == [(r["file"], r["class"], "exact") for r in rows]
    for line, row in zip(printed, rows, strict=True):
        assert 0 <= float(row["radius"]) - float(line[2]) <= 1.01e-4


@pytest.mark.parametrize(
    ("radius", "printed"),
    [(123.45678, "123.456"), (9999.99999, "9999.99"), (0.12345678, "0.123456"), (0.0, "0.0"), (math.inf, "inf")],
)
def test_no_radius_is_printed_rounded_up(radius: float, printed: str, capsys: pytest.CaptureFixture[str]) -> None:
    _show([PictureRow("a.png", "zero", radius, "latent", "exact")])
    assert capsys.readouterr().out.splitlines()[1].split()[2] == printed


def test_radii_on_the_image(work: Path) -> None:
    options = ["--certifiers+=ellips.lipschitz.JacobianNorm"]
    assert main(["predict", "pictures/test/one", "--out", "image.csv", *options]) == 0
    rows = rows_of(work / "image.csv")
    assert {(row["space"], row["soundness"]) for row in rows} == {("input", "estimated")}
    images = torch.from_numpy(np.stack([np.array(Image.open(row["file"])) for row in rows])).unsqueeze(1) / 255
    certificate = ImageClassifier.from_run("runs/default").certify(images, JacobianNorm())
    assert [float(row["radius"]) for row in rows] == pytest.approx(certificate.radius.tolist(), rel=1e-4)


def test_more_pictures_than_share_alpha_are_refused(work: Path, tmp_path: Path) -> None:
    """What two pictures share alpha for is not true of four together."""

    def options(count: int) -> str:
        given = f"{{sigma: 0.1, num_samples: 100, num_images: {count}}}"
        return f"--certifiers=[{{class_path: ellips.input_certifiers.SmoothedDecision, init_args: {given}}}]"

    words = ["predict", "pictures/test/one", "--out", str(tmp_path / "votes.csv")]
    with pytest.raises(ValueError, match=f"num_images=2 images to share alpha=.* but got {TEST}"):
        main([*words, options(2)])
    assert not (tmp_path / "votes.csv").exists()
    assert main([*words, options(TEST)]) == 0
    assert {row["soundness"] for row in rows_of(tmp_path / "votes.csv")} == {"probabilistic"}


def test_a_picture_without_a_class_has_none(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original: Any = ImageClassifier.from_run

    def abstaining(run: object) -> ImageClassifier:
        classifier: ImageClassifier = original(run)
        certify = classifier.head.ellips.certify

        def none(z: torch.Tensor, **options: Any) -> Certificate:
            found = certify(z, **options)
            return found.map(lambda x: torch.zeros_like(x) if x.is_floating_point() else torch.full_like(x, -1))

        monkeypatch.setattr(classifier.head.ellips, "certify", none)
        return classifier

    monkeypatch.setattr(ImageClassifier, "from_run", abstaining)
    monkeypatch.setattr(
        "ellips.lightning_modules.certifier.confirm", lambda ellips, z, certificate, prover: certificate
    )
    assert main(["predict", "pictures/test/one", "--out", str(tmp_path / "none.csv")]) == 0
    found = rows_of(tmp_path / "none.csv")
    assert {(row["class"], float(row["radius"])) for row in found} == {("none (abstained)", 0.0)}
