"""Batches of several images of some classes: what an epoch holds, over processes, and where it goes on."""

from __future__ import annotations

from collections import Counter
from itertools import chain
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from datamodules import GaussianMixtureDataModule
from datamodules.class_batches import ClassBatches
from datamodules.noise import GaussianNoise, NoisyImages
from datamodules.sampling import RowsDataset
from datamodules.sources import ArraySource, ImageDataset
from tests.datamodules.class_batches_worker import fit, fit_in_two
from tests.processes import run_together


def sampler(labels: list[int], batch: int, images: int, world: int = 1, rank: int = 0, **more: int) -> ClassBatches:
    found = ClassBatches(labels, batch, images, num_replicas=world, rank=rank, **more)
    found.set_epoch(3)
    return found


def labels_of(sizes: list[int], seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes)).tolist()


@st.composite
def shapes(draw: st.DrawFn) -> tuple[list[int], int, int]:
    """Sizes of classes, global batch size and images per class that go together."""
    sizes = draw(st.lists(st.integers(1, 40), min_size=2, max_size=12))
    images = draw(st.integers(1, 6))
    return sizes, draw(st.integers(images, images * len(sizes))), images


@given(shapes())
def test_an_epoch_has_every_image_once_and_no_batch_is_too_large(shape: tuple[list[int], int, int]) -> None:
    sizes, batch, images = shape
    labels = labels_of(sizes)
    order = sampler(labels, batch, images)
    batches = list(order)
    assert len(batches) == len(order)
    assert sorted(row for rows in batches for row in rows) == list(range(len(labels)))
    assert 1 <= min(map(len, batches))
    assert max(map(len, batches)) <= batch
    counts = [Counter(labels[row] for row in rows) for rows in batches]
    found = [len(count) for count in counts]
    assert max(found) - min(found) <= 1
    for label, size in enumerate(sizes):
        groups = [count[label] for count in counts if label in count]
        assert max(groups) - min(groups) <= 1
        if len(groups) < len(batches):  # else the class is too large for groups of M
            assert len(groups) == -(-size // images)
            assert max(groups) <= images
            assert min(groups) >= min(images / 2, size)


@given(shapes(), st.integers(2, 3))
def test_processes_share_the_batches_of_one(shape: tuple[list[int], int, int], world: int) -> None:
    sizes, batch, images = shape
    try:
        parts = [list(sampler(labels_of(sizes), batch, images, world, rank)) for rank in range(world)]
    except ValueError as error:  # more than the classes can fill, or too little for all processes
        assert "images_per_class" in str(error)  # noqa: PT017 - most shapes raise nothing
        return
    whole = list(sampler(labels_of(sizes), batch * world, images))
    assert [[*chain(*rows)] for rows in zip(*parts, strict=True)] == whole
    for rows in zip(*parts, strict=True):
        assert max(map(len, rows)) - min(map(len, rows)) <= 1
        assert min(map(len, rows)) >= 1


def test_equal_classes_come_in_turn_and_never_in_the_same_company() -> None:
    labels = labels_of([24] * 20)
    batches = list(sampler(labels, 20, 4))
    assert len(batches) == 24
    classes = [sorted({labels[row] for row in rows}) for rows in batches]
    assert all(len(found) == 5 for found in classes)
    rounds = [classes[i : i + 4] for i in range(0, 24, 4)]
    assert all(sorted(chain(*found)) == list(range(20)) for found in rounds)
    assert len({tuple(found) for found in classes}) == 24


def test_a_class_of_half_the_images_is_everywhere_and_leaves_room_for_the_rest() -> None:
    sizes = [400] + [20] * 20
    labels = labels_of(sizes)
    counts = [Counter(labels[row] for row in rows) for rows in sampler(labels, 40, 4)]
    assert len(counts) <= 24  # 800 images in batches of 40
    assert all(count[0] >= 16 for count in counts)
    assert all(images <= 4 for count in counts for label, images in count.items() if label)
    assert all(4 <= len(count) - 1 <= 5 for count in counts)


def test_unequal_classes_are_spread_over_the_whole_epoch() -> None:
    labels = labels_of([160, 80, 40] + [32] * 12)
    batches = list(sampler(labels, 32, 4))
    for label, groups in ((0, 40), (1, 20), (2, 10)):
        at = [i for i, rows in enumerate(batches) if any(labels[row] == label for row in rows)]
        assert len(at) == min(groups, len(batches))
        stride = len(batches) / len(at)
        assert max(np.diff([-1, *at, len(batches)])) <= 2 * stride + 1


def test_the_order_is_that_of_seed_and_epoch() -> None:
    labels = labels_of([30] * 10)
    first = list(sampler(labels, 20, 4))
    assert list(sampler(labels, 20, 4)) == first
    assert list(sampler(labels, 20, 4, seed=1)) != first
    other = sampler(labels, 20, 4)
    other.set_epoch(4)
    assert list(other) != first


def test_copies_of_an_image_stay_together() -> None:
    labels = labels_of([12] * 6)
    plain = list(sampler(labels, 8, 2))
    copied = list(sampler(np.repeat(labels, 3).tolist(), 24, 2, copies=3))
    assert copied == [[3 * row + copy for row in rows for copy in range(3)] for rows in plain]


@pytest.mark.parametrize(
    ("batch", "images", "world", "message"),
    [
        (0, 2, 1, "batch_size"),
        (8, 0, 1, "images_per_class"),
        (8, 9, 1, "at most the 8 images of a global batch but got 9"),
        (32, 2, 2, "raise it to 11 or more"),
        (1, 1, 2, None),
    ],
)
def test_what_makes_no_batches_is_refused(batch: int, images: int, world: int, message: str | None) -> None:
    labels = labels_of([10] * 6)
    if message is None:
        assert len(sampler(labels, batch, images, world)) == 30
        return
    with pytest.raises(ValueError, match=message):
        sampler(labels, batch, images, world)


def test_batches_that_cannot_be_shared_are_refused() -> None:
    with pytest.raises(ValueError, match="one may have 1"):
        sampler([0, 1, 1, 1], 1, 2, world=2)


def test_data_sets_say_the_class_of_each_row() -> None:
    source = ArraySource("x", torch.zeros(3, 1, 2, 2), [2, 0, 1])
    assert ImageDataset(source).labels.tolist() == [2, 0, 1]
    assert NoisyImages(source, GaussianNoise(0.1), 2, "k").labels.tolist() == [2, 2, 0, 0, 1, 1]

    class Silent(RowsDataset[int]):
        def __len__(self) -> int:
            return 8

        def __getitem__(self, rows: object) -> int:
            return 0

    class Data(GaussianMixtureDataModule):
        def training_dataset(self) -> Silent:
            return Silent()

    with pytest.raises(TypeError, match="Silent has no `labels`"):
        Data(images_per_class=2, batch_size=4).train_dataloader()


def test_a_loader_goes_on_within_an_epoch() -> None:
    data = GaussianMixtureDataModule(12, batch_size=24, images_per_class=4, train_size=600)
    first, second = data.train_dataloader(), data.train_dataloader()
    for loader in (first, second):
        loader.sampler.set_epoch(2)  # type: ignore[attr-defined]
    whole = [batch.index.tolist() for batch in first]
    assert all(len(set(data.dataset("train").labels[rows])) == 6 for rows in whole[:5])
    iterator = iter(second)
    seen = [next(iterator).index.tolist() for _ in range(7)]
    third = data.train_dataloader()
    third.sampler.set_epoch(2)  # type: ignore[attr-defined]
    third.load_state_dict(second.state_dict())  # type: ignore[attr-defined]
    assert seen + [batch.index.tolist() for batch in third] == whole


class Stop(L.Callback):
    """Ends a fit within its second epoch, after a checkpoint."""

    def on_train_batch_end(self, trainer: L.Trainer, *rest: object) -> None:
        if trainer.global_step == 8:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "stopped.ckpt")
            raise KeyboardInterrupt


