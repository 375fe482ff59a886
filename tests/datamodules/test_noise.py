"""Noisy copies of images: the same whoever draws them, cached once, fitted to, and never mixed up with clean ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import ArraySource, EncodedDataModule, GaussianNoise, ImageFolderDataModule, NoisyImages, Split
from datamodules.cache import FeatureCache
from datamodules.manifest import CacheMismatchError, Plan
from ellips.encoders import FrozenEncoder
from ellips.gaussians import ClassMoments
from ellips.splits import digits_part
from ellips.types import FeatureBatch

SIZES: dict[str, int] = {"train": 23, "val": 11, "test": 7}


class FewDigits(EncodedDataModule):
    """The first images of each split."""

    @property
    def class_names(self) -> list[str]:
        return [str(digit) for digit in range(10)]

    def make_source(self, split: Split) -> ArraySource:
        images, labels = digits_part(split)
        return ArraySource(split, images[: SIZES[split]], labels[: SIZES[split]].numpy())


@pytest.fixture(scope="module")
def encoder() -> FrozenEncoder:
    return FrozenEncoder("test_resnet", weights="digits")


def few(encoder: FrozenEncoder, **options: Any) -> FewDigits:
    noise = {"augment": GaussianNoise(0.25), "copies": 4, "val_copies": 6}
    return FewDigits(encoder, **{"batch_size": 16, "shard_rows": 10, **noise, **options})


def collect(data: FewDigits, loader: Iterable[Any]) -> FeatureBatch:
    batches = [data.on_after_batch_transfer(batch, 0) for batch in loader]
    columns = list(zip(*[batch[:3] for batch in batches], strict=True))
    return FeatureBatch(*(torch.cat(column) for column in columns))


def source(count: int = 5) -> ArraySource:
    return ArraySource("grey", torch.full((count, 1, 40, 40), 0.5), list(range(count)))


def test_the_noise_has_the_standard_deviation_and_is_not_clipped() -> None:
    batch = NoisyImages(source(), GaussianNoise(0.4), 8, "key")[list(range(40))]
    noise = (batch.image - 0.5).double()
    assert noise.numel() == 64_000
    assert float(noise.mean()) == pytest.approx(0, abs=5 * 0.4 / 253)
    assert float(noise.std()) == pytest.approx(0.4, rel=5 / 357)
    assert float(batch.image.min()) < 0 < 1 < float(batch.image.max())
    # No draw is another's, and none is correlated with another.
    correlation = torch.corrcoef(noise.flatten(1))
    assert float((correlation - torch.eye(40)).abs().max()) < 0.15  # six standard deviations of 1/40


def test_the_noise_is_that_of_the_copy_in_any_batch_and_order() -> None:
    images = NoisyImages(source(), GaussianNoise(0.4), 3, "key")
    assert len(images) == 15
    whole = images[list(range(15))]
    assert whole.index.tolist() == whole.label.tolist() == [row // 3 for row in range(15)]
    rows = [14, 2, 7, 2, 0]
    some = images[rows]
    assert torch.equal(some.image, whole.image[rows])
    assert some.index.tolist() == [4, 0, 2, 0, 0]
    # More copies leave the first as they are; what else tells the noise apart changes it.
    more = NoisyImages(source(), GaussianNoise(0.4), 5, "key")
    assert torch.equal(more[[0, 1, 2, 5]].image, whole.image[[0, 1, 2, 3]])
    assert not torch.equal(NoisyImages(source(), GaussianNoise(0.4), 3, "other")[[0]].image, whole.image[:1])


def test_gaussians_see_every_copy_and_evaluation_sees_clean_images(encoder: FrozenEncoder) -> None:
    data = few(encoder)
    fit, val, votes = (
        collect(data, loader()) for loader in (data.fit_dataloader, data.val_dataloader, data.votes_dataloader)
    )
    assert fit.index.tolist() == [row // 4 for row in range(92)]
    assert votes.index.tolist() == [row // 6 for row in range(66)]
    noisy = torch.stack(
        [GaussianNoise(0.25).draw(digits_part("train")[0][i], f"0/train/{i}/{j}") for i in range(23) for j in range(4)]
    )
    torch.testing.assert_close(fit.feature, encoder(noisy), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(val.feature, encoder(digits_part("val")[0][:11]), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(votes.feature[::6], val.feature, atol=1e-2)
    moments = ClassMoments(10, 96)
    moments.update(fit.feature, fit.label)
    expected = 4 * torch.bincount(digits_part("train")[1][:23], minlength=10)
    assert torch.equal(moments.compute().count, expected)  # each copy is a sample


def test_a_cache_changes_nothing_and_is_filled_once(
    encoder: FrozenEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    streamed, cached = few(encoder), few(encoder, cache_dir=tmp_path)
    cached.setup("fit")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "train-sigma0.25-copies4-seed0", "val", "votes-sigma0.25-copies6-seed0",
    ]  # fmt: skip
    monkeypatch.setattr(FrozenEncoder, "encode", lambda *_: pytest.fail("encoded again"))
    again = few(encoder, cache_dir=tmp_path)
    found = [
        collect(again, loader()) for loader in (again.fit_dataloader, again.votes_dataloader, again.train_dataloader)
    ]
    monkeypatch.undo()
    for batch, loader in zip(
        found, (streamed.fit_dataloader, streamed.votes_dataloader, streamed.train_dataloader), strict=True
    ):
        expected = collect(streamed, loader())
        assert torch.equal(batch.index, expected.index)
        assert torch.equal(batch.label, expected.label)
        torch.testing.assert_close(batch.feature, expected.feature, rtol=1e-4, atol=1e-4)


def test_interrupted_or_shared_the_cache_is_the_same_to_the_byte(
    encoder: FrozenEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few(encoder, cache_dir=tmp_path / "whole").open_cache("votes")
    encode, calls = FrozenEncoder.encode, []

    def interrupted(self: FrozenEncoder, images: torch.Tensor) -> torch.Tensor:
        calls.append(len(images))
        if len(calls) > 3:
            raise KeyboardInterrupt
        return encode(self, images)

    monkeypatch.setattr(FrozenEncoder, "encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        few(encoder, cache_dir=tmp_path / "shared").open_cache("votes")
    monkeypatch.undo()
    with pytest.raises(FileNotFoundError, match="incomplete"):
        few(encoder, cache_dir=tmp_path / "shared").open_cache("votes", processes=(2, 1))
    few(encoder, cache_dir=tmp_path / "shared").open_cache("votes", processes=(2, 0))
    whole, shared = (
        {path.name: path.read_bytes() for path in (tmp_path / name).rglob("*.*") if path.is_file()}
        for name in ("whole", "shared")
    )
    assert len(whole) == 8  # seven shards of ten rows, which cut through an image's six copies, and the manifest
    assert shared == whole


@pytest.mark.parametrize(
    "other",
    [
        {"augment": GaussianNoise(0.5)},
        {"copies": 3},
        {"seed": 1},
        {"augment": None, "copies": None, "val_copies": None},
    ],
)
def test_each_noise_has_a_cache_of_its_own_and_refuses_that_of_another(
    encoder: FrozenEncoder, tmp_path: Path, other: dict[str, Any]
) -> None:
    few(encoder, cache_dir=tmp_path).open_cache("train")
    first = next(tmp_path.iterdir())
    few(encoder, cache_dir=tmp_path, **other).open_cache("train")
    second = next(path for path in tmp_path.iterdir() if path != first)
    shutil.rmtree(second)
    shutil.copytree(first, second)
    with pytest.raises(CacheMismatchError, match=r"identity\.noise"):
        few(encoder, cache_dir=tmp_path, **other).open_cache("train")


@pytest.mark.parametrize("cached", [False, True])
def test_kept_images_are_those_that_were_encoded(encoder: FrozenEncoder, tmp_path: Path, cached: bool) -> None:
    data = few(encoder, keep_images=True, cache_dir=tmp_path if cached else None)
    for batch in map(lambda batch: data.on_after_batch_transfer(batch, 0), data.train_dataloader()):
        torch.testing.assert_close(encoder(batch.image), batch.feature, rtol=1e-4, atol=1e-4)


def test_copies_stay_together_in_a_training_batch_only_if_asked(encoder: FrozenEncoder) -> None:
    for together in (False, True):
        loader = few(encoder, batch_by_image=together, batch_size=13).train_dataloader()
        rows = [batch.index for batch in loader]
        assert sorted(torch.cat(rows).tolist()) == sorted(list(range(23)) * 4)
        assert all(len(index) <= 13 for index in rows)
        grouped = all(len(index) % 4 == 0 and bool((index.view(-1, 4) == index[::4, None]).all()) for index in rows)
        assert grouped == together


def test_votes_come_whole_whatever_the_batch_size(encoder: FrozenEncoder) -> None:
    loader = few(encoder, eval_batch_size=4).votes_dataloader()
    assert [batch.index.tolist() for batch in loader] == [[image] * 6 for image in range(11)]


def test_without_copies_noise_is_drawn_anew_and_nothing_is_fitted_to_it(encoder: FrozenEncoder) -> None:
    data = few(encoder, copies=None, val_copies=None, batch_size=92)
    first, second = (next(iter(data.train_dataloader())) for _ in range(2))
    assert torch.equal(first.index, second.index)
    clean = digits_part("train")[0]
    assert float((first.image - second.image).std()) == pytest.approx(0.25 * 2**0.5, rel=0.1)
    assert torch.equal(next(iter(data.fit_dataloader())).image, clean[:23])
    assert data.noise_sigma is None
    assert data.vote_copies is None


@pytest.mark.parametrize(
    ("options", "cure"),
    [
        ({"augment": None}, "set augment: .*GaussianNoise"),
        ({"augment": torch.flip}, "set augment: .*or leave out copies"),
        ({"copies": None}, "set copies"),
        ({"copies": 0, "val_copies": None}, "`copies` to be at least 1"),
        ({"val_copies": 0}, "`val_copies` to be at least 1"),
        ({"copies": None, "val_copies": None, "batch_by_image": True}, "leave out batch_by_image"),
        ({"batch_by_image": True, "batch_size": 3}, "raise batch_size"),
    ],
)
def test_what_does_not_go_together_is_refused_with_the_cure(
    encoder: FrozenEncoder, options: dict[str, Any], cure: str
) -> None:
    with pytest.raises(ValueError, match=cure):
        few(encoder, **options)


def test_votes_and_noise_that_were_not_asked_for_are_refused(encoder: FrozenEncoder) -> None:
    with pytest.raises(ValueError, match=r"set augment .*val_copies"):
        few(encoder, val_copies=None).votes_dataloader()
    with pytest.raises(ValueError, match="sigma"):
        GaussianNoise(0.0)


def test_an_image_that_is_skipped_is_skipped_with_all_its_copies(tmp_path: Path, encoder: FrozenEncoder) -> None:
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for i in range(4):
                Image.fromarray(generator.integers(0, 255, (8, 8), dtype=np.uint8)).save(folder / f"{i}.png")
    (tmp_path / "train" / "cat" / "2.png").write_text("no image")
    data = ImageFolderDataModule(
        encoder, tmp_path, val_dir="test", mode="L", on_bad_image="skip", augment=GaussianNoise(0.1), copies=3,
        cache_dir=tmp_path / "cache", shard_rows=4, batch_size=4, keep_images=True,
    )  # fmt: skip
    batches = list(data.fit_dataloader())
    assert torch.cat([batch.index for batch in batches]).tolist() == [i for i in range(8) if i != 2 for _ in range(3)]
    for batch in batches:
        torch.testing.assert_close(encoder(batch.image), batch.feature, rtol=1e-4, atol=1e-4)
    manifest = json.loads(next((tmp_path / "cache").glob("train*/manifest.json")).read_text())
    assert manifest["skipped"] == [{"row": 2, "path": str(tmp_path / "train" / "cat" / "2.png")}]
    assert len(data.skipped()) == 1


def test_a_cache_that_lacks_some_copies_of_an_image_is_refused(encoder: FrozenEncoder, tmp_path: Path) -> None:
    data = few(encoder, cache_dir=tmp_path)
    data.open_cache("train")
    manifest = json.loads((tmp_path / "train-sigma0.25-copies4-seed0" / "manifest.json").read_text())
    sizes = {name: manifest[name] for name in ("identity", "rows", "feature_dim", "dtype", "shard_rows")}
    for copies in (4, 5):
        plan = Plan(**sizes, copies=copies)
        if copies == 4:
            assert len(FeatureCache(tmp_path / "train-sigma0.25-copies4-seed0", plan)) == 92
            continue
        with pytest.raises(ValueError, match="all 5 copies of every image"):
            FeatureCache(tmp_path / "train-sigma0.25-copies4-seed0", plan)
