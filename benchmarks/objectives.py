"""The training objectives side by side on the digits: clean and certified accuracy, and normality of the classes.

``python -m benchmarks.objectives [--quick] [--json FILE]``. Every objective trains the same projector on the shipped
encoder's features. Latents lie on the unit ball, so that no objective gains radius by scaling them. The number of
epochs and the shrinkage are chosen on the validation split, by certified accuracy at the target radius; what is printed
is the test split, exact certificates in latent space, the mean over seeds. Normality is Mardia's test at 5 % on each
class of the test split, calibrated by simulation; the share of classes that pass.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks._common import make_parser, report
from datamodules import DigitsDataModule
from ellips.encoders import FrozenEncoder
from ellips.head import EllipsHead
from ellips.losses import (
    CertifiedRadius,
    ClassMMD,
    CodingRateReduction,
    Isotropy,
    LatentLoss,
    Objective,
    ScoreCrossEntropy,
)
from ellips.projector import LatentNorm
from ellips.regularization_search import RegularizationSearch, select_regularization
from ellips.theory.normality import mardia
from lightning_modules import Optimization

RADII = (0.25, 0.4, 0.5)
TARGET = 0.5
SHRINKAGE = (0.03, 0.1, 0.2, 0.3, 0.5)
Split = tuple[Tensor, Tensor]


def paper() -> list[LatentLoss]:
    """MCR² with its warm-up, then isotropy beside it ([E26] for CIFAR-10)."""
    return [CodingRateReduction(warmup_steps=10), Isotropy(start_step=10)]


# Raw latents have a scale of their own: their radii would compare with nothing here, and are left out.
OBJECTIVES: dict[str, tuple[LatentNorm, Callable[[], list[LatentLoss]]]] = {
    "paper, raw latents": ("none", paper),
    "paper, on the sphere": ("sphere", paper),
    "paper": ("ball", paper),
    "paper + MMD": ("ball", lambda: [*paper(), ClassMMD(std=0.1, weight=0.1, start_step=10)]),
    "cross-entropy": ("ball", lambda: [ScoreCrossEntropy()]),
    "certified radius": ("ball", lambda: [CertifiedRadius(TARGET)]),
    "paper + certified radius": ("ball", lambda: [*paper(), CertifiedRadius(TARGET, weight=20.0, start_step=10)]),
}


def load() -> dict[str, Split]:
    """Features and labels of each split, encoded once."""
    data = DigitsDataModule(FrozenEncoder("test_resnet", weights="digits"), batch_size=2000)
    data.setup("fit")
    data.setup("test")
    loaders = {"train": data.fit_dataloader(), "val": data.val_dataloader(), "test": data.test_dataloader()}
    splits = {}
    for name, loader in loaders.items():
        batches = [data.encode(batch) for batch in loader]
        splits[name] = torch.cat([b.feature for b in batches]), torch.cat([b.label for b in batches])
    return splits


def batches(size: int, epochs: int, seed: int) -> Iterator[Tensor]:
    """Two random halves an epoch, as in `configs/digits.yaml`."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        yield from torch.randperm(size, generator=generator).chunk(2)


def train(losses: list[LatentLoss], norm: LatentNorm, train_split: Split, epochs: int, seed: int) -> EllipsHead:
    """Train a head and fit its Gaussians."""
    torch.manual_seed(seed)
    features, labels = train_split
    head = EllipsHead(features.shape[1], 10, latent_dim=16, hidden_dim=256, latent_norm=norm, shrinkage=0.3)
    objective = Objective(losses)
    settings = Optimization("adamw", learning_rate=1e-3, schedule="cosine")
    optimizer = settings.build_optimizer(head)
    schedule = settings.build_schedule(optimizer, lambda: 2 * epochs)
    head.train()
    for step, rows in enumerate(batches(len(labels), epochs, seed)):
        loss = objective(head.latents(features[rows]), labels[rows], head.ellips, step)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
    return head.eval().fit(features, labels)


@torch.no_grad()
def evaluate(head: EllipsHead, split: Split) -> dict[str, float]:
    """Clean accuracy, certified accuracy at the radii, share of classes that pass Mardia's test; in percent."""
    features, labels = split
    latents = head.latents(features)
    certificate = head.ellips.certify(latents, "exact")
    correct = certificate.prediction == labels
    values = {"clean": correct}
    values.update({f"certified@{r:g}": correct & (certificate.radius >= r) for r in RADII})
    result = mardia(latents, labels, 10, calibration="monte_carlo")
    passes = 100 * float(result.pass_rate(0.05))
    return {**{name: 100 * float(v.double().mean()) for name, v in values.items()}, "mardia": passes}


def best_of(name: str, splits: dict[str, Split], epochs: tuple[int, ...], seed: int) -> dict[str, float]:
    """Train for each number of epochs, choose it and the shrinkage on the validation split, and test."""
    norm, make = OBJECTIVES[name]
    target = 0.0 if norm == "none" else TARGET
    search = RegularizationSearch(target, pooling=(0.0,), shrinkage=SHRINKAGE, method="exact")
    tried = []
    for count in epochs:
        head = train(make(), norm, splits["train"], count, seed)
        features, labels = splits["val"]
        with torch.no_grad():
            choice, _ = select_regularization(head.moments.compute(), head.latents(features), labels, search)
        head.ellips.regularization = choice.regularization
        head.finalize()
        tried.append(((choice.certified_accuracy, choice.accuracy), count, choice.regularization.shrinkage, head))
    _, count, shrinkage, head = max(tried, key=lambda item: item[0])
    values = evaluate(head, splits["test"])
    if norm == "none":
        values = {key: value for key, value in values.items() if not key.startswith("certified")}
    return {**values, "epochs": count, "shrinkage": shrinkage}


def main(args: list[str] | None = None) -> dict[str, Any]:
    """Run the comparison, print a table and the JSON object."""
    parser = make_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args(args)
    epochs: tuple[int, ...] = (20, 60)
    if options.quick:
        options.seeds, epochs = 1, (2,)
    splits = load()
    runs = {name: [best_of(name, splits, epochs, seed) for seed in range(options.seeds)] for name in OBJECTIVES}
    columns = ("clean", *(f"certified@{r:g}" for r in RADII), "mardia")
    means = {
        name: {c: statistics.mean(run[c] for run in seen) for c in columns if c in seen[0]}
        for name, seen in runs.items()
    }
    show(means, columns)
    target = f"certified@{TARGET:g}"
    ratios = {f"{target} certified_radius_over_paper": means["certified radius"][target] / means["paper"][target]}
    settings = {"target": TARGET, "epochs": epochs, "shrinkage": SHRINKAGE, "latent_dim": 16, **_plain(options)}
    return report("objectives", ratios, settings, measurements={"test": means, "runs": runs}, json_file=options.json)


def _plain(options: argparse.Namespace) -> dict[str, Any]:
    return {name: value for name, value in vars(options).items() if name != "json"}


def show(means: dict[str, dict[str, float]], columns: tuple[str, ...]) -> None:
    """Print the table, in percent of the test split."""
    table = Table(title="Digits, test split, latent space (unit ball), exact certificates, in %")
    table.add_column("objective")
    for column in columns:
        table.add_column(column, justify="right")
    for name, values in means.items():
        table.add_row(name, *(f"{values[c]:.1f}" if c in values else "–" for c in columns))
    Console(stderr=True, width=120).print(table)


if __name__ == "__main__":
    main()