def test_a_fit_that_was_stopped_ends_as_one_that_was_not(tmp_path: Path) -> None:
    whole = fit(1, tmp_path)
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        fit(1, tmp_path, callbacks=[Stop()])
    resumed = fit(1, tmp_path, ckpt_path=tmp_path / "stopped.ckpt")
    assert len(whole["losses"]) == 12
    for here, there in zip(whole["losses"][8:], resumed["losses"], strict=True):
        assert here == pytest.approx(there, rel=1e-6)
    for name, value in whole["state"].items():
        torch.testing.assert_close(resumed["state"][name], value, rtol=1e-6, atol=1e-6, msg=name)


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    alone = fit(1, tmp_path)
    run_together(fit_in_two, tmp_path)
    for rank in range(2):
        result = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        assert result["world"] == 2
        assert len(result["losses"]) == len(alone["losses"]) == 12
        for here, there in zip(alone["losses"], result["losses"], strict=True):
            assert here.keys() == there.keys() == {"CodingRateReduction", "Isotropy", "ClassMMD", "loss"}
            for name, value in here.items():
                assert there[name] == pytest.approx(value, rel=1e-9, abs=1e-9), name
        for name, value in alone["state"].items():
            difference = float((result["state"][name].double() - value.double()).norm())
            assert difference <= 1e-9 * max(1.0, float(value.double().norm())), name
    # Not so with other batches: the test can fail.
    other = fit(1, tmp_path, images_per_class=3)
    assert other["losses"][0]["loss"] != pytest.approx(alone["losses"][0]["loss"], rel=1e-3)
