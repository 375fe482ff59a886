"""The theory on a checkpoint: ``python -m ellips.theory localization|normality|degradation ...``."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ellips.certificates import METHODS, certify
from ellips.classifier import Ellips
from ellips.files import ResultsFolder, load_certificates, read_json, read_tsv, replace_file
from ellips.gaussians import Mixture
from ellips.head import EllipsHead
from ellips.metrics.radii import radii_of_data
from ellips.theory.degradation import Estimator, degradation
from ellips.theory.localization import Criterion, Existence, Localizer
from ellips.theory.normality import Calibration, mardia
from ellips.types import DEFAULT_RADII, Series

CAUTION = {
    "knn": "In high dimension this estimate is biased, either way; see ellips.theory.divergence.",
    "likelihood": "This estimates a lower bound on KL, so the bound on the truth is optimistic.",
}
SAVED = Series("latent", "exact")
"""The certificates of a run that questions about its latents are answered from."""


def main(args: Sequence[str] | None = None) -> int:
    """Answer one question; return the exit code: 0, or 2 for input that cannot be used.

    Args:
        args: Command line; by default the process's own.
    """
    given = _parse(args)
    try:
        result = {"localization": _localization, "normality": _normality, "degradation": _degradation}[given.command](
            given, Console(file=sys.stdout)
        )
    except (ValueError, RuntimeError, FileNotFoundError) as error:
        print(f"ellips theory {given.command}: {error}", file=sys.stderr)
        return 2
    if given.json is not None:
        replace_file(given.json, json.dumps(_finite(result), indent=2, allow_nan=False) + "\n")
    return 0


def _parse(args: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="ellips theory", description=__doc__.split(":")[0] + ".")
    commands = parser.add_subparsers(dest="command", required=True)
    found = commands.add_parser("localization", help="does a robust classifier exist here? (Theorems 3.1 and 3.2)")
    found.add_argument(
        "mixture", type=Path, help=f"checkpoint (.ckpt), folder of a certify.py run, or its {SAVED}.safetensors"
    )
    found.add_argument(
        "--epsilon",
        type=float,
        nargs="+",
        default=None,
        help="sizes of ℓ2 changes, latent; by default of the order of the certified radii of the classes' means",
    )
    found.add_argument("--accuracy", type=float, default=0.5, help="certified accuracy asked for")
    found.add_argument("--log-c", type=float, default=math.inf, help="log C: limit on volumes; none by default")
    found.add_argument("--criterion", choices=get_args(Criterion), default="average")
    found.add_argument("--delta", type=float, default=None, help="with --gamma: also the largest ε for both")
    found.add_argument("--gamma", type=float, default=None)
    tested = commands.add_parser("normality", help="Mardia's tests of each class")
    bound = commands.add_parser("degradation", help="certified accuracy on the truth, from that on the mixture")
    for parts in (tested, bound):
        parts.add_argument("run", type=Path, help="folder that certify.py wrote: latents, labels and mixture are there")
    tested.add_argument("--alpha", type=float, default=0.05, help="joint level of both tests")
    tested.add_argument("--calibration", choices=get_args(Calibration), default="asymptotic")
    bound.add_argument(
        "--radii", type=float, nargs="+", default=None, help="latent; by default those of the run's table"
    )
    bound.add_argument("--estimator", choices=get_args(Estimator), default="knn")
    bound.add_argument("--method", choices=METHODS, default="exact")
    bound.add_argument("--num-samples", type=int, default=10_000, help="draws from the mixture")
    bound.add_argument("--max-per-class", type=int, default=None, help="latents per class for KL; all by default")
    bound.add_argument("--seed", type=int, default=0)
    for parts in (found, tested, bound):
        parts.add_argument("--json", type=Path, default=None, metavar="FILE", help="write every number there")
    return parser.parse_args(args)


# ------------------------------------------------------------------ input


def load_mixture(path: Path) -> Mixture:
    """Return the mixture of a checkpoint, of a folder that certify.py wrote, or of a file of certificates."""
    if path.is_dir():
        path = ResultsFolder(path).proofs(SAVED)
    if path.suffix == ".safetensors":
        return load_certificates(path).ellips
    return EllipsHead.from_checkpoint(path).ellips


def load_latents(folder: Path) -> tuple[Ellips, Tensor, Tensor]:
    """Return mixture, latents and true labels of a run of certify.py.

    Raises:
        FileNotFoundError: If the folder holds no latent certificates.
        ValueError: If certificates and labels are of different images.
    """
    results = ResultsFolder(folder)
    saved = load_certificates(results.proofs(SAVED))
    labels = {record.index: record.label for record in read_tsv(results.tsv(SAVED))}
    index = saved.index.tolist() if saved.index is not None else list(range(len(saved.z)))
    if sorted(index) != sorted(labels):
        raise ValueError(f"Expected latents and labels of the same images in {folder} but got different ones.")
    return saved.ellips, saved.z, torch.tensor([labels[i] for i in index])


def table_radii(folder: Path) -> list[float]:
    """Return 0 and the latent radii that a run of certify.py tabulated, or the default ones where it does not say."""
    path = ResultsFolder(folder).summary
    summary = read_json(path) if path.exists() else {}
    found = summary.get("radii", {}).get("latent", {}).get("radii", DEFAULT_RADII["latent"])
    return sorted({0.0, *found})


def radii_of_means(mixture: Mixture) -> tuple[float, ...]:
    """Return round numbers among the certified radii of the classes' means: beyond the largest, no mean is robust."""
    certificate = certify(mixture, mixture.means)
    found = (certificate.radius, certificate.prediction, certificate.prediction)
    return radii_of_data([found], DEFAULT_RADII["latent"])


