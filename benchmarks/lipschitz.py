"""What a sampled Jacobian norm costs and how exact it is, against full Jacobians and ART's CLEVER.

    python -m benchmarks.lipschitz [--quick] [--json FILE] [--latent-dim 128] [--radius 0.5]

On the shipped digits encoder with a projector trained in a few seconds. Ratios:

- ``norm_over_jvp_plus_vjp``: seconds per sampled norm over those of one forward- plus one reverse-mode product.
- ``speedup_over_full_jacobian``: seconds of exact Jacobians, by one reverse product per latent dimension, and their
  singular values, over those of the norms, at the same points.
- ``speedup_over_art_clever_u``: seconds per image of the Adversarial Robustness Toolbox's ``clever_u`` (its default
  pool factor) over those of ``Clever``, at the same number of points. ``..._in_large_batches`` is the same with ART's
  batches made as large as ours, which its interface allows at the price of as many batches fewer;
  ``margin_speedup_over_art_clever_u`` puts ``MarginClever``, which estimates what ART does, in place of ``Clever``.
- ``spectral_norm_relative_error``: the largest |1 - norm / exact norm| over all sampled points; ``..._mean`` their
  mean, and ``..._of_maximum`` that of the sample maximum, which is what CLEVER uses.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.func import jvp, vjp

from benchmarks._common import interleaved_seconds, make_parser, median_ratio, report
from ellips.encoders import FrozenEncoder
from ellips.head import EllipsHead
from ellips.input_certifiers import MarginClever
from ellips.lipschitz import Clever
from ellips.lipschitz.clever import WAVE
from ellips.losses import CodingRateReduction
from ellips.pipeline import ImageClassifier
from ellips.splits import digits_part
from ellips.types import ImageMap

ART_POOL_FACTOR = 10  # clever_u's default: it is also the number of images in each of ART's backward passes


class Sizes(NamedTuple):
    """How much is done.

    Attributes:
        points: Sampled points per image.
        rounds: Timed rounds.
        images: Images for the accuracy.
        steps: Training steps of the projector.
    """

    points: int
    rounds: int
    images: int
    steps: int


SIZES = {"full": Sizes(1280, 7, 4, 60), "quick": Sizes(160, 3, 1, 10)}


def make_classifier(latent_dim: int, steps: int) -> ImageClassifier:
    """Train a projector on the shipped encoder's features and fit the Gaussians."""
    torch.manual_seed(0)
    encoder = FrozenEncoder("test_resnet", weights="digits")
    images, labels = digits_part("train")
    features = encoder.encode(images)
    head = EllipsHead(encoder.feature_dim, 10, latent_dim, hidden_dim=256, shrinkage=0.3)
    loss = CodingRateReduction()
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3)
    for step in range(steps):
        optimizer.zero_grad()
        loss(head.latents(features), labels, head.ellips, step).backward()
        optimizer.step()
    head.fit(features, labels)
    return ImageClassifier(encoder, head).requires_grad_(False)


def full_jacobians(function: ImageMap, points: Tensor) -> Tensor:
    """Exact Jacobians ``(M, d, D)``, one reverse-mode product per latent dimension."""
    with torch.no_grad():
        found: Any = vjp(function, points)
        value, pull_back = found
        rows = [pull_back(unit.expand_as(value).contiguous())[0].flatten(1) for unit in torch.eye(value.shape[1])]
    return torch.stack(rows, dim=1)


def one_of_each(function: ImageMap, points: Tensor, direction: Tensor) -> None:
    """One forward-mode and one reverse-mode product, each by itself."""
    with torch.no_grad():
        jvp(function, (points,), (direction,))
        found: Any = vjp(function, points)
        found[1](torch.ones_like(found[0]))


def products(classifier: ImageClassifier, source: Clever, image: Tensor, rounds: int) -> dict[str, list[float]]:
    """Time sampled norms, single products and full Jacobians at the same points, in turn."""
    chunks = list(source.points(image))
    directions = [torch.randn_like(chunk) for chunk in chunks]
    function = classifier.latents
    return interleaved_seconds(
        {
            "norms": lambda: source.norms(function, image),
            "products": lambda: [one_of_each(function, *pair) for pair in zip(chunks, directions, strict=True)],
            "jacobians": lambda: [torch.linalg.svdvals(full_jacobians(function, chunk)) for chunk in chunks],
        },
        rounds,
    )


