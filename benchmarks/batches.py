"""Training batches for many classes: a plain shuffle against several images of some classes, after the same steps.

``python -m benchmarks.batches [--quick] [--json FILE]``. A hundred synthetic classes, Gaussian in 16 dimensions beside
16 of noise that all classes share, bent into 64 by a random network, in global batches of 104: as 1,000 classes in
batches of 1,024, a shuffled batch lacks a third of the classes and has one image of another third. Each sampler trains
the same projector with the paper's objective for ImageNet (MCR², isotropy, MMD) for the same number of steps, with
latents as they are and on the unit ball. The Gaussians are fitted to all training points. What is printed is the test
split, exact certificates in latent space, with radii in units of the mixture's scale; ``ratios`` are medians over seeds
of each sampler's value over that of the plain shuffle with the same seed.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from itertools import count, islice
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks._common import make_parser, median_ratio, report
from datamodules.class_batches import ClassBatches
from datamodules.sampling import BalancedBatches
from ellips.head import EllipsHead
from ellips.losses import ClassMMD, CodingRateReduction, Isotropy, Objective
from ellips.projector import LatentNorm
from lightning_modules import Optimization

CLASSES, DIM, WIDTH, LATENT, BATCH = 100, 16, 64, 104, 104
NOISE = 2.0  # standard deviation of what all classes share, where their centres have 1
SHUFFLE = "shuffle"
REGULARIZATION = {"pooling": 0.5, "shrinkage": 0.3}
NORMS: tuple[LatentNorm, ...] = ("none", "ball")
VALUES = ("accuracy", "certified", "relative_radius")


class Split(NamedTuple):
    """Features ``(N, D)`` and labels ``(N,)``."""

    features: Tensor
    labels: Tensor


def draw(per_class: int, seed: int, part: int, spread: float) -> Split:
    """Draw a split of the classes of a seed."""
    fixed, own = (torch.Generator().manual_seed(number) for number in (seed, 1000 * (part + 1) + seed))
    centers = torch.randn(CLASSES, DIM, generator=fixed)
    scales = spread * (0.3 + 1.4 * torch.rand(CLASSES, DIM, generator=fixed))
    bend = nn.Sequential(nn.Linear(2 * DIM, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH))
    for parameter in bend.parameters():
        parameter.data = torch.randn(parameter.shape, generator=fixed) / parameter.shape[-1] ** 0.5
    labels = torch.arange(CLASSES).repeat_interleave(per_class)
    points = centers[labels] + scales[labels] * torch.randn(len(labels), DIM, generator=own)
    noise = NOISE * torch.randn(len(points), DIM, generator=own)
    with torch.no_grad():
        return Split(bend(torch.cat([points, noise], dim=1)), labels)


def rows_of(images: int | None, labels: Tensor, seed: int) -> Iterator[list[int]]:
    """Batch after batch, epoch after epoch."""
    order: BalancedBatches | ClassBatches
    if images is None:
        order = BalancedBatches(len(labels), BATCH, shuffle=True, seed=seed)
    else:
        order = ClassBatches(labels, BATCH, images, seed=seed)
    for epoch in count():
        order.set_epoch(epoch)
        yield from order


def train(images: int | None, norm: LatentNorm, split: Split, steps: int, seed: int) -> EllipsHead:
    """Train a head on batches of one sampler and fit its Gaussians."""
    torch.manual_seed(seed)
    head = EllipsHead(WIDTH, CLASSES, LATENT, 256, latent_norm=norm, **REGULARIZATION)
    warmup = steps // 10
    # Latents on the ball lie within 1 of its middle: their Gaussians are smaller, and MMD counts for less.
    std, weight = (1.0, 1.0) if norm == "none" else (0.1, 0.1)
    mmd = ClassMMD(std=std, weight=weight, start_step=warmup)
    objective = Objective([CodingRateReduction(warmup_steps=warmup), Isotropy(start_step=warmup), mmd])
    settings = Optimization("adamw", learning_rate=1e-3, schedule="cosine")
    optimizer = settings.build_optimizer(head)
    schedule = settings.build_schedule(optimizer, lambda: steps)
    head.train()
    for step, rows in enumerate(islice(rows_of(images, split.labels, seed), steps)):
        loss = objective(head.latents(split.features[rows]), split.labels[rows], head.ellips, step)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
    return head.eval().fit(*split)


@torch.no_grad()
def evaluate(head: EllipsHead, split: Split, radius: float) -> dict[str, float]:
    """Accuracy and certified accuracy in percent, mean of min(R / scale, 1), 0 for wrong predictions."""
    certificate = head.ellips.certify(head.latents(split.features), "exact")
    correct = certificate.prediction == split.labels
    found = torch.where(correct, certificate.radius / head.ellips.scale, 0.0).clamp(max=1)
    return {
        "accuracy": 100 * float(correct.double().mean()),
        "certified": 100 * float((found >= radius).double().mean()),
        "relative_radius": float(found.mean()),
    }


def main(args: list[str] | None = None) -> dict[str, Any]:
    """Run the comparison, print a table and the JSON object."""
    parser = make_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--per-class", type=int, default=100, help="training images of a class")
    parser.add_argument("--images", type=int, nargs="+", default=[2, 8], help="images per class in a batch")
    parser.add_argument("--spread", type=float, default=0.6, help="of a class, where centres have 1")
    parser.add_argument("--radius", type=float, default=0.1, help="of certified accuracy, in units of the scale")
    options = parser.parse_args(args)
    if options.quick:
        options.seeds, options.steps, options.per_class, options.images = 1, 10, 20, [4]
    samplers: dict[str, int | None] = {SHUFFLE: None, **{f"{BATCH // m} x {m}": m for m in options.images}}
    runs: dict[str, list[dict[str, float]]] = {f"{norm}, {name}": [] for norm in NORMS for name in samplers}
    for seed in range(options.seeds):
        training, test = (draw(n, seed, part, options.spread) for part, n in enumerate((options.per_class, 10)))
        for norm in NORMS:
            for name, images in samplers.items():
                head = train(images, norm, training, options.steps, seed)
                runs[f"{norm}, {name}"].append(evaluate(head, test, options.radius))
    show(runs, options.radius)
    ratios = {
        f"{value} {norm}, {name}": median_ratio(*([r[value] for r in runs[f"{norm}, {n}"]] for n in (name, SHUFFLE)))
        for norm in NORMS
        for name in samplers
        if name != SHUFFLE
        for value in VALUES
    }
    fixed = {"classes": CLASSES, "batch": BATCH, "latent": LATENT, "noise": NOISE, **REGULARIZATION}
    settings = {**fixed, **{name: value for name, value in vars(options).items() if name != "json"}}
    return report("batches", ratios, settings, measurements={"test": runs}, json_file=options.json)


def show(runs: dict[str, list[dict[str, float]]], radius: float) -> None:
    """Print medians over seeds."""
    table = Table(title="100 synthetic classes, test split, latent space, exact certificates; medians")
    for heading in ("latents, batches", "accuracy %", f"certified at {radius:g} %", "relative radius"):
        table.add_column(heading, justify="right")
    for name, seen in runs.items():
        medians = [statistics.median(run[value] for run in seen) for value in VALUES]
        table.add_row(name, f"{medians[0]:.1f}", f"{medians[1]:.1f}", f"{medians[2]:.4f}")
    Console(stderr=True, width=120).print(table)


if __name__ == "__main__":
    main()
