"""What smoothing the decision brings over smoothing the encoder, and what early stopping saves.

    python -m benchmarks.smoothing [--quick] [--json FILE] [--cifar FOLDER --encoder FILE.safetensors]

On the shipped digits encoder, which never saw noise, and, where a folder of CIFAR-10 as image files (``train/<class>``,
``test/<class>``) and an encoder that ``ellips train-encoder`` trained with noise are given, on these. Four classifiers
on the same noise of the same images: the smoothed encoder with Bernstein's bound; votes of the linear head and of
Gaussians at a fixed number of draws; votes of the Gaussians with early stopping. The Gaussians are fitted to noisy
features; on which (means over the image or over a grid of cells, their roots or themselves), their regularisation, and
what the smoothed encoder needs, is chosen on the validation split. Ratios, each with the suffix ``_digits`` or
``_cifar``:

- ``passes_saved_by_stopping``: images through the encoder at 10,000 draws over those with early stopping, for radii up
  to 2 sigma, on all images that are compared; ``passes_saved_by_stopping_3_sigma`` with 3 sigma among them, on fewer.
  ``points_lost_by_stopping`` (and ``..._3_sigma``): the most that certified accuracy is expected to lose by it at any
  of these radii, in points, over votes that are drawn anew from each image's share; ``measurements`` has what the votes
  that were drawn lost, which comes in steps of one image.
- ``decision_over_encoder_mean_radius``: mean radius (0 where wrong) of the votes over that of the smoothed encoder.
- ``ellips_over_linear_mean_radius``: of votes by Gaussians over votes by the linear head, at 1,000 draws of more
  images, and ``..._10000`` at 10,000 draws; ``measurements`` has the standard error of both.
- ``votes_over_bare_encoder``: images a second of sampling, noise and scores included, over those of the encoder alone
  on noise that is ready.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from benchmarks._common import interleaved_seconds, make_parser, median_ratio, report, seconds
from benchmarks._outcomes import (
    ALPHA,
    RADII,
    RADII_3_SIGMA,
    SIGMA,
    Outcome,
    best_ball,
    encoder_outcome,
    outcome,
    points_lost,
    spread_of_ratio,
    votes_outcome,
)
from benchmarks._votes import GRID, TRIED, VoteHead, chosen_features, fit_for_votes, grid_encoder, over_cells
from ellips.chunks import Chunks
from ellips.datamodules import ImageFolderDataModule, Split
from ellips.encoders import FrozenEncoder, LinearHead
from ellips.input_certifiers import Chain, SmoothedDecision
from ellips.regularization_search import RegularizationSearch
from ellips.smoothing import ImageNoise
from ellips.smoothing.voting import cast_votes
from ellips.splits import digits_part

BATCH = 500


class Sizes(NamedTuple):
    """How much is done.

    Attributes:
        draws: Noisy copies of each test image that are counted.
        images: Test images of these, with all draws.
        digits: Likewise of the digits, which are encoded faster; None: all.
        copies: Noisy copies of each training image.
        held_out: Validation images for choices.
        votes: Noisy copies of each of them.
        rounds: Timed rounds of the throughput.
        compared: Test images on which Gaussians and linear head are compared, at ``FEW`` draws, and votes stop early.
    """

    draws: int
    images: int
    digits: int | None
    copies: int
    held_out: int
    votes: int
    rounds: int
    compared: int


SIZES = {"full": Sizes(10_000, 120, None, 8, 300, 100, 7, 500), "quick": Sizes(10_000, 40, 120, 4, 60, 50, 5, 180)}
FEW = 1000


class Task(NamedTuple):
    """A data set with an encoder.

    Attributes:
        encoder: Images to features.
        head: Features to scores; None: one is fitted to noisy features.
        parts: Images and labels of train, val and test.
        grid: Cells along each side that the features are means over.
    """

    encoder: FrozenEncoder
    head: Callable[[Tensor], Tensor] | None
    parts: dict[str, tuple[Tensor, Tensor]]
    grid: int = 1


def digits_task() -> Task:
    """The shipped encoder, on scikit-learn's digits."""
    encoder = FrozenEncoder("test_resnet", weights="digits")
    return Task(encoder, None, {part: digits_part(part) for part in ("train", "val", "test")})


