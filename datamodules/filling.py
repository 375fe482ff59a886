"""The one pass over the images that fills a feature cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch.utils.data import DataLoader

from ellips.types import FeatureBatch, ImageBatch

from .cache import CacheWriter
from .sources import ImageDataset


def fill(
    writer: CacheWriter,
    dataset: ImageDataset,
    encode: Callable[[ImageBatch], FeatureBatch],
    shards: Sequence[int],
    *,
    batch_size: int,
    num_workers: int,
    device: torch.device,
    on_images: Callable[[int], None] = lambda count: None,
) -> None:
    """Encode and write some shards of a cache.

    Args:
        writer: Of the cache.
        dataset: The images, without augmentation.
        encode: Image batch on ``device`` to features.
        shards: Which to write.
        batch_size: Largest batch; none reaches over the end of a shard.
        num_workers: Processes that read images.
        device: Where to encode.
        on_images: Told the number of images after each batch.
    """
    batches = [(shard, rows) for shard in shards for rows in _batches(writer.plan.shard_range(shard), batch_size)]
    loader = DataLoader(
        dataset,
        sampler=[rows for _, rows in batches],
        batch_size=None,
        num_workers=num_workers,
        pin_memory=device.type == "cuda",
    )
    done: list[FeatureBatch] = []
    for position, (batch, (shard, rows)) in enumerate(zip(loader, batches, strict=True)):
        on_device = ImageBatch(*(tensor.to(device, non_blocking=True) for tensor in batch))
        done.append(encode(on_device))
        on_images(len(rows))
        if position + 1 == len(batches) or batches[position + 1][0] != shard:
            writer.write(
                shard,
                torch.cat([part.feature for part in done]),
                torch.cat([part.label for part in done]),
                torch.cat([part.index for part in done]),
                dataset.source.content(writer.plan.image_range(shard)),
            )
            done = []


def _batches(rows: range, batch_size: int) -> Iterator[list[int]]:
    for start in range(rows.start, rows.stop, batch_size):
        yield list(range(start, min(start + batch_size, rows.stop)))