def accuracy(classifier: ImageClassifier, source: Clever, images: Tensor) -> dict[str, float]:
    """Compare all sampled norms of some images with a full singular value decomposition."""
    errors, of_maximum = [], []
    for image in images:
        norms, _ = source.norms(classifier.latents, image)
        exact = [
            torch.linalg.svdvals(full_jacobians(classifier.latents, part).double()) for part in source.points(image)
        ]
        truth = torch.cat(exact)[:, 0]
        errors.append(1 - norms / truth)
        of_maximum.append(float((1 - norms.max() / truth.max()).abs()))
    # A norm from float32 products may also lie a few units in the last place above the exact one.
    deviations = torch.cat(errors).abs()
    return {
        "spectral_norm_relative_error": float(deviations.max()),
        "spectral_norm_relative_error_mean": float(deviations.mean()),
        "spectral_norm_relative_error_of_maximum": max(of_maximum),
    }


def art_clever(classifier: ImageClassifier, image: Tensor, points: int, radius: float, pool: int) -> Callable[[], None]:
    """Return ART's ``clever_u`` for one image with ``points`` sampled points, to be called."""
    from art.estimators.classification import PyTorchClassifier
    from art.metrics import clever_u

    estimator = PyTorchClassifier(
        classifier, loss=torch.nn.CrossEntropyLoss(), input_shape=tuple(image.shape), nb_classes=10, device_type="cpu"
    )

    def run() -> None:
        np.random.seed(0)  # noqa: NPY002 - ART draws from NumPy's global generator
        clever_u(estimator, image.numpy(), 50, points // pool, radius, norm=2, pool_factor=pool, verbose=False)

    return run


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure and report."""
    sizes = SIZES["quick" if options.quick else "full"]
    classifier = make_classifier(options.latent_dim, sizes.steps)
    images, _ = digits_part("val")
    batches = {"num_batches": sizes.points // 32, "num_samples": 32}
    source = Clever(options.radius, **batches)
    times = products(classifier, source, images[0], sizes.rounds)
    pools = {"art_clever_u": ART_POOL_FACTOR, "art_clever_u_in_large_batches": min(WAVE, sizes.points)}
    per_image = {
        "clever": lambda: source(classifier.latents, images[:1]),
        "margin_clever": lambda: MarginClever(options.radius, **batches).margins(classifier, images[:1]),
    } | {name: art_clever(classifier, images[0], sizes.points, options.radius, pool) for name, pool in pools.items()}
    times |= interleaved_seconds(per_image, min(sizes.rounds, 3))
    ratios = {
        "norm_over_jvp_plus_vjp": median_ratio(times["norms"], times["products"]),
        "speedup_over_full_jacobian": median_ratio(times["jacobians"], times["norms"]),
        **{f"speedup_over_{name}": median_ratio(times[name], times["clever"]) for name in pools},
        "margin_speedup_over_art_clever_u": median_ratio(times["art_clever_u"], times["margin_clever"]),
        **accuracy(classifier, source, images[: sizes.images]),
    }
    settings = {
        "quick": options.quick,
        "radius": options.radius,
        "latent_dim": options.latent_dim,
        "points": sizes.points,
        "num_iterations": source.num_iterations,
        "chunk_size": source.chunk_size,
        "wave": WAVE,
        "rounds": sizes.rounds,
        "art_pool_factor": ART_POOL_FACTOR,
    }
    measured = {f"{name}_seconds": float(np.median(values)) for name, values in times.items()}
    return report("lipschitz", ratios, settings, measurements=measured, json_file=options.json)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Read the command line and measure."""
    parser = make_parser(__doc__)
    parser.add_argument("--latent-dim", type=int, default=128, help="d: width of the latents")
    parser.add_argument("--radius", type=float, default=0.5, help="ball that is sampled, on [0, 1] pixels")
    return run(parser.parse_args(arguments))


if __name__ == "__main__":
    main()
