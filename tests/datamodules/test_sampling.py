from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.sampling import BalancedBatches, process_rank


def parts(size: int, batch_size: int, world: int, *, shuffle: bool = False, epoch: int = 0) -> list[list[list[int]]]:
    result = []
    for rank in range(world):
        sampler = BalancedBatches(size, batch_size, shuffle=shuffle, num_replicas=world, rank=rank)
        sampler.set_epoch(epoch)
        result.append(list(sampler))
        assert len(result[-1]) == len(sampler)
    return result


@given(st.integers(3, 200), st.integers(1, 40), st.integers(1, 3))
def test_every_row_exactly_once_and_the_same_number_of_batches(size: int, batch_size: int, world: int) -> None:
    shards = parts(size, batch_size, world)
    assert sorted(row for shard in shards for batch in shard for row in batch) == list(range(size))
    assert len({len(shard) for shard in shards}) == 1
    for shard in shards:
        lengths = [len(batch) for batch in shard]
        assert max(lengths) - min(lengths) <= 1
        assert max(lengths) <= max(batch_size, 2)  # 2: one row more, where a process would else miss a turn


@given(st.integers(3, 200), st.integers(1, 40), st.integers(1, 3), st.integers(0, 3))
def test_shuffled_shards_are_equally_long_and_never_repeat(size: int, batch_size: int, world: int, epoch: int) -> None:
    shards = parts(size, batch_size, world, shuffle=True, epoch=epoch)
    rows = [[row for batch in shard for row in batch] for shard in shards]
    assert {len(row) for row in rows} == {size // world}
    assert len({row for shard in rows for row in shard}) == size // world * world
    assert all(len(batch) <= batch_size for shard in shards for batch in shard)


@given(st.integers(3, 60), st.integers(1, 7), st.integers(0, 30), st.integers(1, 3), st.booleans())
def test_copies_of_an_image_are_never_parted(images: int, copies: int, more: int, world: int, shuffle: bool) -> None:
    seen = []
    for rank in range(world):
        options = {"shuffle": shuffle, "num_replicas": world, "rank": rank}
        sampler = BalancedBatches(images * copies, copies + more, copies=copies, **options)  # type: ignore[arg-type]
        batches = list(sampler)
        assert len(batches) == len(sampler)
        plain = BalancedBatches(images, (copies + more) // copies, **options)  # type: ignore[arg-type]
        assert [[row // copies for row in batch[::copies]] for batch in batches] == list(plain)
        for batch in batches:
            assert batch == [row - row % copies + i for row in batch[::copies] for i in range(copies)]
        seen += [row for batch in batches for row in batch]
    assert len(set(seen)) == len(seen) == (images // world * world if shuffle else images) * copies


def test_the_order_changes_from_epoch_to_epoch_and_repeats_with_the_seed() -> None:
    first, second = (parts(50, 8, 2, shuffle=True, epoch=epoch) for epoch in (0, 1))
    assert first != second
    assert first == parts(50, 8, 2, shuffle=True, epoch=0)


@pytest.mark.parametrize(
    ("size", "batch_size", "world", "copies"), [(5, 0, 1, 1), (1, 4, 2, 1), (8, 3, 1, 4), (7, 4, 1, 4), (4, 4, 2, 4)]
)
def test_wrong_arguments_are_refused(size: int, batch_size: int, world: int, copies: int) -> None:
    with pytest.raises(ValueError, match="Expected"):
        BalancedBatches(size, batch_size, num_replicas=world, copies=copies)


def test_without_trainer_and_process_group_there_is_one_process() -> None:
    assert process_rank(None) == (1, 0)
