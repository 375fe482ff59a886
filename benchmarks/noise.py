"""What Gaussians that expect noise are worth to a smoothed decision, and projectors trained for it, on the digits.

``python -m benchmarks.noise [--quick] [--json FILE]``. Gaussians on the shipped encoder's features, fitted to clean
images or to noisy copies, and on projectors trained by the paper's objective or by votes, all with the same number of
steps. Pooling and shrinkage are chosen by the votes of noisy validation images, by most certified at the target radius.
What is printed of the test split has as many noisy copies of each image: accuracy of the vote, and radii by Clopper and
Pearson's bound. The class is chosen by the votes that are counted, so these radii compare and claim nothing. Projectors
are the mean over seeds.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks._common import make_parser, report
from datamodules import DigitsDataModule, GaussianNoise, NoisyImages
from ellips.encoders import FrozenEncoder
from ellips.gaussians import ClassMoments
from ellips.head import EllipsHead
from ellips.losses import CodingRateReduction, Isotropy, LatentLoss, Objective, VoteCrossEntropy, VoteRadius
from ellips.regularization_search import Candidate, RegularizationSearch
from ellips.vote_search import select_by_votes
from lightning_modules import Optimization

TARGET = 0.25
POOLING, SHRINKAGE = (0.0, 0.3, 0.6, 0.9), (0.03, 0.1, 0.3, 0.6)
ROWS = 1168  # of a training batch: with eight copies 146 images, so that no class is missing
Rows = tuple[Tensor, Tensor]


def paper() -> list[LatentLoss]:
    """MCR² with its warm-up, then isotropy beside it ([E26] for CIFAR-10)."""
    return [CodingRateReduction(warmup_steps=10), Isotropy(start_step=10)]


def votes(copies: int, temperature: float) -> list[LatentLoss]:
    """Cross-entropy of soft votes, and the hinge on their radius at two sigma."""
    settings: dict[str, Any] = {"copies": copies, "temperature": temperature}
    return [VoteCrossEntropy(**settings), VoteRadius(2.0, **settings)]


class Digits:
    """Features of the digits under one noise, encoded once."""

    def __init__(self, sigma: float, copies: int, voters: int, alpha: float) -> None:
        encoder = FrozenEncoder("test_resnet", weights="digits")
        noise: dict[str, Any] = {"augment": GaussianNoise(sigma), "copies": copies, "val_copies": voters}
        self.sigma, self.copies, self.voters, self.alpha = sigma, copies, voters, alpha
        self.data = DigitsDataModule(encoder, batch_size=ROWS, **noise)
        self.noisy = self._encode(self.data.fit_dataloader())
        self.clean = self._encode(DigitsDataModule(encoder, batch_size=ROWS).fit_dataloader())
        self.val = self._encode(self.data.votes_dataloader())
        test = NoisyImages(self.data.source("test"), GaussianNoise(sigma), voters, f"{self.data.seed}/test")
        rows = torch.arange(len(test)).split(ROWS)
        self.test = self._encode(DataLoader(test, batch_size=None, sampler=[part.tolist() for part in rows]))

    def _encode(self, loader: DataLoader[Any]) -> Rows:
        batches = [self.data.encode(batch) for batch in loader]
        return torch.cat([b.feature for b in batches]), torch.cat([b.label for b in batches])


def train(losses: list[LatentLoss], rows: Rows, copies: int, epochs: int, seed: int) -> EllipsHead:
    """Train a projector, with the copies of an image in one batch."""
    torch.manual_seed(seed)
    features, labels = rows
    head = EllipsHead(features.shape[1], 10, latent_dim=16, hidden_dim=256, shrinkage=0.3)
    objective, settings = Objective(losses), Optimization("adamw", learning_rate=1e-3, schedule="cosine")
    optimizer, batches = settings.build_optimizer(head), -(-len(labels) // ROWS)
    schedule = settings.build_schedule(optimizer, lambda: batches * epochs)
    generator, step = torch.Generator().manual_seed(seed), 0
    head.train()
    for _ in range(epochs):
        for images in torch.randperm(len(labels) // copies, generator=generator).chunk(batches):
            row = (images[:, None] * copies + torch.arange(copies)).flatten()
            loss = objective(head.latents(features[row]), labels[row], head.ellips, step)["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if schedule is not None:
                schedule.step()
            step += 1
    return head.eval()


@torch.no_grad()
def evaluate(digits: Digits, fitted_to: Rows, latents_of: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """Choose pooling and shrinkage by votes on the validation split, and count votes on the test split; in percent."""
    latents = latents_of(fitted_to[0])
    collected = ClassMoments(10, latents.shape[1])
    collected.update(latents, fitted_to[1])
    moments = collected.compute()

    def choose(rows: Rows, pooling: Sequence[float], shrinkage: Sequence[float], radius: float) -> Candidate:
        groups = latents_of(rows[0]).view(-1, digits.voters, latents.shape[1])
        search = RegularizationSearch(radius, pooling, shrinkage, sigma=digits.sigma, alpha=digits.alpha)
        return select_by_votes(moments, groups, rows[1][:: digits.voters], search)[0]

    chosen = choose(digits.val, POOLING, SHRINKAGE, TARGET)
    setting = chosen.regularization
    values: dict[str, Any] = {"pooling": setting.pooling, "shrinkage": setting.shrinkage}
    for name, rows, of in (("val", digits.val, chosen), ("test", digits.test, None)):
        found = of or choose(rows, (setting.pooling,), (setting.shrinkage,), TARGET)
        values[f"{name}/vote"] = 100 * found.accuracy
        values[f"{name}/certified@{TARGET:g}"] = 100 * found.certified_accuracy
        values[f"{name}/mean_radius"] = found.mean_radius
    return values


def compare(digits: Digits, epochs: int, seeds: int) -> dict[str, list[dict[str, Any]]]:
    """Every row of the table, one entry for each seed."""
    copies = digits.copies
    projectors: dict[str, tuple[Callable[[], list[LatentLoss]], Rows, int]] = {
        "projector, paper, clean": (paper, digits.clean, 1),
        "projector, paper, noisy": (paper, digits.noisy, copies),
        "projector, votes": (lambda: votes(copies, 16.0), digits.noisy, copies),
    }
    rows = {
        "features, clean fit": [evaluate(digits, digits.clean, lambda z: z)],
        "features": [evaluate(digits, digits.noisy, lambda z: z)],
    }
    for name, (make, split, together) in projectors.items():
        rounds = epochs * copies // together  # clean images are fewer: the same number of steps
        heads = [train(make(), split, together, rounds, seed) for seed in range(seeds)]
        rows[name] = [evaluate(digits, digits.noisy, head.latents) for head in heads]
    return rows


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Run and print the table."""
    parser = make_parser(__doc__)
    parser.add_argument("--sigmas", type=float, nargs="+", default=[0.25, 0.5], help="standard deviations of the noise")
    options = parser.parse_args(arguments)
    copies, voters, alpha, epochs, seeds = (2, 15, 0.1, 2, 1) if options.quick else (8, 100, 0.001, 40, 3)
    runs = {f"{sigma:g}": compare(Digits(sigma, copies, voters, alpha), epochs, seeds) for sigma in options.sigmas}
    means = {sigma: {name: _mean(seen) for name, seen in rows.items()} for sigma, rows in runs.items()}
    _show(means)
    column = f"test/certified@{TARGET:g}"
    ratios = {
        f"{column} noisy_over_clean_fit sigma={sigma}": rows["features"][column] / rows["features, clean fit"][column]
        for sigma, rows in means.items()
    }
    sizes = {"copies": copies, "voters": voters, "alpha": alpha, "epochs": epochs, "seeds": seeds, "target": TARGET}
    settings = {**sizes, **_plain(options)}
    return report("noise", ratios, settings, measurements={"means": means, "runs": runs}, json_file=options.json)


def _mean(seen: list[dict[str, Any]]) -> dict[str, float]:
    return {name: statistics.mean(run[name] for run in seen) for name in seen[0] if "/" in name}


def _plain(options: argparse.Namespace) -> dict[str, Any]:
    return {name: value for name, value in vars(options).items() if name != "json"}


def _show(means: dict[str, dict[str, dict[str, float]]]) -> None:
    columns = [name for name in next(iter(next(iter(means.values())).values())) if "/" in name]
    table = Table("sigma", "Gaussians on", *columns, title="Digits, input space, votes of noisy copies")
    for sigma, rows in means.items():
        for name, values in rows.items():
            shown = [f"{values[c]:.3f}" if c.endswith("radius") else f"{values[c]:.1f}" for c in columns]
            table.add_row(sigma, name, *shown)
    Console(stderr=True, width=160).print(table)


if __name__ == "__main__":
    main()
