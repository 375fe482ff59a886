"""Covariances of low rank against full ones: what scoring, exact certificates and fitting cost with many classes.

The mixture is like that of a trained head: classes overlap (means at random, at a distance from each other that makes
80 % of the classes' own samples theirs), the common covariance has condition 10, and each class is wider or narrower
than it, by up to a factor of 2.5 in variance, in ``rank`` random directions. Points are samples of the mixture.

- ``low_rank_scoring_speedup_K_D``: seconds that scores of the full model take over those of the low-rank one. The full
  model's are measured on a tenth of the classes and taken times ten: with 1,000 classes and 1,024 dimensions it would
  take 8 GB.
- ``low_rank_exact_over_scoring_K_D``: exact certificates, all K − 1 rivals screened, over scores of the same points.
- ``low_rank_exact_over_scoring_again_K_D``: the same for points that have been certified before, so that everything
  that is remembered of pairs of classes is there.

``measurements`` has the memory that fitting, scoring, certifying and checking take in a process of their own.
"""

from __future__ import annotations

import argparse
import multiprocessing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks._common import interleaved_seconds, make_parser, median_ratio, report, seconds
from benchmarks.certificates import accuracy, spread_apart
from ellips import Ellips
from ellips.certificates import check
from ellips.gaussians import ClassSketch

CLASSES, DIM, RANK, POINTS = 1000, 1024, 32, 512
QUICK = {"classes": 60, "dim": 48, "rank": 4, "points": 64}
CONDITION, ACCURACY = 10.0, 0.8
WIDEST = 2.5
SAMPLES_PER_CLASS = 20  # of the fit whose memory is measured: more take longer, not more memory
CHECKED = 4


