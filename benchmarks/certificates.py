"""What certificates cost beside scoring the same latents.

``python -m benchmarks.certificates [--quick] [--json FILE]``. For (K, d) = (10, 128), (100, 128) and (1000, 128), in
float64 and one run: points per second of scoring, of each certificate and of ``check``; what the verified kernel takes
for a rival beside one Cholesky factorisation of order d + 1 (also at d = 16 and 32, where calls and bounds weigh more),
and for a point, all rivals included, beside scoring; classes by float32 first beside those by float64 scores, for
K = 10 at d = 128 and 512 (``decisions_over_scoring``); peak memory beyond what the mixture itself takes; the share of
rivals that ``exact`` had to solve; scikit-learn's QDA.

The latents are drawn from a mixture of classes that overlap as trained features do: half of each covariance is shared
by all classes and half its own, eigenvalues spread tenfold, and the means are scaled until 92 % of draws are
classified correctly (the accuracy is in the output). One-off work per mixture (decompositions, norms) is done in the
rounds that do not count; its seconds are listed too.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis
from torch import Tensor

from benchmarks._common import interleaved_seconds, make_parser, median_ratio, report, seconds
from ellips import ClassMoments, Ellips
from ellips.certificates import METHODS, Certificate, Method, check, decisions
from ellips.certificates.check import Prover
from ellips.certificates.solve import DecomposedSolver, IterativeSolver

DIM = 128
SMALL_DIMS = (16, 32)
DECIDED_DIMS = (128, 512)
POINTS = {10: 8192, 100: 4096, 1000: 2048}
QUICK_POINTS = {10: 1024, 100: 256}
CHECKED = {10: 512, 100: 64, 1000: 16}  # fewer points tell the speed of `check`
FITTED = 50_000
ACCURACY = 0.92
CONDITION = 10.0


def overlapping_mixture(classes: int, generator: torch.Generator, dim: int = DIM) -> Ellips:
    """Draw a mixture whose classes overlap: see the module's docstring."""
    spectrum = torch.logspace(0, -torch.log10(torch.tensor(CONDITION)).item(), dim, dtype=torch.float64)

    def covariance(count: int) -> Tensor:
        basis = torch.linalg.qr(torch.randn(count, dim, dim, generator=generator, dtype=torch.float64))[0]
        return (basis * spectrum) @ basis.mT

    covariances = 0.5 * covariance(1) + 0.5 * covariance(classes)
    means = torch.randn(classes, dim, generator=generator, dtype=torch.float64)
    ellips = Ellips.from_parameters(means, covariances, torch.full((classes,), 1 / classes, dtype=torch.float64))
    return spread_apart(ellips, means, generator)


def spread_apart(
    ellips: Ellips,
    means: Tensor,
    generator: torch.Generator,
    draws: int = 1000,
    steps: int = 12,
    share: float = ACCURACY,
) -> Ellips:
    """Scale a mixture's means until so large a share of draws is classified correctly."""
    low, high = 0.01, 3.0
    for _ in range(steps):
        scale = (low * high) ** 0.5
        ellips.means.copy_(means * scale)
        low, high = (scale, high) if accuracy(ellips, *ellips.sample(draws, generator)) < share else (low, scale)
    return ellips


def accuracy(ellips: Ellips, z: Tensor, labels: Tensor) -> float:
    """Share of latents that are classified as labelled."""
    return float((ellips.predict(z) == labels).double().mean())


