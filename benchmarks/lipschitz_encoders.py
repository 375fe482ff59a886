"""What 1-Lipschitz encoders of two architectures reach in the same time, and what staying orthogonal costs.

    python -m benchmarks.lipschitz_encoders [--quick] [--json FILE] [--cifar FOLDER] [--minutes M] [--full]
        [--keep FOLDER]
    python -m benchmarks.lipschitz_encoders --cifar FOLDER --encoder cifar10_lipnext

LipNeXt (orthogonal products and shifts) against deel-torchlip's layers, on scikit-learn's digits or, with ``--cifar``,
on CIFAR-10 as image files (``train/<class>``, ``test/<class>``). Both have the same objective and augmentation, each a
batch size that suits it, and take turns, some steps each, until each has trained for ``--minutes``; learning rates
follow the share of the time that has gone. On CIFAR-10 torch.compile translates LipNeXt if there is a C++ compiler, and
translating counts as training; torchlip's layers are slower translated than not. ``--full`` means 90 minutes instead of
15 and trains LipNeXt at three more margins, too, for the frontier between accuracy and radius. Each network is exported
and proven; ``--keep`` keeps the files. Two kinds of classifiers stand on its features: its own linear one with the
certificate of pairwise margins, and Gaussians with exact radii, fitted with several regularisations or trained on those
radii, of which each radius has its own, chosen on the validation split. All accuracies are those of the test split.
``points_ahead`` tells for each radius by how many points the Gaussians of the first LipNeXt are above its own margin,
and above what the frontier has at their clean accuracy. With ``--encoder``, a shipped one or a file that was kept, only
Gaussians are trained, and what they and its own linear classifier certify is told of that one.
Ratios:

- ``certified_36_over_torchlip``: certified accuracy at 36/255 by pairwise margins, LipNeXt's over torchlip's.
- ``ellips_over_margin_36``, ``..._mean_radius``: on LipNeXt's features, the Gaussians chosen for 36/255 over its own
  linear classifier.
- ``orthogonal_over_plain_step``: steps a second over those of the same network whose matrices are free, with AdamW.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks._common import interleaved_seconds, make_parser, median_ratio, report
from benchmarks._lipschitz import ahead, gaussians, summary
from ellips.datamodules import ImageFolderDataModule, Split
from ellips.encoders import (
    EncoderArchitecture,
    FrozenEncoder,
    LinearHead,
    LipNeXtArchitecture,
    LipschitzArchitecture,
    LipschitzEncoder,
)
from ellips.encoders.augmentation import step_generator
from ellips.encoders.margin_classifier import margin_radii
from ellips.encoders.weights import shipped_names
from ellips.lightning_modules import LipschitzEncoderTraining
from ellips.splits import digits_part

WARMUP = 0.03  # of the time
TURN = 20  # steps before the other one's turn
BATCH = 500  # images that are evaluated at once
Parts = dict[str, tuple[Tensor, Tensor]]  # images (N, C, H, W) with bytes, and labels, of train, val and test


@dataclass(frozen=True)
class Task:
    """A data set with the trainings that are compared on it.

    Attributes:
        parts: Images and labels.
        architectures: LipNeXt and torchlip's.
        rates: Their peak learning rates.
        training: What both trainings are given besides.
        batch_sizes: Images for each step.
        margins: Of the frontier, for ``--full``.
        compiled: Whether torch.compile translates LipNeXt.
    """

    parts: Parts
    architectures: dict[str, EncoderArchitecture]
    rates: dict[str, float]
    training: dict[str, Any]
    batch_sizes: dict[str, int]
    margins: tuple[float, ...]
    compiled: bool = False


def digits_task() -> Task:
    """Scikit-learn's digits."""
    parts = {part: digits_part(part) for part in ("train", "val", "test")}
    return Task(
        {part: ((images * 255).round().byte(), labels) for part, (images, labels) in parts.items()},
        {
            "lipnext": LipNeXtArchitecture((1, 8, 8), (2,), (64,), (4,), 0.25, 16),
            "torchlip": LipschitzArchitecture((1, 8, 8), (), (128, 128), 16),
        },
        {"lipnext": 2e-2, "torchlip": 5e-3},
        {"objective": "emma", "temperature": 4.0, "margin": 1.0, "noise": 0.1},
        {"lipnext": 64, "torchlip": 64},
        (0.5, 1.5, 2.0),
    )