def trained_mixture(classes: int, dim: int, rank: int, generator: torch.Generator) -> Ellips:
    """Draw a mixture like that of a trained head: see the module's docstring."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    basis = torch.linalg.qr(normal(dim, dim))[0]
    covariance = (basis * torch.logspace(0, -1, dim, CONDITION, dtype=torch.float64)) @ basis.mT
    covariance = (covariance + covariance.mT) / 2
    directions = torch.empty(classes, rank, dim, dtype=torch.float64)
    for k in range(classes):
        directions[k] = torch.linalg.qr(normal(dim, rank))[0].mT
    widths = WIDEST ** (2 * torch.rand(classes, rank, generator=generator, dtype=torch.float64) - 1) - 1
    means, priors = normal(classes, dim), torch.full((classes,), 1 / classes, dtype=torch.float64)
    ellips = Ellips.from_low_rank(means, covariance, directions, widths, priors)
    return spread_apart(ellips, means, generator, draws=500, steps=10, share=ACCURACY)


def full_of(ellips: Ellips, classes: int) -> Ellips:
    """Return a full mixture of some classes that takes as long to score as they would, written out."""
    full = Ellips(classes, ellips.dim)
    full.means.copy_(ellips.means[:classes])
    full.precision_factors.copy_(ellips.precision_factors.tril())
    full.log_priors.copy_(ellips.log_priors[:classes])
    full.fitted.fill_(True)
    return full


def measure(classes: int, dim: int, rank: int, points: int, rounds: int) -> tuple[dict[str, float], dict[str, Any]]:
    """Time scoring and exact certificates.

    Returns:
        The ratios by name, and what they were made of.
    """
    generator = torch.Generator().manual_seed(classes)
    ellips = trained_mixture(classes, dim, rank, generator)
    z, labels = ellips.sample((2 * rounds + 2) * points, generator)
    batches = z.split(points)
    fresh, again = iter(batches), batches[0]
    first = seconds(lambda: ellips.certify(again[:1]))  # what is computed once per mixture
    tenth = full_of(ellips, max(2, classes // 10))
    times = interleaved_seconds(
        {
            "full": lambda: tenth(again),
            "scoring": lambda: ellips(again),
            "exact": lambda: ellips.certify(next(fresh)),
            "again": lambda: ellips.certify(again),
        },
        rounds=rounds,
    )
    share = classes / tenth.num_classes
    ratios = {
        "low_rank_scoring_speedup": share * median_ratio(times["full"], times["scoring"]),
        "low_rank_exact_over_scoring": median_ratio(times["exact"], times["scoring"]),
        "low_rank_exact_over_scoring_again": median_ratio(times["again"], times["scoring"]),
    }
    details = {
        "accuracy": accuracy(ellips, z, labels),
        "mean_radius": float(ellips.certify(again).radius.mean()),
        "seconds_per_point": {name: sorted(values)[rounds // 2] / points for name, values in times.items()},
        "seconds_first_call": first,
    }
    return {f"{name}_{classes}_{dim}": value for name, value in ratios.items()}, details


def memory(classes: int, dim: int, rank: int) -> dict[str, Any]:
    """Return megabytes at the peak of fitting, certifying and checking, each in a process of its own (Linux)."""
    found = {}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.low_rank"])  # torch is imported once, not in each of them
    for stage in ("fit", "certify", "check"):
        with context.Pool(1) as pool:
            found[stage] = pool.apply(_peak, (stage, classes, dim, rank))
    return found


def _peak(stage: str, classes: int, dim: int, rank: int) -> dict[str, float]:
    """Run a stage; its peak counts everything in the process: Python, torch, the mixture, and one batch of data."""
    generator = torch.Generator().manual_seed(0)
    if stage == "fit":
        took = seconds(lambda: fitted(classes, dim, rank))
        return {"peak_megabytes": _peak_kilobytes() / 1024, "seconds": took}
    ellips = _plain_mixture(classes, dim, rank, generator)
    z, _ = ellips.sample(POINTS if stage == "certify" else CHECKED, generator)
    if stage == "certify":
        took = seconds(lambda: ellips.certify(z))
        return {"peak_megabytes": _peak_kilobytes() / 1024, "seconds": took}
    certificate = ellips.certify(z)
    proven: list[bool] = []
    took = seconds(lambda: proven.extend(check(ellips, z, certificate).tolist()))
    return {"peak_megabytes": _peak_kilobytes() / 1024, "seconds": took, "proven": sum(proven) / len(proven)}


def _plain_mixture(classes: int, dim: int, rank: int, generator: torch.Generator) -> Ellips:
    """A mixture made in place, so that making it takes no more memory than it has."""
    ellips = Ellips(classes, dim, covariance_type="low_rank", rank=rank)
    ellips.means.copy_(0.3 * torch.randn(classes, dim, generator=generator, dtype=torch.float64))
    ellips.precision_factors.copy_(torch.eye(dim))
    for k in range(classes):
        normal = torch.randn(dim, rank, generator=generator, dtype=torch.float64)
        ellips.directions[k] = torch.linalg.qr(normal)[0].mT
    ellips.scales.copy_(WIDEST ** (torch.rand(classes, rank, generator=generator, dtype=torch.float64) - 0.5))
    ellips.log_priors.fill_(-torch.log(torch.tensor(float(classes))))
    ellips.fitted.fill_(True)
    return ellips


def fitted(classes: int, dim: int, rank: int) -> Ellips:
    """Fit a mixture to batches that are drawn anew in each of the three passes."""
    ellips = Ellips(classes, dim, covariance_type="low_rank", rank=rank, shrinkage=0.1)
    sketch = ClassSketch(classes, dim, rank, ellips.regularization)
    for _ in range(sketch.passes):
        generator = torch.Generator().manual_seed(1)
        for _ in range(SAMPLES_PER_CLASS):
            labels = torch.arange(classes)
            sketch.update(torch.randn(classes, dim, generator=generator, dtype=torch.float64), labels)
        sketch.end_pass()
    return ellips.fit_collected(sketch.compute())


def _peak_kilobytes() -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def main(args: list[str] | None = None) -> dict[str, Any]:
    """Run the benchmark and print its JSON object."""
    parser = make_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="repetitions of which the median is taken")
    options: argparse.Namespace = parser.parse_args(args)
    rounds = 2 if options.quick else options.rounds
    sizes = QUICK if options.quick else {"classes": CLASSES, "dim": DIM, "rank": RANK, "points": POINTS}
    ratios, details = measure(**sizes, rounds=rounds)
    details["memory"] = memory(sizes["classes"], sizes["dim"], sizes["rank"])
    return report(
        "low_rank",
        ratios,
        {**sizes, "dtype": "float64", "rounds": rounds, "quick": options.quick, "accuracy_aimed_at": ACCURACY},
        measurements=details,
        json_file=options.json,
    )


if __name__ == "__main__":
    main()