def cifar_task(folder: Path, weights: Path, sizes: Sizes) -> Task:
    """An encoder that ``ellips train-encoder`` trained with noise, on images of a folder."""
    recipe = json.loads(weights.with_suffix(".json").read_text(encoding="utf-8"))["recipe"]
    encoder = grid_encoder(recipe["depth"], recipe["width"], weights)
    data = ImageFolderDataModule(encoder, folder)
    rows: dict[Split, int] = {"train": 45_000, "val": sizes.held_out, "test": max(sizes.images, sizes.compared)}
    parts: dict[str, tuple[Tensor, Tensor]] = {}
    for part, wanted in rows.items():
        source = data.source(part)
        # Evenly over the classes, which lie in folders one after the other.
        chosen = np.linspace(0, len(source) - 1, min(wanted, len(source))).astype(int).tolist()
        parts[part] = source.read(chosen)[0].float() / 255, torch.from_numpy(source.labels[chosen])
    linear = LinearHead(weights.with_stem(f"{weights.stem}-head"))
    return Task(encoder, lambda features: linear(over_cells(features)), parts, GRID)


@torch.no_grad()
def noisy_features(encoder: FrozenEncoder, images: Tensor, copies: int, seed: int) -> Tensor:
    """Features ``(N, copies, D)`` of images under noise."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for part in images.repeat_interleave(copies, 0).split(BATCH):
        found.append(encoder.encode(part + SIGMA * torch.randn(part.shape, generator=generator)))
    return torch.cat(found).view(len(images), copies, -1)


def fit_gaussians(task: Task, sizes: Sizes, train: Tensor, held_out: Tensor) -> VoteHead:
    """Fit to noisy features; which features, pooling and shrinkage by votes on the validation split."""
    held_labels = task.parts["val"][1][: len(held_out)]
    search = RegularizationSearch(0.5 * SIGMA if sizes.votes < 60 else SIGMA, sigma=SIGMA, **TRIED)
    return fit_for_votes(train, task.parts["train"][1], held_out, held_labels, search, task.grid)


def linear_head(task: Task, train: Tensor) -> Callable[[Tensor], Tensor]:
    """The encoder's own head, or logistic regression on noisy features."""
    if task.head is not None:
        return task.head
    labels = task.parts["train"][1].repeat_interleave(train.shape[1])
    found = LogisticRegression(max_iter=300).fit(train.flatten(0, 1).numpy(), labels.numpy())
    weight, bias = (torch.from_numpy(x).float() for x in (found.coef_, found.intercept_))
    return lambda features: features @ weight.T + bias


class Classifiers:
    """The Gaussians that were chosen, and the linear head, on the same features.

    Args:
        task: Where the features are of.
        gaussians: On them.
        linear: Features to scores.
    """

    def __init__(self, task: Task, gaussians: VoteHead, linear: Callable[[Tensor], Tensor]) -> None:
        self.task, self.gaussians, self.linear = task, gaussians, linear
        self.ellips = gaussians.head.ellips
        self.chain = Chain(lambda images: self.latents(task.encoder.encode(images)), self.ellips)

    def latents(self, features: Tensor) -> Tensor:
        """Return what the Gaussians are on, of features ``(..., D)``."""
        found = chosen_features(features, self.gaussians, self.task.grid)
        return self.gaussians.head.latents(found.flatten(0, -2)).view(*found.shape[:-1], -1)

    def votes(self, features: Tensor) -> dict[str, Tensor]:
        """Return the classes of copies ``(n, D)``, by classifier."""
        return {"linear": self.linear(features).argmax(1), "ellips": self.ellips.predict(self.latents(features))}