def cifar_task(folder: Path) -> Task:
    """CIFAR-10 as image files, with the settings of ``configs/encoders/cifar10_lipnext.yaml``."""
    data = ImageFolderDataModule(FrozenEncoder(torch.nn.Flatten()), folder, val_fraction=0.1)
    parts: Parts = {}
    split: Split
    for split in ("train", "val", "test"):
        source = data.source(split)
        parts[split] = source.read(list(range(len(source))))[0], torch.from_numpy(source.labels)
    return Task(
        parts,
        {
            "lipnext": LipNeXtArchitecture(
                image_shape=(3, 32, 32),
                patches=(4, 1, 1),
                widths=(192, 384, 384),
                depths=(3, 3, 3),
                products=1,
                pools=(1, 2, 2),
                mirrored=True,
                reflecting=True,
            ),
            "torchlip": LipschitzArchitecture((3, 32, 32), (32, 64, 96), (), 64),
        },
        {"lipnext": 2e-2, "torchlip": 2e-3},
        {"objective": "emma", "temperature": 4.0, "margin": 0.5, "noise": 0.0, "flip": True, "shift": 2},
        {"lipnext": 384, "torchlip": 128},
        (0.25, 0.75, 1.0),
        compiled=shutil.which(os.environ.get("CXX", "g++")) is not None,
    )


class Contender:
    """A training that counts its own seconds.

    Args:
        task: The data and the settings.
        name: Which architecture.
        budget: Seconds of steps.
        free: Let the matrices be any, with AdamW: what staying orthogonal costs.
        **changes: To the task's training.
    """

    def __init__(self, task: Task, name: str, budget: float, free: bool = False, **changes: Any) -> None:
        torch.manual_seed(0)
        self.module = LipschitzEncoderTraining(
            int(task.parts["train"][1].max()) + 1,
            task.architectures[name],
            learning_rate=task.rates[name],
            export_name=name,
            compile=task.compiled and name == "lipnext",
            **{**task.training, **changes},
        )
        parameters = self.module.parameters()
        self.reduced = torch.bfloat16 if task.parts["train"][0].shape[1] > 1 else torch.float32  # of the products
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-4) if free else self.module.make_optimizer(self.reduced)
        self.peaks = [group["lr"] for group in self.optimizer.param_groups]
        self.images, self.labels = task.parts["train"]
        self.batch_size = task.batch_sizes[name]
        self.budget, self.spent, self.steps = budget, 0.0, 0
        self.rows = self._rows()

    def _rows(self) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(0)
        while True:
            for rows in torch.randperm(len(self.labels), generator=generator).split(self.batch_size):
                if len(rows) == self.batch_size:
                    yield rows

    def step(self) -> None:
        """Train on one batch."""
        share = min(self.spent / self.budget, 1.0)
        factor = min((share + 1e-3) / (WARMUP + 1e-3), (1 - share) / (1 - WARMUP))
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = factor * peak
        rows = next(self.rows)
        images = self.module.changed(self.images[rows].float() / 255, step_generator(torch.device("cpu"), self.steps))
        self.optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.reduced is torch.bfloat16):
            loss = self.module.loss(self.module(images), self.labels[rows])
        loss.backward()
        self.optimizer.step()
        self.steps += 1

    def turn(self) -> None:
        """Train on some batches, unless the time has gone."""
        for _ in range(TURN):
            if self.spent >= self.budget:
                return
            start = time.perf_counter()
            self.step()
            self.spent += time.perf_counter() - start


def train(contenders: Sequence[Contender]) -> None:
    """Let them take turns until each has had its time."""
    while any(each.spent < each.budget for each in contenders):
        for each in contenders:
            each.turn()


def evaluate(task: Task, contender: Contender, folder: Path) -> dict[str, Any]:
    """Export and prove a network, and certify the test split by its own classifier and by Gaussians."""
    path = folder / f"{contender.module.export_name}.safetensors"
    record = contender.module.export(path)
    return {
        "steps": contender.steps,
        "seconds": contender.spent,
        "weights": sum(parameter.numel() for parameter in contender.module.encoder.parameters()),
        "constant_before_division": record["proven_constant_before_division"],
        **certified(task.parts, path),
    }


def certified(parts: Parts, weights: str | Path) -> dict[str, Any]:
    """Prove an encoder, and certify the test split by its own linear classifier and by Gaussians.

    Args:
        parts: Images and labels.
        weights: Of the encoder: a file beside that of its classifier, or the name of a shipped one.
    """
    encoder = LipschitzEncoder(weights)
    frozen = FrozenEncoder(encoder)
    features = {part: _encode(frozen, images) for part, (images, _) in parts.items()}
    labels = {part: labels for part, (_, labels) in parts.items()}
    shipped = str(weights) in shipped_names()
    head = LinearHead(weights if shipped else Path(weights).with_stem(f"{Path(weights).stem}-head"))
    directions = head.linear.weight
    edges = torch.cdist(directions, directions, compute_mode="donot_use_mm_for_euclid_dist")
    prediction, radius = margin_radii(head(features["test"]), edges)
    return {
        "margin": summary(prediction, radius / encoder.constant, labels["test"]),
        "ellips_chosen_for": gaussians(features, labels, encoder.constant),
    }


