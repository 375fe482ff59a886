"""The CIFAR-10 benchmark on a few small pictures: from nothing to the page, and on from what was finished."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import cifar10
from benchmarks._cifar10.data import Sizes, linear_certificate
from benchmarks._cifar10.store import Store, even_rows, spread_rows
from ellips import automatic_regularization
from tests.benchmarks.test_cifar10_page import check_page

TINY = Sizes(
    images=10,
    images_votes=3,
    images_10000=1,
    images_denoised=2,
    images_early=2,
    images_art=1,
    images_clever=1,
    images_attacked=3,
    images_attacked_votes=1,
    held_out=10,
    votes=40,
    held_out_votes=10,
    clever_batches=2,
    clever_samples=2,
    steps=1,
    steps_deterministic=2,
    epochs=1,
    rounds=1,
)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten classes of coloured noise, 32x32, that differ in their mean."""
    root, generator = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for split, count in (("train", 10), ("test", 2)):
        for label in range(10):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = generator.normal([25 * label, 128, 255 - 25 * label], 40, (32, 32, 3))
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{i}.jpg", quality=90)
    return root


@pytest.fixture(scope="module", autouse=True)
def tiny() -> Iterator[None]:
    """Few votes and few settings to choose from."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cifar10, "QUICK", TINY)
        patch.setattr(cifar10.votes, "FEW", 60)
        patch.setattr(cifar10.votes, "MANY", 120)
        patch.setattr(cifar10.votes, "STOPPING", (0.1,))
        patch.setattr(cifar10.costs, "ONCE", 1)
        patch.setattr(automatic_regularization, "POOLING", (0.5, 1.0))
        patch.setattr(automatic_regularization, "SHRINKAGE", (0.1, 0.5))
        yield


@pytest.fixture(scope="module")
def out(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two stages."""
    folder = tmp_path_factory.mktemp("out")
    cifar10.main([*arguments(pictures, folder), "--stages", "latent", "votes"])
    return folder


def arguments(pictures: Path, out: Path) -> list[str]:
    return ["--quick", "--data", str(pictures), "--out", str(out)]


def test_stages_of_a_run_that_was_stopped_go_on_from_what_was_finished(
    out: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = {path: path.read_text() for path in sorted((out / "parts").rglob("*.json"))}
    assert len(parts) == 10
    lost = [path for path in parts if path.parent.name == "votes-60" or path.name == "objectives.json"]
    for path in lost:
        path.unlink()
    capsys.readouterr()
    cifar10.main([*arguments(pictures, out), "--stages", "latent", "votes"])
    assert capsys.readouterr().err.count("s of processor time") == len(lost) == 2
    assert {path: path.read_text() for path in parts} == parts  # what was lost came out the same, to the last bit


def test_more_images_take_nothing_away(
    out: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(out, tmp_path, dirs_exist_ok=True)  # the other tests count its parts
    capsys.readouterr()
    cifar10.main([*arguments(pictures, tmp_path), "--images-early", "3", "--stages", "votes"])
    assert capsys.readouterr().err.count("s of processor time") == 1


@pytest.mark.faults
@pytest.mark.timeout(900)  # minutes, where bfloat16 is slow
def test_a_whole_run_ends_with_a_page_of_every_kind_of_claim(pictures: Path, tmp_path: Path) -> None:
    result = cifar10.main(arguments(pictures, tmp_path))
    text = (tmp_path / "cifar10.md").read_text(encoding="utf-8")
    check_page(text, tmp_path)
    assert str(tmp_path) not in text
    assert str(pictures) not in text
    ratios, found = result["ratios"], result["measurements"]
    assert ratios["deterministic_violations"] == 0
    assert ratios["certify_speedup_over_smoothing_120"] > 1
    assert ratios["exact_over_theorem_mean_radius"] >= ratios["pairwise_over_theorem_mean_radius"] >= 1
    assert found["attacks"]["deterministic"]["attacked"] == TINY.images_attacked
    assert found["probabilistic"]["art"] == {"images": 1, "same": 1, "largest_difference": 0.0}
    for path in (tmp_path / "parts").glob("*.json"):
        if path.name in ("deterministic.json", "costs.json"):
            path.unlink()
    again = cifar10.main(arguments(pictures, tmp_path))["measurements"]
    assert {**again, "costs": None} == {**found, "costs": None}  # seconds are others


def test_a_folder_of_another_run_is_refused(out: Path, pictures: Path) -> None:
    with pytest.raises(ValueError, match="name another folder with --out"):
        cifar10.main([*arguments(pictures, out), "--seed", "1"])


def test_a_part_that_failed_leaves_no_file(tmp_path: Path) -> None:
    store = Store(tmp_path, {"a": 1})

    def compute(part: slice) -> list[int]:
        if part.start == 4:
            raise KeyboardInterrupt
        return list(range(part.start, part.stop))

    with pytest.raises(KeyboardInterrupt):
        store.rows("rows", 6, 2, compute)
    assert [path.name for path in sorted((tmp_path / "parts" / "rows").iterdir())] == [
        "00000-00002.json",
        "00002-00004.json",
    ]
    assert store.rows("rows", 6, 2, lambda part: [9] * (part.stop - part.start)) == [0, 1, 2, 3, 9, 9]


@pytest.mark.parametrize(("total", "count"), [(10_000, 500), (5000, 2000), (7, 7), (5, 9)])
def test_subsets_are_spread_over_all_rows(total: int, count: int) -> None:
    even, order = even_rows(total, count), spread_rows(total, total)
    assert len(even) == len(set(even)) == min(total, count)
    assert max(b - a for a, b in pairwise([*even, total])) <= -(-total // len(even))
    assert sorted(order) == list(range(total))
    assert spread_rows(total, 3) == order[:3]
    few = sorted(order[: total // 4])
    assert total < 100 or max(b - a for a, b in pairwise([0, *few, total])) <= 8  # of a quarter: twice the mean


def test_the_linear_margin_is_the_distance_to_the_nearest_boundary() -> None:
    torch.manual_seed(0)
    layer, z = torch.nn.Linear(5, 4), torch.randn(20, 5)
    prediction, radius = (each.detach() for each in linear_certificate(layer, z))
    weight, bias = layer.weight.detach().double(), layer.bias.detach().double()
    for i in range(20):
        top = int(prediction[i])
        away = [k for k in range(4) if k != top]
        gaps = [(z[i].double() @ (weight[top] - weight[k]) + bias[top] - bias[k]) for k in away]
        distance = [float(gap / (weight[top] - weight[k]).norm()) for gap, k in zip(gaps, away, strict=True)]
        assert float(radius[i]) == pytest.approx(min(distance))