def measure(task: Task, sizes: Sizes, name: str) -> tuple[dict[str, float], dict[str, Any]]:
    """Run all four classifiers on one task."""
    train = noisy_features(task.encoder, task.parts["train"][0], sizes.copies if name == "digits" else 2, 1)
    val_images, val_labels = (x[: sizes.held_out] for x in task.parts["val"])
    held_out = noisy_features(task.encoder, val_images, sizes.votes, 2)
    found = Classifiers(task, fit_gaussians(task, sizes, train, held_out), linear_head(task, train))
    ball = best_ball(found.latents(train.flatten(0, 1)), found.latents(held_out), val_labels, found.ellips, sizes.draws)
    images, labels = task.parts["test"]
    wanted = sizes.digits if name == "digits" else sizes.images
    several = _spread(len(labels), max(sizes.compared, wanted or len(labels)))
    images, labels = images[several], labels[several]
    rows = _spread(len(labels), wanted)  # of them, those that are drawn for most often
    some, few = (images[rows], labels[rows]), min(FEW, sizes.draws)
    outcomes: dict[str, Outcome] = {}
    spent = {"fixed": seconds(lambda: outcomes.update(fixed_outcomes(found, *some, ball, sizes.draws)))}
    compared = fixed_outcomes(found, images, labels, None, few)
    asked = {"early": (RADII, images, labels), "early_3_sigma": (RADII_3_SIGMA, *some)}
    for kind, (radii, *of) in asked.items():
        certifier = SmoothedDecision(SIGMA, sizes.draws, ALPHA, radii=radii, chunk_size=BATCH)
        spent[kind] = seconds(lambda c=certifier, k=kind, o=of: outcomes.update({k: early_outcome(c, found.chain, *o)}))
    compared["early"] = outcomes["early"]
    outcomes["early"] = outcomes["early"].of(rows)
    times = throughput(task, found.chain, images, sizes.rounds)
    fixed = outcomes["ellips"]
    lost = {kind: points_lost(fixed, sizes.draws, radii) for kind, (radii, *_) in asked.items()}
    lost_here = {
        kind: max(fixed.certified(r) - outcomes[kind].certified(r) for r in radii)
        for kind, (radii, *_) in asked.items()
    }
    stopped = {"early": compared["early"].passes.double(), "early_3_sigma": outcomes["early_3_sigma"].passes.double()}
    saved = {kind: float(fixed.passes[0] / passes.mean()) for kind, passes in stopped.items()}
    ratios = {
        "passes_saved_by_stopping": saved["early"],
        "passes_saved_by_stopping_3_sigma": saved["early_3_sigma"],
        "points_lost_by_stopping": lost["early"],
        "points_lost_by_stopping_3_sigma": lost["early_3_sigma"],
        "decision_over_encoder_mean_radius": float(fixed.radius.mean() / outcomes["encoder"].radius.mean()),
        "ellips_over_linear_mean_radius": _over(compared),
        f"ellips_over_linear_mean_radius_{sizes.draws}": _over(outcomes),
        "votes_over_bare_encoder": median_ratio(times["bare"], times["votes"]),
    }
    measurements = {
        "classifiers": {kind: each.summary() for kind, each in outcomes.items()},
        "compared": {kind: each.summary() for kind, each in compared.items()},
        "ellips_over_linear_standard_error": {
            str(few): spread_of_ratio(compared["ellips"].radius, compared["linear"].radius),
            str(sizes.draws): spread_of_ratio(fixed.radius, outcomes["linear"].radius),
        },
        "passes_saved_standard_error": {
            kind: saved[kind] * float(passes.std() / passes.mean()) / len(passes) ** 0.5
            for kind, passes in stopped.items()
        },
        "points_lost_with_the_votes_drawn": lost_here,
        "seconds": spent,
        "throughput_seconds": times,
        "features": found.gaussians.describe(),
        "regularization": str(found.ellips.regularization),
        "ball": ball,
        "images": len(rows),
        "images_compared": len(images),
    }
    return {f"{key}_{name}": value for key, value in ratios.items()}, measurements


def _spread(total: int, count: int | None) -> Tensor:
    """Return ``count`` of so many rows, spread over all of them; all where there are no more, or for None."""
    return torch.linspace(0, total - 1, min(total, count or total)).long()


def _over(found: dict[str, Outcome]) -> float:
    return float(found["ellips"].radius.mean() / found["linear"].radius.mean())


