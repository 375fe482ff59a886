from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from datamodules import DigitsDataModule
from datamodules.cache import CacheWriter, FeatureCache
from datamodules.manifest import CacheMismatchError, Plan
from ellips.encoders import FrozenEncoder
from ellips.files import replacing
from ellips.types import FeatureBatch, ImageBatch


@pytest.fixture(scope="module")
def encoder() -> FrozenEncoder:
    return FrozenEncoder("test_resnet", weights="digits")


def digits(encoder: FrozenEncoder, folder: Path, **arguments: object) -> DigitsDataModule:
    return DigitsDataModule(encoder, **{"batch_size": 32, "shard_rows": 100, "cache_dir": folder, **arguments})


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def features(data: DigitsDataModule) -> torch.Tensor:
    batches = [data.on_after_batch_transfer(batch, 0) for batch in data.val_dataloader()]
    assert torch.cat([batch.index for batch in batches]).tolist() == list(range(270))
    return torch.cat([batch.feature for batch in batches])


def test_cached_features_are_the_streamed_ones(encoder: FrozenEncoder, tmp_path: Path) -> None:
    streamed, cached = DigitsDataModule(encoder), digits(encoder, tmp_path)
    torch.testing.assert_close(features(cached), features(streamed), rtol=1e-4, atol=1e-4)
    batch = next(iter(cached.val_dataloader()))
    assert isinstance(batch, FeatureBatch)
    assert torch.equal(batch.label, next(iter(DigitsDataModule(encoder, batch_size=32).val_dataloader())).label)


def test_cached_features_keep_their_digits_whatever_torchs_default_is(encoder: FrozenEncoder, tmp_path: Path) -> None:
    expected, before = features(digits(encoder, tmp_path)), torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = features(digits(encoder, tmp_path))
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(found, expected)
    assert found.dtype == torch.float32


