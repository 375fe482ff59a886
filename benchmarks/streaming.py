"""How much of the bare encoder's speed is left when images stream through a datamodule, and what the cache gains.

    python -m benchmarks.streaming [--quick] [--json FILE] [--jpeg-root FOLDER]

Three ways to one epoch over the same 32x32 images, in turn: the encoder in a loop over a float tensor in memory; a
Lightning trainer that reads 8-bit images through the datamodule and encodes them; the same trainer on the feature
cache. With ``--jpeg-root`` (or the variable CIFAR10_JPEG_ROOT) a fourth: the trainer on CIFAR-10 as JPEG files, which
have to be opened and decoded.

And what reading files costs, without any encoder: the datamodule's loader against torchvision's ImageFolder, which
reads with Pillow, with as many workers. ``files_over_imagefolder`` is of files of 256x256 pixels, of which both make
the same numbers; ``photos_over_imagefolder`` of files of 375x500, resized to 256 and cut to 224, as ImageNet's are, and
``photos_torch_over_imagefolder`` of the same with ``resizing: torch``.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from benchmarks._common import interleaved_seconds, make_parser, median_ratio, report
from benchmarks._photos import write_photos
from datamodules import EncodedDataModule, ImageFolderDataModule
from datamodules.base import Split
from datamodules.sources import ArraySource
from ellips.encoders import FrozenEncoder
from ellips.types import FeatureBatch

COUNTS = {"full": {"test_resnet": 20_000, "resnet10t": 512}, "quick": {"test_resnet": 2_000, "resnet10t": 64}}
FILES = {"full": 512, "quick": 128}
BATCH_SIZES = {"test_resnet": 512, "resnet10t": 64}


class InMemory(EncodedDataModule):
    """Random 8-bit images in memory, as CIFAR-10 and the digits are held."""

    images = torch.empty(0, 3, 32, 32, dtype=torch.uint8)

    @property
    def class_names(self) -> list[str]:
        """One class."""
        return ["noise"]

    def make_source(self, split: Split) -> ArraySource:
        """The same images in every split."""
        return ArraySource(split, self.images, [0] * len(self.images))


class Sink(L.LightningModule):
    """Takes features and does nothing with them."""

    def validation_step(self, batch: FeatureBatch) -> None:
        """Count, so that the features are used."""
        self.count = getattr(self, "count", 0) + len(batch.feature)


def epoch(data: EncodedDataModule) -> Callable[[], None]:
    """A function that runs a trainer over the validation split once."""
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    return lambda: trainer.validate(Sink(), datamodule=data, verbose=False) and None


def measure(name: str, size: int | None, count: int, batch_size: int, rounds: int) -> dict[str, Any]:
    """Seconds per epoch of one encoder, each way."""
    encoder = FrozenEncoder(name, weights="random", input_size=size)
    data, images = _data(encoder, count, batch_size)
    loops = {"bare": _bare(encoder, images, batch_size), "streamed": epoch(data)}
    with tempfile.TemporaryDirectory() as folder:
        cached, _ = _data(encoder, count, batch_size, cache_dir=folder)
        loops["cached"] = epoch(cached)
        return interleaved_seconds(loops, rounds)


def _data(encoder: FrozenEncoder, count: int, batch_size: int, **arguments: Any) -> tuple[InMemory, torch.Tensor]:
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data = InMemory(encoder, batch_size=batch_size, **arguments)
    data.images = images
    return data, images.float() / 255


def _bare(encoder: FrozenEncoder, images: torch.Tensor, batch_size: int) -> Callable[[], None]:
    def loop() -> None:
        for batch in images.split(batch_size):
            encoder.encode(batch)

    return loop


def measure_folder(root: Path, batch_size: int, rounds: int, workers: int) -> dict[str, Any]:
    """Seconds per epoch over the 10,000 JPEG test images of CIFAR-10, and of the bare encoder over as many."""
    encoder = FrozenEncoder("test_resnet", weights="random", input_size=32)
    data = ImageFolderDataModule(encoder, root, val_dir="test", batch_size=batch_size, num_workers=workers)
    _, images = _data(encoder, 10_000, batch_size)
    return interleaved_seconds({"bare": _bare(encoder, images, batch_size), "streamed": epoch(data)}, rounds)


def measure_reading(count: int, batch_size: int, rounds: int, workers: int) -> dict[str, dict[str, list[float]]]:
    """Seconds to read JPEG files as float tensors, by size of the files and way."""
    encoder = FrozenEncoder("test_resnet", weights="random", input_size=32)  # has no part in it
    found = {}
    for name, size, arguments in (("files", (256, 256), {}), ("photos", (375, 500), {"resize": 256, "crop": 224})):
        with tempfile.TemporaryDirectory() as folder:
            root = write_photos(Path(folder), count, size)
            settings = {"batch_size": batch_size, "num_workers": workers, "val_dir": "test", **arguments}
            loops = {"imagefolder": _imagefolder(root / "test", batch_size, workers, resized=bool(arguments))}
            for way in ("pillow", "torch") if arguments else ("pillow",):
                data = ImageFolderDataModule(encoder, root, resizing=way, **settings)
                loops[way] = _read(data.val_dataloader())
            found[name] = interleaved_seconds(loops, rounds)
    return found


def _imagefolder(folder: Path, batch_size: int, workers: int, resized: bool) -> Callable[[], None]:
    to_float = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    fit = [v2.Resize(256, interpolation=v2.InterpolationMode.BICUBIC), v2.CenterCrop(224)] if resized else []
    dataset = ImageFolder(folder, v2.Compose([*fit, *to_float]))
    return _read(DataLoader(dataset, batch_size=batch_size, num_workers=workers))


def _read(loader: DataLoader[Any]) -> Callable[[], None]:
    def loop() -> None:
        for _ in loader:
            pass

    return loop


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure and print."""
    parser = make_parser(__doc__)
    jpeg = os.environ.get("CIFAR10_JPEG_ROOT")
    parser.add_argument("--jpeg-root", type=Path, default=Path(jpeg) if jpeg else None, help="CIFAR-10 as JPEG files")
    parser.add_argument("--workers", type=int, default=0, help="reading processes for the JPEG files")
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore", module="lightning")
    rounds = 3 if options.quick else 7
    counts = COUNTS["quick" if options.quick else "full"]
    start = time.perf_counter()
    times = {
        name: measure(name, 32 if name == "test_resnet" else None, counts[name], BATCH_SIZES[name], rounds)
        for name in counts
    }
    ratios = {f"stream_over_bare_{name}": median_ratio(run["bare"], run["streamed"]) for name, run in times.items()}
    ratios["cached_speedup"] = median_ratio(times["test_resnet"]["streamed"], times["test_resnet"]["cached"])
    speeds = {
        name: {way: counts[name] / statistics.median(values) for way, values in run.items()}
        for name, run in times.items()
    }
    if options.jpeg_root is not None:
        folder = measure_folder(options.jpeg_root, 256, min(rounds, 3), options.workers)
        ratios["stream_over_bare_test_resnet_jpeg_files"] = median_ratio(folder["bare"], folder["streamed"])
        speeds["test_resnet_jpeg_files"] = {way: 10_000 / statistics.median(values) for way, values in folder.items()}
    files = FILES["quick" if options.quick else "full"]
    reading = measure_reading(files, 32, rounds, options.workers)
    for name, run in reading.items():
        ratios[f"{name}_over_imagefolder"] = median_ratio(run["imagefolder"], run["pillow"])
        speeds[name] = {way: files / statistics.median(values) for way, values in run.items()}
    ratios["photos_torch_over_imagefolder"] = median_ratio(reading["photos"]["imagefolder"], reading["photos"]["torch"])
    settings = {
        "quick": options.quick,
        "files": files,
        "images": counts,
        "batch_size": BATCH_SIZES,
        "image_size": 32,
        "input_size": {"test_resnet": 32, "resnet10t": 176},
        "rounds": rounds,
        "jpeg_files": options.jpeg_root is not None,
        "workers": options.workers,
        "seconds": round(time.perf_counter() - start, 1),
    }
    return report("streaming", ratios, settings, measurements={"images_per_second": speeds}, json_file=options.json)


if __name__ == "__main__":
    main()