@torch.no_grad()
def fixed_outcomes(
    found: Classifiers, images: Tensor, labels: Tensor, ball: float | None, draws: int
) -> dict[str, Outcome]:
    """The classifiers with a fixed number of draws; each noisy copy is encoded once for all of them.

    Without a ``ball`` the encoder is not smoothed.
    """
    votes: dict[tuple[str, str], list[Tensor]] = {
        (kind, purpose): [] for kind in ("linear", "ellips") for purpose in ("selection", "estimation")
    }
    smoothed = []
    for image, label in zip(images, labels, strict=True):
        for purpose, count in (("selection", 100), ("estimation", draws)):
            copies = torch.empty(count, *image.shape)
            ImageNoise(image, SIGMA, 0, purpose).fill(copies)
            features = torch.cat([found.task.encoder.encode(part) for part in copies.split(BATCH)])
            for kind, classes in found.votes(features).items():
                votes[kind, purpose].append(classes)
        if ball is not None:
            smoothed.append(encoder_outcome(found.latents(features)[None], label[None], found.ellips, ball, draws))
    outcomes = {
        kind: votes_outcome(
            torch.stack(votes[kind, "estimation"]),
            torch.stack(votes[kind, "selection"]),
            labels,
            found.ellips.num_classes,
        )
        for kind in ("linear", "ellips")
    }
    if smoothed:
        columns = zip(*((each.radius, each.right, each.passes) for each in smoothed), strict=True)
        outcomes["encoder"] = Outcome(*(torch.cat(column) for column in columns))
    return outcomes


def early_outcome(certifier: SmoothedDecision, chain: Chain, images: Tensor, labels: Tensor) -> Outcome:
    """Votes of the Gaussians with early stopping, as ``ellips certify`` takes them."""
    votes = certifier.vote(chain, images)
    return outcome(votes.prediction, votes.radius, labels, votes.draws + votes.selection)


def throughput(task: Task, chain: Chain, images: Tensor, rounds: int) -> dict[str, list[float]]:
    """Seconds of a number of votes, and of the encoder alone on as many images that are noisy already."""
    streams = [ImageNoise(image, SIGMA, 0, "throughput") for image in images[:16]]
    decide = SmoothedDecision(SIGMA).decision(chain)
    per_image = 2 * BATCH // len(streams)
    ready = torch.empty(per_image * len(streams), *images.shape[1:])
    for i, stream in enumerate(streams):
        stream.fill(ready[i * per_image : (i + 1) * per_image])
    return interleaved_seconds(
        {
            "bare": lambda: [task.encoder.encode(part) for part in ready.split(BATCH)],
            "votes": lambda: cast_votes(decide, streams, [per_image] * len(streams), Chunks(BATCH, BATCH)),
        },
        rounds,
    )


def main(args: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark."""
    parser = make_parser(__doc__)
    parser.add_argument("--cifar", type=Path, default=None, metavar="FOLDER", help="CIFAR-10 as image files")
    parser.add_argument("--encoder", type=Path, default=None, metavar="FILE", help="an encoder trained with noise")
    parser.add_argument("--images", type=int, default=None, help="test images of each data set")
    given: argparse.Namespace = parser.parse_args(args)
    sizes = SIZES["quick" if given.quick else "full"]
    sizes = sizes._replace(images=given.images or sizes.images, digits=given.images or sizes.digits)
    if (given.cifar is None) != (given.encoder is None):
        parser.error("--cifar needs the --encoder that was trained on it, and the other way round")
    tasks = {"digits": digits_task()}
    if given.cifar is not None:
        tasks["cifar"] = cifar_task(given.cifar, given.encoder, sizes)
    ratios: dict[str, float] = {}
    measurements: dict[str, Any] = {}
    for name, task in tasks.items():
        found, measurements[name] = measure(task, sizes, name)
        print(json.dumps(found), file=sys.stderr, flush=True)  # the next data set may take an hour
        ratios |= found
    settings = {"quick": given.quick, "sigma": SIGMA, "alpha": ALPHA, "radii": list(RADII), **sizes._asdict()}
    return report("smoothing", ratios, settings, measurements=measurements, json_file=given.json)


if __name__ == "__main__":
    main()
