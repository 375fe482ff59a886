"""Datamodules that own a frozen encoder: encoding on the device, and the feature cache."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ellips.encoders import FrozenEncoder, recorded_encoder
from ellips.precision import HALF_TYPES
from ellips.progress import ImageProgress
from ellips.types import FeatureBatch, ImageBatch
from ellips.validation import at_least, one_of

from .base import PARTS, SPLITS, Part, Split, SplitDataModule, splits_of
from .cache import CacheWriter, FeatureCache
from .filling import fill
from .manifest import DTYPES, Plan, names_digest, take_over_times
from .noise import NoisyCopies, NoisyImages
from .sampling import RowsDataset, process_rank
from .sources import FeatureDataset, ImageDataset, ImageSource

# A `Tensor` in place of `Any` would tell jsonargparse that a class named in a configuration has to be one itself.
Augmentation = Callable[[Tensor], Any]
"""Maps an image ``(C, H, W)`` with values in [0, 1] to another of that kind."""


class EncodedDataModule(SplitDataModule):
    """Images stream in, features come out.

    Loaders yield :class:`~ellips.types.ImageBatch` (values in [0, 1] at dataset resolution);
    :meth:`on_after_batch_transfer` turns it, on the device, into a :class:`~ellips.types.FeatureBatch`. With a cache,
    the first run encodes each split once and writes the features down; from then on loaders yield them. A data set is a
    subclass with :attr:`class_names` and :meth:`make_source`.

    Args:
        encoder: The frozen encoder; the datamodule owns it. It runs in its own precision under any trainer.
        batch_size: Largest training batch of one process.
        eval_batch_size: Largest batch of the other loaders, and of encoding; None: like ``batch_size``.
        num_workers: Processes that read images; 0 reads in the main process.
        seed: Of the training order, and of the split where there is one to make.
        keep_images: Hand the images on beside the features, which certificates in input space need.
        augment: Called with each training image ``(C, H, W)`` in [0, 1]; None: no augmentation. Without ``copies`` the
            Gaussians are fitted, and everything is evaluated, without it, and augmented images are encoded anew in
            every epoch, cache or not.
        copies: Make the training split of this many noisy draws of each image, which :class:`GaussianNoise` as
            ``augment`` says how to draw: trained on, fitted to and cached, the same in every epoch, process and run
            with this ``seed``.
        val_copies: Draw so many noisy copies of each validation image besides, for choices by votes
            (:meth:`votes_dataloader`). Evaluation stays on clean images.
        batch_by_image: Keep all copies of an image in one training batch, as losses on votes need it.
        cache_dir: Folder of the feature cache, one sub-folder per split; None: no cache.
        cache_dtype: Type of the stored features: ``"float32"``, or ``"float16"`` or ``"bfloat16"`` where the encoder
            computes in it, which loses nothing.
        shard_rows: Images per file of the cache: what an interruption costs at most.
        precision: Only to tell who still gives it that it is the encoder's.
        images_per_class: Make each global training batch of fewer classes, with so many images of each; see
            :class:`SplitDataModule`. Noisy copies count as images, unless ``batch_by_image`` keeps them together.

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
        augment: Augmentation | None = None,
        copies: int | None = None,
        val_copies: int | None = None,
        batch_by_image: bool = False,
        cache_dir: str | Path | None = None,
        cache_dtype: Literal["float32", "float16", "bfloat16"] = "float32",
        shard_rows: int = 4096,
        precision: str | None = None,
        images_per_class: int | None = None,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            seed=seed,
            images_per_class=images_per_class,
        )
        at_least(1, shard_rows=shard_rows)
        one_of(tuple(DTYPES), cache_dtype=cache_dtype)
        if precision is not None:
            raise ValueError(
                f"Expected the encoder to have the precision but got precision={precision!r} for the data; it is now "
                "a part of the encoder: FrozenEncoder(..., precision='bf16')."
            )
        _validate_dtype(encoder, cache_dtype)
        self.encoder = encoder
        self.keep_images = keep_images
        self.augment = augment
        self.noisy_copies = NoisyCopies.of(augment, copies, val_copies, seed)
        self.batch_by_image = batch_by_image
        if batch_by_image and not (copies and copies <= batch_size):
            raise ValueError(
                f"Expected `copies` between 1 and batch_size={batch_size} for batch_by_image but got {copies}; set "
                "copies, raise batch_size, or leave out batch_by_image."
            )
        self.cache_dir = None if cache_dir is None else Path(cache_dir).expanduser()
        self.cache_dtype = cache_dtype
        self.shard_rows = shard_rows
        self._sources, self._caches = dict[Split, ImageSource](), dict[Part, FeatureCache]()

    @abstractmethod
    def make_source(self, split: Split) -> ImageSource:
        """Open the images of a split; called once."""

    @property
    def feature_dim(self) -> int:
        """Width of the features; known before :meth:`setup`."""
        return self.encoder.feature_dim

    def encoder_fingerprint(self) -> dict[str, str]:
        """What the features depend on: architecture, weights digest, preprocessing, precision."""
        return self.encoder.fingerprint()

    def description(self) -> dict[str, Any]:
        """Names of the classes, and the encoder."""
        return {**super().description(), "encoder": recorded_encoder(self.encoder)}

    def source(self, split: Split) -> ImageSource:
        """The images of a split, opened at the first call.

        Raises:
            ValueError: If there is no such split.
        """
        one_of(SPLITS, split=split)
        if split not in self._sources:
            self._sources[split] = self.make_source(split)
        return self._sources[split]

    @property
    def parts(self) -> tuple[Part, ...]:
        """What there is to encode."""
        return SPLITS if self.vote_copies is None else PARTS

    @property
    def noise_sigma(self) -> float | None:
        """Standard deviation of the noise in the copies that the Gaussians are fitted to; None: they see none."""
        return None if self.noisy_copies is None else self.noisy_copies.noise.sigma

    @property
    def vote_copies(self) -> int | None:
        """Rows of each validation image that :meth:`votes_dataloader` yields; None: there is none."""
        return None if self.noisy_copies is None else self.noisy_copies.votes

    def image_dataset(self, split: Part) -> ImageDataset:
        """Open the images that are encoded for a split, noisy copies where the settings ask for them.

        Raises:
            ValueError: If there is no such split, or it is ``"votes"`` and ``val_copies`` was not given.
        """
        one_of(PARTS, split=split)
        if split == "votes" and "votes" not in self.parts:
            raise ValueError(
                "Expected `val_copies` to be given to the datamodule for votes on noisy validation images but it is "
                "None; set augment (GaussianNoise), copies, and val_copies to 100, say."
            )
        source = self.source("val" if split == "votes" else split)
        return ImageDataset(source) if self.noisy_copies is None else self.noisy_copies.images(source, split)

    def dataset(self, split: Part) -> RowsDataset[Any]:
        """Open a split: its images, or with a cache its features, after writing whatever the cache lacks.

        Raises:
            CacheMismatchError: If the cache's folder holds features of something else.
            ValueError: As :meth:`image_dataset`, or if images were skipped that may not be.
        """
        if self.cache_dir is None:
            return self.image_dataset(split)
        return FeatureDataset(self.open_cache(split), self.image_dataset(split) if self.keep_images else None)

    def training_dataset(self) -> RowsDataset[Any]:
        """Open the training split: images augmented anew if that is asked for, as :meth:`dataset` otherwise."""
        if self.augment is None or self.noisy_copies is not None:
            return self.dataset("train")
        return ImageDataset(self.source("train"), self.augment)

    def setup(self, stage: str) -> None:
        """Open what a stage reads, so that what is wrong is said before anything runs.

        Raises:
            ValueError: If the trainer would round images, features and the projector to half precision.
        """
        precision = str(self.trainer.precision) if self.trainer is not None else "32-true"
        if precision in ("16-true", "bf16-true"):
            raise ValueError(
                f"Expected the trainer's precision to leave images and features as they are but got {precision!r}, "
                f"which rounds; take {precision.replace('true', 'mixed')!r} and give the encoder its own precision."
            )
        super().setup(stage)
        if "votes" in self.parts and "train" in splits_of(stage):
            self.dataset("votes")

    def train_dataloader(self) -> DataLoader[Any]:
        """Training split, shuffled or in batches by class; with ``batch_by_image`` copies of an image stay together."""
        together = self.noisy_copies.train if self.batch_by_image and self.noisy_copies is not None else 1
        return self._loader(self.training_dataset(), self.batch_size, shuffle=True, copies=together)

    def votes_dataloader(self) -> DataLoader[Any]:
        """Noisy copies of the validation images, in order, all of an image in one batch of one process.

        A batch holds at least ``val_copies`` rows, whatever ``eval_batch_size`` says.

        Raises:
            ValueError: If ``val_copies`` was not given.
        """
        copies = self.image_dataset("votes").copies
        return self._loader(self.dataset("votes"), max(self.eval_batch_size, copies), copies=copies)

    def workers_for(self, dataset: RowsDataset[Any]) -> int:
        """Features come from memory: other processes would only add the cost of handing them over."""
        return 0 if isinstance(dataset, FeatureDataset) and dataset.images is None else self.num_workers

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:  # noqa: ANN401  (Lightning's signature)
        """Encode images on the device they are on; anything but an :class:`ImageBatch` passes unchanged."""
        del dataloader_idx
        return self.encode(batch) if isinstance(batch, ImageBatch) else batch

    def encode(self, batch: ImageBatch) -> FeatureBatch:
        """Encode a batch where it is."""
        device = batch.image.device
        if self.encoder.preprocess.mean.device != device:
            self.encoder.to(device)
        if len(batch.image) == 0:
            features = torch.zeros(0, self.feature_dim, device=device)
        else:
            # What is kept is what came: an encoder may write to what it is given.
            features = self.encoder.encode(batch.image.clone() if self.keep_images else batch.image)
        return FeatureBatch(features, batch.label, batch.index, batch.image if self.keep_images else None)

    def open_cache(
        self,
        split: Part,
        *,
        device: torch.device | None = None,
        processes: tuple[int, int] | None = None,
        barrier: Callable[[], object] | None = None,
    ) -> FeatureCache:
        """Open the cache of a split, after writing whatever it lacks.

        Args:
            split: ``"train"``, ``"val"``, ``"test"`` or ``"votes"``.
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
        barrier = barrier or (self.trainer.strategy.barrier if self.trainer is not None else lambda: None)
        plan, source = self._plan(split), self.image_dataset(split).source
        folder = self.cache_dir / (split if self.noisy_copies is None else self.noisy_copies.folder_name(split))
        if rank == 0:
            take_over_times(folder, plan, source.content)
        barrier()
        writer = CacheWriter(folder, plan)
        # Every process meets both barriers, even if another run completes the cache between two processes' looks at it.
        shards = [] if writer.is_complete() else writer.missing(world, rank)
        if shards:
            self._fill(split, writer, shards, device or self._device(), (world, rank))
        barrier()
        if rank == 0 and not writer.is_complete():
            writer.finish(source.path)
        barrier()
        cache = FeatureCache(folder, plan)
        self.check_skipped(split, cache.skipped)
        self._caches[split] = cache
        return cache

    def check_skipped(self, split: Part, skipped: dict[int, str]) -> None:
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
        self, split: Part, writer: CacheWriter, shards: list[int], device: torch.device, processes: tuple[int, int]
    ) -> None:
        world, rank = processes
        rows = sum(len(writer.plan.shard_range(s)) for s in shards)
        total = min(rows * world, writer.plan.rows)  # others: about as many
        with ImageProgress(f"Encoding {split}", total, processes=world, show=rank == 0) as progress:
            fill(
                writer,
                self.image_dataset(split),
                self.encode,
                shards,
                batch_size=self.eval_batch_size,
                num_workers=self.num_workers,
                device=device,
                on_images=progress.advance,
            )

    def _plan(self, split: Part) -> Plan:
        images, encoder = self.image_dataset(split), self.encoder_fingerprint()
        identity: dict[str, Any] = {
            "data": {**images.source.identity(), "classes_sha256": names_digest(self.class_names)},
            # Beside the encoder, where caches of version 0.1 have it: they say which precision they are in.
            "precision": _cached_precision(encoder.pop("precision", "32")),
            "encoder": encoder,
        }
        if isinstance(images, NoisyImages):
            identity["noise"] = images.identity()
        return Plan(identity, len(images), self.feature_dim, self.cache_dtype, self.shard_rows, images.copies)

    def _device(self) -> torch.device:
        return self.encoder.preprocess.mean.device if self.trainer is None else self.trainer.strategy.root_device


def _validate_dtype(encoder: FrozenEncoder, cache_dtype: str) -> None:
    """Refuse to store features with fewer digits than those have that certificates are computed from."""
    if DTYPES[cache_dtype] not in (torch.float32, HALF_TYPES.get(encoder.precision)):
        needed = next(name for name, half in HALF_TYPES.items() if half == DTYPES[cache_dtype])
        raise ValueError(
            f"Expected cache_dtype='float32' with an encoder of precision {encoder.precision!r} but got "
            f"{cache_dtype!r}: the Gaussians would be fitted to other features than are certified; leave it out, or "
            f"give the encoder precision={needed!r}."
        )


def _cached_precision(precision: str) -> str:
    """What a manifest says; version 0.1 wrote the name alone where features of half precision were not all rounded."""
    return precision if precision == "32" else f"{precision}, features too"
