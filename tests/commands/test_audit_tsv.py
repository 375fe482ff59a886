"""The audit of other people's tables: what is wrong with them is found, what is right is left alone."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scipy.stats import beta, norm
from torch import Tensor, nn

pytest.importorskip("art", reason="the audit's attacks come with the extra `bench`")

from ellips.audit import AttackSettings
from ellips.audit.foreign import (
    NORMALISATIONS,
    Row,
    Voting,
    normalisation_finding,
    read_rows,
    rounding_finding,
    table_findings,
)
from ellips.commands.audit_tsv import audit_tsv
from ellips.datamodules import DigitsDataModule
from ellips.encoders import FrozenEncoder, LipschitzEncoder
from ellips.files import ImageRecord, records_from_certificate, write_tsv
from ellips.head import EllipsHead
from ellips.input_certifiers.base import predict
from ellips.lipschitz import SpectralProduct
from ellips.pipeline import ImageClassifier
from ellips.splits import digits_part
from ellips.types import Series

QUICK = AttackSettings(steps=15, restarts=1, autoattack_points=0, batch_size=32)
SKIP = 30


@pytest.fixture(scope="module")
def data() -> DigitsDataModule:
    return DigitsDataModule(FrozenEncoder(LipschitzEncoder()), batch_size=512)


@pytest.fixture(scope="module")
def classifier(data: DigitsDataModule) -> ImageClassifier:
    images, labels = digits_part("train")
    head = EllipsHead(16, 10, latent_dim=None, pooling=0.5, shrinkage=0.9).fit(data.encoder(images), labels)
    return ImageClassifier(data.encoder, head)


@pytest.fixture(scope="module")
def records(classifier: ImageClassifier) -> list[ImageRecord]:
    images, labels = (part[::SKIP] for part in digits_part("test"))
    certificate = classifier.certify(images, SpectralProduct())
    index = torch.arange(0, SKIP * len(images), SKIP)
    series = Series("input", "exact", "spectral-product")
    return records_from_certificate(certificate, index, labels, series=series, seconds=0.0)


def audited(
    tmp_path: Path, records: list[ImageRecord], model: nn.Module, data: DigitsDataModule, **more: object
) -> dict:
    path = tmp_path / "theirs.tsv"
    write_tsv(path, records)
    found = audit_tsv(path, model, data, "deterministic", skip=SKIP, attack=QUICK, **more)  # type: ignore[arg-type]
    assert json.loads((tmp_path / "theirs.audit.json").read_text())["findings"] == found["findings"]
    return found


def wrong(found: dict) -> list[str]:
    return [entry["question"] for entry in found["findings"] if entry["verdict"] == "wrong"]


def test_an_honest_table_passes(
    tmp_path: Path, records: list[ImageRecord], classifier: ImageClassifier, data: DigitsDataModule
) -> None:
    found = audited(tmp_path, records, classifier, data)
    assert wrong(found) == []
    (entry,) = found["attacks"].values()
    assert (entry["passed"], entry["violations"]) == (True, 0)
    assert entry["attacked"] >= 10


def test_radii_that_are_too_large_are_broken(
    tmp_path: Path, records: list[ImageRecord], classifier: ImageClassifier, data: DigitsDataModule
) -> None:
    larger = [replace(record, radius=4 * record.radius) for record in records]
    (entry,) = audited(tmp_path, larger, classifier, data)["attacks"].values()
    assert entry["passed"] is False
    assert entry["violations"] > 5


def test_missing_repeated_and_mislabelled_images_are_named(
    tmp_path: Path, records: list[ImageRecord], classifier: ImageClassifier, data: DigitsDataModule
) -> None:
    relabelled = replace(records[4], label=(records[4].label + 1) % 10)
    changed = [records[0], records[0], *records[2:4], relabelled, *records[5:]]
    found = audited(tmp_path, changed, classifier, data, attacked=2)
    assert wrong(found) == ["Is every image there once?", "Are the labels those of the data set?"]
    details = " ".join(entry["detail"] for entry in found["findings"])
    assert f"1 missing ({SKIP})" in details
    assert "1 more than once (0)" in details
    assert f"({4 * SKIP})" in details


def test_lines_that_are_no_rows_and_running_counts_are_found(tmp_path: Path) -> None:
    path = tmp_path / "x.tsv"
    rows = [
        "0\t1\t1\t0.5\t1\t0:00:01",
        "1\t2\t2\t0.5\t2\t0:00:01",
        "broken",
        "2\t3\t3\tnan\t1\t1.0",
        "3\t1\t-1\t0.2\t0\t1.0",
    ]
    path.write_text("\n".join(["idx\tlabel\tpredict\tradius\tcorrect\ttime", *rows]) + "\n")
    found, findings = read_rows(path)
    assert [row.index for row in found] == [0, 1, 3]
    assert (findings[0].verdict, findings[0].detail) == ("wrong", "lines 4, 5 are no rows")
    told = table_findings(found, [0, 1, 3], {0: 1, 1: 2, 3: 1})
    assert [entry.question for entry in told if entry.verdict == "wrong"] == [
        "Does `correct` say whether they agree?",
        "Do abstentions have radius 0?",
    ]
    path.write_text("other\n")
    with pytest.raises(ValueError, match="header"):
        read_rows(path)


def row(radius: str) -> Row:
    return Row(2, 0, 1, 1, float(radius), radius, "1")


def test_radii_rounded_to_nearest_are_told_from_those_cut_off() -> None:
    voting = Voting(sigma=0.5, count=1000)
    radii = [0.5 * float(norm.ppf(beta.ppf(0.001, k, 1000 - k + 1))) for k in (700, 801, 850, 903, 951, 999, 1000)]
    cut = [row(f"{math.floor(1000 * radius) / 1000:.3f}") for radius in radii]
    nearest = [row(f"{radius:.3}") for radius in radii]
    assert rounding_finding(cut, voting).verdict == "fine"
    up = [float(n.written) > radius for n, radius in zip(nearest, radii, strict=True)]
    assert any(up)
    assert not all(up)
    found = rounding_finding(nearest, voting)
    assert found.verdict == "wrong"
    assert found.detail.startswith(f"{sum(up)} radii")
    endless = rounding_finding([*cut, row("inf")], voting)
    assert (endless.verdict, endless.detail) == ("wrong", "1 radii are infinite, which no votes prove (0)")
    # Without the noise it can only be doubted.
    assert rounding_finding(nearest, Voting()).verdict == "doubt"
    assert rounding_finding([row("0.123456")], Voting()).verdict == "fine"


def test_normalisation_outside_the_map_is_noticed() -> None:
    torch.manual_seed(0)
    weight = torch.randn(10, 48, dtype=torch.float64)
    images = torch.rand(100, 3, 4, 4)

    def bare(points: Tensor) -> Tensor:
        return points.flatten(1) @ weight.mT

    mean, std = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in NORMALISATIONS["ImageNet"])

    def whole(points: Tensor) -> Tensor:
        return bare((points - mean) / std)

    said = [Row(i, i, 0, int(p), 0.1, "0.1", "0") for i, p in enumerate(predict(whole, images.double()))]
    inside = normalisation_finding(said, images, lambda points: predict(whole, points))
    assert inside.verdict == "fine"
    outside = normalisation_finding(said, images, lambda points: predict(bare, points))
    assert outside.verdict == "wrong"
    assert "normalised for ImageNet" in outside.detail
    assert "4.5 times" in outside.detail
    other = [entry._replace(prediction=(entry.prediction + 1) % 10) for entry in said]
    assert normalisation_finding(other, images, lambda points: predict(whole, points)).verdict == "doubt"


class Threshold(nn.Module):
    """Two classes, split by the first pixel at 0.5: smoothed, its exact radius is the distance to that."""

    def forward(self, images: Tensor) -> Tensor:
        value = 50 * (images.flatten(1)[:, :1] - 0.5)
        return torch.cat([-value, value], dim=1)


def test_a_smoothed_classifier_is_judged_by_its_votes() -> None:
    from ellips.audit.votes import voted_target

    target = voted_target(Threshold(), Voting(sigma=0.25, copies=200))
    images = torch.full((3, 1, 2, 2), 0.5)
    images[0, 0, 0, 0], images[1, 0, 0, 0] = 0.9, 0.1
    assert target.predict(images.double()).tolist() == [1, 0, -1]
    assert target.alpha == 0.001
    points = images.clone().requires_grad_()
    target.scores(points)[:, 1].sum().backward()
    assert (points.grad[:, 0, 0, 0] > 0).all()
    with pytest.raises(ValueError, match="sigma"):
        voted_target(Threshold(), Voting())


def test_it_is_a_command(tmp_path: Path, records: list[ImageRecord], monkeypatch: pytest.MonkeyPatch) -> None:
    from ellips.commands import main

    path = tmp_path / "theirs.tsv"
    write_tsv(path, records)
    encoder = ["--data.encoder=ellips.encoders.FrozenEncoder", "--data.encoder.model=test_resnet"]
    arguments = ["--model=tests.commands.test_audit_tsv.Guess", "--data=ellips.datamodules.DigitsDataModule", *encoder]
    arguments += ["--data.encoder.weights=digits", f"--skip={SKIP}", "--attacked=2", "--attack.steps=3"]
    arguments += ["--attack.restarts=1", "--attack.autoattack_points=0"]
    # A model that guesses has other predictions than the table; its radii are claimed for nothing.
    assert main(["audit", f"--tsv={path}", "--soundness=deterministic", *arguments]) == 1
    found = json.loads((tmp_path / "theirs.audit.json").read_text())
    assert [entry["verdict"] for entry in found["findings"]].count("doubt") == 1
    with pytest.raises(ValueError, match=r"voting\.sigma"):
        main(["audit", f"--tsv={path}", "--soundness=probabilistic", *arguments])


class Guess(nn.Module):
    """Scores that have nothing to do with the digits."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :10] * torch.arange(10).to(images)
