"""Datamodules that own a frozen encoder: encoding on the device, and the feature cache."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ellips.encoders import FrozenEncoder
from ellips.progress import ImageProgress
from ellips.types import FeatureBatch, ImageBatch
from ellips.validation import at_least, one_of

from .base import SPLITS, Split, SplitDataModule
from .cache import DTYPES, CacheWriter, FeatureCache, Plan
from .filling import fill
from .sampling import RowsDataset, process_rank
from .sources import FeatureDataset, ImageDataset, ImageSource

Precision = Literal["32", "16", "bf16"]
HALF_TYPES: dict[str, torch.dtype] = {"16": torch.float16, "bf16": torch.bfloat16}


class EncodedDataModule(SplitDataModule):
    """Images stream in, features come out.

    Loaders yield :class:`~ellips.types.ImageBatch` (values in [0, 1] at dataset resolution);
    :meth:`on_after_batch_transfer` turns it, on the device, into a :class:`~ellips.types.FeatureBatch`. With a cache,
    the first run encodes each split once and writes the features down; from then on loaders yield them. A data set is a
    subclass with :attr:`class_names` and :meth:`make_source`.

    Args:
        encoder: The frozen encoder; the datamodule owns it.
        batch_size: Largest training batch of one process.
        eval_batch_size: Largest batch of the other loaders, and of encoding; None: like ``batch_size``.
        num_workers: Processes that read images; 0 reads in the main process.
        seed: Of the training order, and of the split where there is one to make.
        keep_images: Hand the images on beside the features, which certificates in input space need.
        augment: Called with each training image ``(C, H, W)`` in [0, 1]; None: no augmentation. The Gaussians are
            fitted, and everything is evaluated, without it. Augmented images are encoded anew in every epoch, cache or
            not.
        cache_dir: Folder of the feature cache, one sub-folder per split; None: no cache.
        cache_dtype: Type of the stored features: ``"float32"``, ``"float16"`` or ``"bfloat16"``.
        shard_rows: Images per file of the cache: what an interruption costs at most.
        precision: The encoder runs under: ``"32"``, ``"16"`` or ``"bf16"``; None: what the trainer says.

    Raises:
        ValueError: If a size, a count or a name is out of range.
    """

    def __init__(
        self,
        encoder: FrozenEncoder,
        *,
        batch_size: int = 128,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        keep_images: bool = False,
        augment: Callable[[Tensor], Tensor] | None = None,
        cache_dir: str | Path | None = None,
        cache_dtype: Literal["float32", "float16", "bfloat16"] = "float32",
        shard_rows: int = 4096,
        precision: Precision | None = None,
    ) -> None:
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, num_workers=num_workers, seed=seed)
        at_least(1, shard_rows=shard_rows)
        one_of(tuple(DTYPES), cache_dtype=cache_dtype)
        one_of((*get_args(Precision), None), precision=precision)
        self.encoder = encoder
        self.keep_images = keep_images
        self.augment = augment
        self.cache_dir = None if cache_dir is None else Path(cache_dir)
        self.cache_dtype = cache_dtype
        self.shard_rows = shard_rows
        self.precision = precision
        self._sources: dict[Split, ImageSource] = {}
        self._caches: dict[Split, FeatureCache] = {}

    @abstractmethod
    def make_source(self, split: Split) -> ImageSource:
        """Open the images of a split; called once."""

    @property
    def feature_dim(self) -> int:
        """Width of the features; known before :meth:`setup`."""
        return self.encoder.feature_dim

    def encoder_fingerprint(self) -> dict[str, str]:
        """What the features depend on: architecture, weights digest, preprocessing."""
        return self.encoder.fingerprint()

    def source(self, split: Split) -> ImageSource:
        """The images of a split, opened at the first call.

        Raises:
            ValueError: If there is no such split.
        """
        one_of(SPLITS, split=split)
        if split not in self._sources:
            self._sources[split] = self.make_source(split)
        return self._sources[split]

    def dataset(self, split: Split) -> RowsDataset[Any]:
        """Open a split: its images, or with a cache its features, after writing whatever the cache lacks.

        Raises:
            CacheMismatchError: If the cache's folder holds features of something else.
            ValueError: If there is no such split, or images were skipped that may not be.
        """
        if self.cache_dir is None:
            return ImageDataset(self.source(split))
        return FeatureDataset(self.open_cache(split), self.source(split) if self.keep_images else None)

    def training_dataset(self) -> RowsDataset[Any]:
        """Open the training split: augmented images if there is an augmentation, as :meth:`dataset` otherwise."""
        return self.dataset("train") if self.augment is None else ImageDataset(self.source("train"), self.augment)

    def workers_for(self, dataset: RowsDataset[Any]) -> int:
        """Features come from memory: other processes would only add the cost of handing them over."""
        return 0 if isinstance(dataset, FeatureDataset) and dataset.source is None else self.num_workers

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:  # noqa: ANN401  (Lightning's signature)
        """Encode images on the device they are on; anything but an :class:`ImageBatch` passes unchanged."""
        del dataloader_idx
        return self.encode(batch) if isinstance(batch, ImageBatch) else batch

    def encode(self, batch: ImageBatch) -> FeatureBatch:
        """Encode a batch where it is, under the trainer's precision."""
        device = batch.image.device
        if self.encoder.preprocess.mean.device != device:
            self.encoder.to(device)
        if len(batch.image) == 0:
            features = torch.zeros(0, self.feature_dim, device=device)
        else:
            # Autocast even under "16-true": the encoder's weights, and so its fingerprint, must not change.
            half = HALF_TYPES.get(self._encoding_precision())
            with torch.autocast(device.type, dtype=half, enabled=half is not None):
                features = self.encoder.encode(batch.image)
        return FeatureBatch(features, batch.label, batch.index, batch.image if self.keep_images else None)

    def open_cache(
        self,
        split: Split,
        *,
        device: torch.device | None = None,
        processes: tuple[int, int] | None = None,
        barrier: Callable[[], object] | None = None,
    ) -> FeatureCache:
        """Open the cache of a split, after writing whatever it lacks.

        Args:
            split: ``"train"``, ``"val"`` or ``"test"``.
            device: Where to encode; None: the trainer's device, or the one the encoder is on.
            processes: ``(number, this one)``; None: as the trainer or torch.distributed say. Each writes its shards.
            barrier: Returns once every process has called it; None: the trainer's.

        Raises:
            CacheMismatchError: If the folder holds features of something else.
            ValueError: If no ``cache_dir`` was given, or files were skipped that may not be.
        """
        if self.cache_dir is None:
            raise ValueError("Expected `cache_dir` to be given to the datamodule but it is None.")
        if split in self._caches:
            return self._caches[split]
        world, rank = processes or process_rank(self.trainer)
        if barrier is None:
            barrier = self.trainer.strategy.barrier if self.trainer is not None else lambda: None
        plan = self._plan(split)
        writer = CacheWriter(self.cache_dir / split, plan)
        # Every process meets both barriers, even if another run completes the cache between two processes' looks at it.
        shards = [] if writer.is_complete() else writer.missing(world, rank)
        if shards:
            self._fill(split, writer, shards, device or self._device(), (world, rank))
        barrier()
        if rank == 0 and not writer.is_complete():
            writer.finish(self.source(split).path)
        barrier()
        cache = FeatureCache(self.cache_dir / split, plan)
        self.check_skipped(split, cache.skipped)
        self._caches[split] = cache
        return cache

    def check_skipped(self, split: Split, skipped: dict[int, str]) -> None:
        """Refuse a cache that lacks images; data sets that may skip some override this.

        Raises:
            ValueError: If ``skipped`` (row to path) is not empty.
        """
        if skipped:
            raise ValueError(
                f"Expected the feature cache of {split!r} to have every image but {sorted(skipped.values())} were "
                "skipped when it was made; set on_bad_image: skip to accept that, or mend them and delete the cache."
            )

    def _fill(
        self, split: Split, writer: CacheWriter, shards: list[int], device: torch.device, processes: tuple[int, int]
    ) -> None:
        world, rank = processes
        images = sum(len(writer.plan.shard_range(shard)) for shard in shards)
        total = min(images * world, writer.plan.rows)  # the other processes have about as many
        with ImageProgress(f"Encoding {split}", total, processes=world, show=rank == 0) as progress:
            fill(
                writer,
                ImageDataset(self.source(split)),
                self.encode,
                shards,
                batch_size=self.eval_batch_size,
                num_workers=self.num_workers,
                device=device,
                on_images=progress.advance,
            )

    def _plan(self, split: Split) -> Plan:
        source = self.source(split)
        identity = {
            "data": {**source.identity(), "classes_sha256": _digest_of_names(self.class_names)},
            "encoder": self.encoder_fingerprint(),
            "precision": self._encoding_precision(),
        }
        return Plan(identity, len(source), self.feature_dim, self.cache_dtype, self.shard_rows)

    def _device(self) -> torch.device:
        if self.trainer is not None:
            return self.trainer.strategy.root_device
        return self.encoder.preprocess.mean.device

    def _encoding_precision(self) -> Precision:
        if self.precision is not None:
            return self.precision
        return encoding_precision(self.trainer.precision if self.trainer is not None else "32-true")


def encoding_precision(name: str | int | None) -> Precision:
    """What the encoder runs under when the trainer runs under a precision that Lightning knows by this name."""
    match str(name).partition("-")[0]:
        case "16":
            return "16"
        case "bf16":
            return "bf16"
        case _:
            return "32"


def _digest_of_names(names: list[str]) -> str:
    return hashlib.sha256("\n".join(names).encode()).hexdigest()