# ------------------------------------------------------------------ the questions


def _localization(given: argparse.Namespace, console: Console) -> dict[str, Any]:
    mixture = load_mixture(given.mixture)
    localizer = Localizer(mixture)
    table = Table(title=f"Localisation, latent space, criterion: {given.criterion}")
    for column in ("ε", "max δ", "max γ", "1 − δ − γ (Pal et al.)", "log C ≥"):
        table.add_column(column, justify="right")
    answers = []
    for epsilon in radii_of_means(mixture) if given.epsilon is None else given.epsilon:
        found = localizer.best(epsilon, given.log_c, given.criterion)
        answers.append(Existence(1 - found.error >= given.accuracy, given.accuracy, found))
        numbers = (f"{epsilon:g}", f"{found.delta.max():.3g}", f"{found.gamma.max():.3g}")
        table.add_row(*numbers, f"{found.certified_accuracy:.1%}", f"{found.log_c:.4g}")
    console.print(table)
    for answer in answers:
        console.print(str(answer), highlight=False)
    result = {
        "localization": [{"exists": a.exists, "accuracy": a.accuracy, **a.localization.to_dict()} for a in answers]
    }
    if given.delta is not None and given.gamma is not None:
        epsilon, per_class = localizer.largest_epsilon(given.delta, given.gamma, given.log_c)
        console.print(f"Largest ε for δ = {given.delta:g}, γ = {given.gamma:g}: {epsilon:.4g}", highlight=False)
        return {**result, "largest_epsilon": epsilon, "largest_epsilon_per_class": per_class.tolist()}
    return result


def _normality(given: argparse.Namespace, console: Console) -> dict[str, Any]:
    ellips, z, labels = load_latents(given.run)
    result = mardia(z, labels, ellips.num_classes, calibration=given.calibration)
    table = Table(title=f"Mardia's tests, d = {result.dim}, {given.calibration} p-values")
    for column in ("class", "n", "skewness p", "kurtosis p", "passes"):
        table.add_column(column, justify="right")
    passed, tested = result.passed(given.alpha).tolist(), result.tested.tolist()
    for k, row in enumerate(result.table()):
        verdict = ("yes" if passed[k] else "no") if tested[k] else "not tested"
        table.add_row(
            str(k), str(row["count"]), f"{row['skewness_pvalue']:.3g}", f"{row['kurtosis_pvalue']:.3g}", verdict
        )
    console.print(table)
    rate = result.pass_rate(given.alpha)
    console.print(f"{sum(tested)} of {len(tested)} classes tested, {rate:.1%} of them pass at level {given.alpha:g}.")
    return {"pass_rate": rate, "alpha": given.alpha, "dim": result.dim, "classes": result.table()}


def _degradation(given: argparse.Namespace, console: Console) -> dict[str, Any]:
    ellips, z, labels = load_latents(given.run)
    radii = table_radii(given.run) if given.radii is None else given.radii
    found = degradation(
        ellips,
        z,
        labels,
        radii,
        estimator=given.estimator,
        method=given.method,
        num_samples=given.num_samples,
        max_per_class=given.max_per_class,
        seed=given.seed,
    )
    table = Table(title=f"Certified accuracy in latent space, {given.method}")
    for column in ("radius", "on mixture", "bound on truth", "its lower end", "measured", "95 % interval"):
        table.add_column(column, justify="right")
    for i, radius in enumerate(radii):
        values = (found.fitted.accuracy[i], found.bound[i], found.bound_lower[i], found.measured.accuracy[i])
        interval = f"{100 * found.measured.lower[i]:.1f}–{100 * found.measured.upper[i]:.1f} %"
        table.add_row(f"{radius:g}", *(f"{float(v):.1%}" for v in values), interval)
    console.print(table)
    kl = found.kl
    about = f"{kl.estimator}{f', k = {kl.neighbors}' if kl.neighbors else ''}, n = {kl.count}, d = {kl.dim}"
    console.print(
        f"KL(P‖Q) = {kl.value:.3f} nats, {kl.confidence:.0%} interval {kl.lower:.3f} to {kl.upper:.3f} ({about}); "
        f"total variation ≤ {found.total_variation:.3f} ({found.inequality}).\n{CAUTION[kl.estimator]}",
        highlight=False,
    )
    return found.to_dict()


def _finite(value: Any) -> Any:  # noqa: ANN401 - whatever JSON holds
    """Replace what JSON cannot hold: NaN by null, infinities by their names."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


if __name__ == "__main__":
    sys.exit(main())