def measure(classes: int, points: int, rounds: int) -> dict[str, Any]:
    """Time scoring, certificates and check on one mixture."""
    generator = torch.Generator().manual_seed(classes)
    ellips = overlapping_mixture(classes, generator)
    z, labels = ellips.sample(points, generator)
    few = z[: min(points, CHECKED[classes])]
    certificate = ellips.certify(few)
    fresh = Ellips(classes, DIM)
    fresh.load_state_dict(ellips.state_dict())
    functions: dict[str, Callable[[], object]] = {"scoring": lambda: ellips(z)}
    functions |= {method: _certifier(ellips, z, method) for method in METHODS}
    functions["scoring_few"] = lambda: ellips(few)
    functions["check_named"] = lambda: check(ellips, few, certificate, rivals="named")
    functions["check_all"] = lambda: check(ellips, few, certificate)
    functions |= proofs(ellips, few, certificate)
    first_call = seconds(lambda: fresh.certify(few))
    times = interleaved_seconds(functions, rounds=rounds)
    small = ("check", "scoring_few", "verify", "cholesky")
    base = {name: times["scoring_few" if name.startswith(small) else "scoring"] for name in functions}
    counts = {name: len(few) if name.startswith(small) else points for name in functions}
    return {
        "accuracy": accuracy(ellips, z, labels),
        "points": points,
        "over_scoring": {name: median_ratio(times[name], base[name]) for name in functions},
        "verify_over_cholesky": median_ratio(times["verify"], times["cholesky"]),
        "points_per_second": {name: counts[name] / sorted(times[name])[rounds // 2] for name in functions},
        "seconds_first_call": first_call,
        "rivals_solved": solved_share(ellips, z),
        "peak_megabytes": {method: peak_megabytes(ellips, z, method) for method in METHODS},
        "checked": bool(check(ellips, few, certificate).all()),
    }


def proofs(ellips: Ellips, z: Tensor, certificate: Certificate) -> dict[str, Callable[[], object]]:
    """The kernel's proof of the named rivals, and as many Cholesky factorisations of order d + 1 in one batch."""
    prover = Prover(ellips)
    margin = prover.named_margins(z, certificate.prediction, certificate.rival)
    claims = (z, certificate.prediction, certificate.rival, margin, certificate.multiplier, certificate.radius)
    matrices = torch.eye(ellips.dim + 1, dtype=torch.float64).repeat(len(z), 1, 1) + 1 / ellips.dim
    return {"verify": lambda: prover.unreached(*claims), "cholesky": lambda: torch.linalg.cholesky_ex(matrices)}


def proofs_over_cholesky(dim: int, points: int, rounds: int) -> float:
    """The kernel's time for a named rival over that of a Cholesky factorisation, K = 10."""
    generator = torch.Generator().manual_seed(dim)
    ellips = overlapping_mixture(10, generator, dim)
    z, _ = ellips.sample(points, generator)
    times = interleaved_seconds(proofs(ellips, z, ellips.certify(z)), rounds=rounds)
    return median_ratio(times["verify"], times["cholesky"])


def decisions_over_scoring(dim: int, points: int, rounds: int) -> float:
    """What votes take for the class of a point, over the class by float64 scores, K = 10; the same classes."""
    generator = torch.Generator().manual_seed(dim)
    ellips = overlapping_mixture(10, generator, dim)
    z, _ = ellips.sample(points, generator)
    decide = decisions(ellips)
    assert torch.equal(decide(z), ellips.predict(z))
    times = interleaved_seconds({"narrow": lambda: decide(z), "wide": lambda: ellips.predict(z)}, rounds=rounds)
    return median_ratio(times["narrow"], times["wide"])


def _certifier(ellips: Ellips, z: Tensor, method: Method) -> Callable[[], object]:
    return lambda: ellips.certify(z, method)


def solved_share(ellips: Ellips, z: Tensor) -> float:
    """Share of the rivals of all points that ``exact`` had to solve."""
    counts: list[int] = []

    def counting(solve: Callable[..., Any]) -> Callable[..., Any]:
        def counted(self: object, points: Tensor, *rest: Tensor) -> Any:  # noqa: ANN401 - passed on
            counts.append(len(points))
            return solve(self, points, *rest)

        return counted

    # What the iterative solver leaves to the decomposed one counts twice: it is work done twice.
    with (
        mock.patch.object(DecomposedSolver, "solve", counting(DecomposedSolver.solve)),
        mock.patch.object(IterativeSolver, "solve", counting(IterativeSolver.solve)),
    ):
        ellips.certify(z)
    return sum(counts) / (len(z) * (ellips.num_classes - 1))


def peak_megabytes(ellips: Ellips, z: Tensor, method: Method) -> float:
    """Memory that certifying takes at its peak beyond the mixture and the latents, in a process of its own (Linux)."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "mixture.pt"
        torch.save({"state": ellips.state_dict(), "z": z}, file)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            return pool.apply(_peak, (file, ellips.num_classes, method))


def _peak(file: Path, classes: int, method: Method) -> float:
    saved = torch.load(file, weights_only=True)
    ellips = Ellips(classes, DIM)
    ellips.load_state_dict(saved["state"])
    z = saved["z"]
    del saved
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of what came before
    before = _peak_kilobytes()
    ellips.certify(z, method)
    return (_peak_kilobytes() - before) / 1024


def _peak_kilobytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def beside_scikit_learn(rounds: int, samples: int) -> dict[str, Any]:
    """Fit and predict beside scikit-learn's QDA, on the same latents."""
    generator = torch.Generator().manual_seed(0)
    mixture = overlapping_mixture(10, generator)
    z, labels = mixture.sample(samples, generator)
    arrays = z.numpy(), labels.numpy()

    def fit() -> Ellips:
        moments = ClassMoments(10, DIM)
        moments.update(z, labels)
        return Ellips(10, DIM).fit_moments(*moments.compute())

    ours, theirs = fit(), QuadraticDiscriminantAnalysis().fit(*arrays)
    times = interleaved_seconds(
        {
            "fit": fit,
            "fit_sklearn": lambda: QuadraticDiscriminantAnalysis().fit(*arrays),
            "predict": lambda: ours.predict(z),
            "predict_sklearn": lambda: theirs.predict(arrays[0]),
        },
        rounds=rounds,
    )
    return {
        "fit_speedup_over_sklearn": median_ratio(times["fit_sklearn"], times["fit"]),
        "predict_speedup_over_sklearn": median_ratio(times["predict_sklearn"], times["predict"]),
        "same_predictions": bool((ours.predict(z).numpy() == theirs.predict(arrays[0])).all()),
    }


def main(args: list[str] | None = None) -> dict[str, Any]:
    """Run the benchmark and print its JSON object."""
    parser = make_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="repetitions of which the median is taken")
    options: argparse.Namespace = parser.parse_args(args)
    rounds = 3 if options.quick else options.rounds
    sizes = QUICK_POINTS if options.quick else POINTS
    results = {classes: measure(classes, points, rounds) for classes, points in sizes.items()}
    learn = beside_scikit_learn(rounds, FITTED // 10 if options.quick else FITTED)
    ratios = {
        f"{method}_over_scoring_{classes}_{DIM}": result["over_scoring"][method]
        for classes, result in results.items()
        for method in METHODS
    }
    for classes, result in results.items():
        ratios[f"verify_over_cholesky_{classes}_{DIM}"] = result["verify_over_cholesky"]
        ratios[f"verify_over_scoring_{classes}_{DIM}"] = result["over_scoring"]["check_all"]
    for dim in SMALL_DIMS:
        ratios[f"verify_over_cholesky_10_{dim}"] = proofs_over_cholesky(dim, POINTS[10], 3 * rounds)
    for dim in DECIDED_DIMS:
        ratios[f"decisions_over_scoring_10_{dim}"] = decisions_over_scoring(dim, QUICK_POINTS[10], 3 * rounds)
    ratios |= {name: value for name, value in learn.items() if name.endswith("sklearn")}
    return report(
        "certificates",
        ratios,
        {
            "dim": DIM,
            "dtype": "float64",
            "rounds": rounds,
            "quick": options.quick,
            "condition": CONDITION,
            "accuracy_aimed_at": ACCURACY,
            "fitted": FITTED // 10 if options.quick else FITTED,
        },
        measurements={f"{classes}_{DIM}": result for classes, result in results.items()} | {"sklearn": learn},
        json_file=options.json,
    )


if __name__ == "__main__":
    main()
