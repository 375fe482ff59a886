"""Training on cached features through Lightning against a bare PyTorch loop that does the same arithmetic.

``python -m benchmarks.training [--quick] [--json FILE]``. Both train the same head with the same objective and
optimiser on the same features, batch 1,024, and fit the Gaussians exactly after each epoch. The project's side is the
whole of it: datamodule, feature cache on disk, GenEllips, Trainer. ``train_over_bare`` is its samples per second over
the bare loop's, the median over rounds that alternate.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import warnings
from typing import Any

import lightning as L
import torch
from torch import Tensor

from benchmarks._common import interleaved_seconds, make_parser, median_ratio, report
from datamodules.base import Split
from datamodules.encoded import EncodedDataModule
from datamodules.sources import ArraySource
from ellips.encoders import FrozenEncoder
from ellips.head import EllipsHead
from ellips.losses import CodingRateReduction, Isotropy, LatentLoss, Objective
from lightning_modules import GenEllips, Optimization

CLASSES = 10


class RandomImages(EncodedDataModule):
    """Random 8-bit images of ten classes, told apart by their brightness."""

    def __init__(self, size: int, **options: Any) -> None:
        super().__init__(FrozenEncoder("test_resnet", weights="random", input_size=32), **options)
        self.size = size

    @property
    def class_names(self) -> list[str]:
        """``"0"`` to ``"9"``."""
        return [str(k) for k in range(CLASSES)]

    def make_source(self, split: Split) -> ArraySource:
        """Draw the images of a split."""
        generator = torch.Generator().manual_seed(len(split))
        size = self.size if split == "train" else CLASSES
        labels = torch.arange(size) % CLASSES
        images = torch.randint(0, 128, (size, 3, 16, 16), generator=generator) + 12 * labels.view(-1, 1, 1, 1)
        return ArraySource(f"random/{split}", images.to(torch.uint8), labels.numpy())


def make_objective() -> list[LatentLoss]:
    """The paper's objective for CIFAR-10."""
    return [CodingRateReduction(), Isotropy(weight=0.01)]


def main(args: list[str] | None = None) -> dict[str, Any]:
    """Run the benchmark and print its JSON object."""
    parser = make_parser(__doc__)
    parser.add_argument("--size", type=int, default=16384, help="training images")
    parser.add_argument("--hidden", type=int, default=1024, help="width of the projector")
    parser.add_argument("--epochs", type=int, default=3, help="epochs of a round")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(args)
    if options.quick:
        options.size, options.hidden, options.epochs, options.rounds = 2048, 128, 1, 2
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = RandomImages(options.size, batch_size=1024, cache_dir=folder)
        seconds = measure(data, options)
    trained = options.size * options.epochs
    speeds = {name: [trained / s for s in times] for name, times in seconds.items()}
    return report(
        "training",
        {"train_over_bare": median_ratio(speeds["lightning"], speeds["bare"])},
        {"batch": 1024, "latent": 128, **{k: v for k, v in vars(options).items() if k != "json"}},
        measurements={"samples_per_second": speeds},
        json_file=options.json,
    )


def measure(data: RandomImages, options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of each round of both."""
    data.setup("fit")  # fills the cache
    loaded = [batch for batch in data.fit_dataloader()]
    features = torch.cat([batch.feature for batch in loaded])
    labels = torch.cat([batch.label for batch in loaded])
    make = {"hidden_dim": options.hidden, "latent_dim": 128, "shrinkage": 0.1}
    optimization = Optimization("sgd", learning_rate=1e-4)

    def lightning() -> None:
        torch.manual_seed(0)
        module = GenEllips(data.feature_dim, CLASSES, objective=make_objective(), optimization=optimization, **make)
        trainer = L.Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=options.epochs,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
        )
        trainer.fit(module, data)

    def bare() -> None:
        torch.manual_seed(0)
        bare_loop(EllipsHead(data.feature_dim, CLASSES, **make), features, labels, optimization, options.epochs)

    return interleaved_seconds({"lightning": lightning, "bare": bare}, options.rounds)


def bare_loop(head: EllipsHead, features: Tensor, labels: Tensor, optimization: Optimization, epochs: int) -> None:
    """Train and fit with nothing around it, the features in memory."""
    objective = Objective(make_objective())
    optimizer = optimization.build_optimizer(head)
    head.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(labels)).split(1024):
            loss = objective(head.projector(features[rows]), labels[rows])["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        head.fit(features, labels, batch_size=1024)


if __name__ == "__main__":
    main()