def test_a_later_run_encodes_nothing(encoder: FrozenEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = features(digits(encoder, tmp_path))
    before = contents(tmp_path)
    monkeypatch.setattr(FrozenEncoder, "encode", lambda *_: pytest.fail("encoded again"))
    assert torch.equal(features(digits(encoder, tmp_path)), first)
    assert contents(tmp_path) == before


def test_images_come_beside_cached_features_when_asked(encoder: FrozenEncoder, tmp_path: Path) -> None:
    batch = next(iter(digits(encoder, tmp_path, keep_images=True).val_dataloader()))
    expected = next(iter(DigitsDataModule(encoder, batch_size=32).val_dataloader()))
    assert torch.equal(batch.image, expected.image)
    torch.testing.assert_close(batch.feature, encoder(expected.image), rtol=1e-4, atol=1e-4)


def test_augmented_training_images_are_streamed_all_the_same(encoder: FrozenEncoder, tmp_path: Path) -> None:
    data = digits(encoder, tmp_path, augment=lambda image: image)
    assert isinstance(next(iter(data.train_dataloader())), ImageBatch)
    assert isinstance(next(iter(data.fit_dataloader())), FeatureBatch)


class Killed(BaseException):
    """Stands for a signal: nothing catches it."""


@pytest.mark.parametrize("stop_after", [0, 3, 4, 7])
def test_what_was_interrupted_goes_on_and_ends_the_same(
    encoder: FrozenEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_after: int
) -> None:
    digits(encoder, tmp_path / "whole").open_cache("val")
    encode, calls = FrozenEncoder.encode, []

    def interrupted(self: FrozenEncoder, images: torch.Tensor) -> torch.Tensor:
        calls.append(len(images))
        if len(calls) > stop_after:
            raise Killed
        return encode(self, images)

    monkeypatch.setattr(FrozenEncoder, "encode", interrupted)
    with pytest.raises(Killed):
        digits(encoder, tmp_path / "broken").open_cache("val")
    finished = len(list((tmp_path / "broken").rglob("shard-*")))
    assert finished == stop_after // 4  # four batches of at most 32 a shard of 100
    folder = tmp_path / "broken" / "val"
    (folder / "shard-00002.safetensors.part-host-1").write_text("left behind by version 0.1")
    killed = replacing(folder / "shard-00009.safetensors")  # of a process that never comes to the end of the block
    killed.__enter__().write_text("left behind")
    assert len(contents(folder)) == finished + 3
    calls.clear()
    monkeypatch.setattr(FrozenEncoder, "encode", encode)
    digits(encoder, tmp_path / "broken").open_cache("val")
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")


def test_several_processes_write_the_same_bytes(encoder: FrozenEncoder, tmp_path: Path) -> None:
    digits(encoder, tmp_path / "one").open_cache("val")
    for rank in (1, 0):  # one after the other: rank 0 ends it
        data = digits(encoder, tmp_path / "two")
        if rank == 1:
            with pytest.raises(FileNotFoundError, match="incomplete"):
                data.open_cache("val", processes=(2, rank))
            assert [path.name for path in sorted((tmp_path / "two" / "val").glob("shard-*"))] == [
                "shard-00001.safetensors"
            ]
        else:
            data.open_cache("val", processes=(2, rank))
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_a_cache_of_something_else_is_refused(encoder: FrozenEncoder, tmp_path: Path) -> None:
    digits(encoder, tmp_path).open_cache("val")
    other = FrozenEncoder("test_resnet", weights="random", input_size=32)
    with pytest.raises(CacheMismatchError, match=r"identity.encoder.weights: expected 'sha256:.*but got 'sha256:"):
        digits(other, tmp_path).open_cache("val")
    half = FrozenEncoder("test_resnet", weights="digits", precision="16")
    with pytest.raises(CacheMismatchError, match=r"dtype: expected 'float16'.*\n.*identity\.precision: expected '16"):
        digits(half, tmp_path, cache_dtype="float16").open_cache("val")
    shutil.copytree(tmp_path / "val", tmp_path / "test")
    with pytest.raises(CacheMismatchError, match=r"identity\.data\.name: expected 'digits/test'"):
        digits(encoder, tmp_path).open_cache("test")


def test_a_begun_cache_of_something_else_is_refused(encoder: FrozenEncoder, tmp_path: Path) -> None:
    plan = Plan({"encoder": "a"}, rows=5, feature_dim=2)
    CacheWriter(tmp_path, plan)
    with pytest.raises(CacheMismatchError, match="'b' but got 'a'"):
        CacheWriter(tmp_path, Plan({"encoder": "b"}, rows=5, feature_dim=2))
    with pytest.raises(FileNotFoundError, match="fill it with `ellips encode --config"):
        FeatureCache(tmp_path, plan)


def test_changed_and_missing_shards_are_refused(encoder: FrozenEncoder, tmp_path: Path) -> None:
    digits(encoder, tmp_path).open_cache("val")
    shard = tmp_path / "val" / "shard-00001.safetensors"
    with shard.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\1")
    with pytest.raises(ValueError, match=r"shard-00001.*was changed"):
        digits(encoder, tmp_path).open_cache("val")
    shard.unlink()
    with pytest.raises(ValueError, match=r"shard-00001.*missing"):
        digits(encoder, tmp_path).open_cache("val")


def test_half_precision_halves_the_file_and_loses_nothing(tmp_path: Path) -> None:
    encoder = FrozenEncoder("test_resnet", weights="digits", precision="16")
    full, half = (digits(encoder, tmp_path / name, cache_dtype=name) for name in ("float32", "float16"))
    a, b = features(full), features(half)
    assert b.dtype == torch.float32
    assert torch.equal(a, b)
    sizes = [(tmp_path / name / "val" / "shard-00000.safetensors").stat().st_size for name in ("float32", "float16")]
    assert sizes[1] < 0.6 * sizes[0]


def test_the_manifest_says_what_is_there(encoder: FrozenEncoder, tmp_path: Path) -> None:
    digits(encoder, tmp_path).open_cache("val")
    manifest = json.loads((tmp_path / "val" / "manifest.json").read_text())
    identity = manifest["identity"]
    assert {**identity["encoder"], "precision": identity["precision"]} == encoder.fingerprint()
    assert (manifest["rows"], manifest["dtype"], manifest["skipped"]) == (270, "float32", [])
    assert [shard["rows"] for shard in manifest["shards"]] == [100, 100, 70]


@pytest.mark.parametrize("arguments", [{"cache_dtype": "int8"}, {"shard_rows": 0}, {"precision": "bf16"}])
def test_wrong_arguments_are_refused(encoder: FrozenEncoder, tmp_path: Path, arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="Expected"):
        digits(encoder, tmp_path, **arguments).open_cache("val")
    with pytest.raises(ValueError, match="`cache_dir`"):
        DigitsDataModule(encoder).open_cache("val")


def small_cache(folder: Path, rows: int = 24) -> Plan:
    """A complete cache of six shards."""
    plan = Plan({"encoder": "a"}, rows=rows, feature_dim=2, shard_rows=4)
    writer = CacheWriter(folder, plan)
    for shard in writer.missing():
        index = torch.tensor(plan.shard_range(shard))
        writer.write(shard, torch.rand(len(index), 2), index % 3, index)
    writer.finish(lambda row: None)
    return plan


def alter(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest["shards"].pop(),
        lambda manifest: manifest["shards"].pop(0),
        lambda manifest: manifest["shards"].append(manifest["shards"][0]),
        lambda manifest: manifest["shards"].reverse(),
        lambda manifest: manifest["shards"][0].update(rows=3),
        lambda manifest: manifest["shards"][0].pop("sha256"),
        lambda manifest: manifest["skipped"].append({"row": 5, "path": "none"}),
        lambda manifest: manifest["skipped"].append({"row": "5", "path": "none"}),
        lambda manifest: (
            manifest["skipped"].append({"row": 10**12, "path": "none", "more": 1}) or manifest.pop("shards")
        ),
        lambda manifest: manifest.pop("skipped"),
        lambda manifest: manifest["shards"][0].update(file="../../elsewhere.safetensors"),
        lambda manifest: manifest["shards"][0].update(file="/etc/passwd"),
        lambda manifest: manifest["shards"][0].update(file="shard-00001.safetensors"),
    ],
)
def test_a_manifest_that_was_altered_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cache/val"
    plan = small_cache(folder)
    assert len(FeatureCache(folder, plan)) == 24
    shutil.copy(folder / "shard-00000.safetensors", tmp_path / "elsewhere.safetensors")
    alter(folder, change)
    with pytest.raises(ValueError, match="delete the cache"):
        FeatureCache(folder, plan)


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00", '{"complete": true}', "null"])
def test_a_manifest_that_is_none_is_refused_by_name(tmp_path: Path, text: str) -> None:
    plan = small_cache(tmp_path)
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=str(tmp_path)):
        FeatureCache(tmp_path, plan)


def test_a_shard_of_an_unfinished_cache_that_was_damaged_is_made_again(tmp_path: Path) -> None:
    plan = Plan({"encoder": "a"}, rows=8, feature_dim=2, shard_rows=4)
    writer = CacheWriter(tmp_path, plan)
    writer.write(0, torch.rand(4, 2), torch.arange(4), torch.arange(4))
    assert writer.missing() == [1]
    path = tmp_path / "shard-00000.safetensors"
    data = bytearray(path.read_bytes())
    for place in (-1, -40, -80):  # a feature, a label, a position
        data[place] ^= 1
        path.write_bytes(data)
        with pytest.warns(UserWarning, match=r"shard-00000.*damaged.*encoded again"):
            assert writer.missing() == [0, 1]
        data[place] ^= 1
    path.write_bytes(data)
    assert writer.missing() == [1]
