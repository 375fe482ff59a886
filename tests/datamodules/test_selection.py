from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from datamodules import DigitsDataModule
from datamodules.selection import SelectionDataModule
from ellips.encoders import FrozenEncoder
from ellips.types import ImageBatch


@pytest.fixture(scope="module")
def digits() -> DigitsDataModule:
    return DigitsDataModule(FrozenEncoder(torch.nn.Flatten(), in_channels=1))


def test_skip_and_max_count_in_this_order(digits: DigitsDataModule) -> None:
    selection = SelectionDataModule(digits, "test", skip=20, max_images=5, batch_size=2)
    assert selection.indices == [0, 20, 40, 60, 80]
    assert selection.batches() == [[0, 20], [40, 60], [80]]
    batches = list(selection.predict_dataloader())
    assert torch.cat([batch.index for batch in batches]).tolist() == selection.indices
    source = digits.source("test")
    assert torch.cat([batch.label for batch in batches]).tolist() == source.labels[::20][:5].tolist()
    assert batches[0].image.shape == (2, 1, 8, 8)
    assert 0 <= batches[0].image.min() <= batches[0].image.max() <= 1


@pytest.mark.parametrize(("split", "size"), [("train", 1168), ("val", 270), ("test", 359)])
def test_all_images_of_each_split_by_default(digits: DigitsDataModule, split: str, size: int) -> None:
    selection = SelectionDataModule(digits, split)
    assert selection.indices == list(range(size))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_processes_share_whole_batches_and_lose_none(digits: DigitsDataModule, world: int) -> None:
    selection = SelectionDataModule(digits, "test", max_images=50, batch_size=8)
    shares = []
    for rank in range(world):
        selection.trainer = SimpleNamespace(world_size=world, global_rank=rank)
        shares += [batch.index.tolist() for batch in selection.predict_dataloader()]
    assert sorted(shares) == selection.batches()


def test_what_is_done_is_left_out_by_whole_batches(digits: DigitsDataModule) -> None:
    selection = SelectionDataModule(digits, "test", max_images=6, batch_size=2)
    selection.done = {0, 1, 2}
    assert selection.batches() == [[2, 3], [4, 5]]


def test_images_are_read_where_features_are_cached(tmp_path: Path) -> None:
    encoder = FrozenEncoder(torch.nn.Flatten(), in_channels=1)
    digits = DigitsDataModule(encoder, cache_dir=tmp_path / "cache")
    digits.setup("test")
    (batch,) = SelectionDataModule(digits, "test", skip=100).predict_dataloader()
    assert batch.image.shape == (4, 1, 8, 8)


def test_a_loader_of_single_images_serves_too() -> None:
    class Plain(L.LightningDataModule):
        def test_dataloader(self) -> DataLoader:
            rows = [ImageBatch(torch.full((1, 2, 2), i / 10), torch.tensor(i % 2), torch.tensor(i)) for i in range(7)]
            return DataLoader(rows, batch_size=3)

    batches = list(SelectionDataModule(Plain(), "test", skip=2, batch_size=3).predict_dataloader())
    assert [batch.index.tolist() for batch in batches] == [[0, 2, 4], [6]]
    assert batches[0].image.shape == (3, 1, 2, 2)


@pytest.mark.parametrize("batched", [True, False])
def test_images_that_say_that_they_have_other_positions_are_refused(batched: bool) -> None:
    """As those of a part of a data set, which say where they are in the whole."""

    class Part(L.LightningDataModule):
        def test_dataloader(self) -> DataLoader:
            images = [(torch.rand(1, 2, 2), torch.tensor(0), torch.tensor(i)) for i in (1, 0, 3, 5)]
            if batched:
                whole = ImageBatch(*map(torch.stack, zip(*images, strict=True)))
                return DataLoader(_Rows(whole), batch_size=None)
            return DataLoader([ImageBatch(*image) for image in images], batch_size=2)

    for batch_size in (1, 2, 4):
        with pytest.raises(ValueError, match="rows would be of other images than they say"):
            list(SelectionDataModule(Part(), "test", batch_size=batch_size).predict_dataloader())


class _Rows(Dataset[ImageBatch]):
    def __init__(self, whole: ImageBatch) -> None:
        self.whole = whole

    def __len__(self) -> int:
        return len(self.whole.label)

    def __getitem__(self, rows: list[int]) -> ImageBatch:
        return ImageBatch(*(values[rows] for values in self.whole))


@pytest.mark.parametrize("arguments", [{"skip": 0}, {"max_images": 0}, {"batch_size": 0}, {"split": "exam"}])
def test_arguments_out_of_range_are_refused(digits: DigitsDataModule, arguments: dict) -> None:
    with pytest.raises(ValueError, match=f"`{next(iter(arguments))}` to be"):
        SelectionDataModule(digits, **arguments)