def over_margin(found: dict[str, Any]) -> dict[str, float]:
    """Return the ratios of the Gaussians to the linear classifier, of what :func:`certified` returns."""
    first = f"{36 / 255:.4g}"
    margin, ellips = found["margin"], found["ellips_chosen_for"][first]
    return {
        "ellips_over_margin_36": _over(ellips["certified_accuracy"][first], margin["certified_accuracy"][first]),
        "ellips_over_margin_mean_radius": _over(ellips["mean_radius"], margin["mean_radius"]),
    }


@torch.no_grad()
def _encode(encoder: FrozenEncoder, images: Tensor) -> Tensor:
    return torch.cat([encoder.encode(part.float() / 255) for part in images.split(BATCH)])


def step_ratio(task: Task, rounds: int) -> tuple[float, dict[str, list[float]]]:
    """Time single steps with orthogonal and with free matrices."""
    contenders = {"orthogonal": Contender(task, "lipnext", 1e9), "plain": Contender(task, "lipnext", 1e9, free=True)}
    times = interleaved_seconds({name: each.step for name, each in contenders.items()}, rounds, warmup=3)
    return median_ratio(times["plain"], times["orthogonal"]), times


def measure(
    task: Task, minutes: float, rounds: int, frontier: bool, keep: Path | None
) -> tuple[dict[str, float], dict[str, Any]]:
    """Train, evaluate and time.

    Returns:
        The ratios by name, and what they were made of.
    """
    budget = 60 * minutes
    contenders = {name: Contender(task, name, budget) for name in task.architectures}
    if frontier:
        contenders |= {f"lipnext_{m:g}": Contender(task, "lipnext", budget, margin=m) for m in task.margins}
    over_plain, times = step_ratio(task, rounds)
    train(list(contenders.values()))
    with tempfile.TemporaryDirectory() as folder:
        for name, each in contenders.items():
            each.module.export_name = name
        found = {name: evaluate(task, each, keep or Path(folder)) for name, each in contenders.items()}
    first = f"{36 / 255:.4g}"
    ours, theirs = found["lipnext"], found["torchlip"]
    ratios = {
        "certified_36_over_torchlip": _over(*(each["margin"]["certified_accuracy"][first] for each in (ours, theirs))),
        **over_margin(ours),
        "orthogonal_over_plain_step": over_plain,
    }
    spread = {name: [min(values), sorted(values)[rounds // 2], max(values)] for name, values in times.items()}
    return ratios, {"networks": found, "points_ahead": ahead(found), "step_seconds_min_median_max": spread}


def _over(first: float, second: float) -> float:
    return first / second if second else float("inf")


def main(args: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark."""
    parser = make_parser(__doc__)
    parser.add_argument("--cifar", type=Path, default=None, metavar="FOLDER", help="CIFAR-10 as image files")
    parser.add_argument("--minutes", type=float, default=None, help="of training for each network; 15 unless given")
    parser.add_argument("--full", action="store_true", help="90 minutes, and the frontier of four margins")
    parser.add_argument("--keep", type=Path, default=None, metavar="FOLDER", help="for the exported networks")
    parser.add_argument("--encoder", metavar="NAME", help="a shipped encoder, or a file: train none, evaluate this one")
    given: argparse.Namespace = parser.parse_args(args)
    if given.keep is not None:
        given.keep.mkdir(parents=True, exist_ok=True)
    minutes = given.minutes or (90.0 if given.full else 0.1 if given.quick else 15.0)
    rounds = 5 if given.quick else 31
    task = digits_task() if given.cifar is None else cifar_task(given.cifar)
    data = "digits" if given.cifar is None else "CIFAR-10 as image files"
    if given.encoder is not None:
        found = certified(task.parts, given.encoder)
        settings = {"data": data, "encoder": given.encoder}
        return report("lipschitz_encoders", over_margin(found), settings, measurements=found, json_file=given.json)
    ratios, measurements = measure(task, minutes, rounds, given.full, given.keep)
    settings = {
        "data": data,
        "minutes": minutes,
        "quick": given.quick,
        "batch_sizes": task.batch_sizes,
        "rates": task.rates,
        "compiled": task.compiled,
        "architectures": {name: each.to_record() for name, each in task.architectures.items()},
        **task.training,
    }
    return report("lipschitz_encoders", ratios, settings, measurements=measurements, json_file=given.json)


if __name__ == "__main__":
    main(sys.argv[1:])
