"""Synthetic mixtures: certified accuracy against attacks, Pal et al. and randomised smoothing; sample complexity.

The grid of [E26] App. H.2 (arXiv 2605.25352): K ∈ {2, 3, 5, 10} means on a circle of radius 2, 4 or 6, isotropic or
anisotropic. Every setting's result goes to a file of its own as soon as it is there; a run that was stopped goes on
where it stood. Ends with exit code 1 if a certificate exceeds the accuracy under attack anywhere.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import product
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from rich.console import Console
from rich.progress import Progress

from benchmarks._common import make_parser, report
from benchmarks._synthetic import AXES_OFFSET, AXES_STEP, Setting, circle_mixture, pgd_breaks, smoothed_certificates
from ellips.certificates import METHODS
from ellips.files import replace_file
from ellips.metrics import CertifiedCurve, certified_accuracy_curve
from ellips.metrics.functional import curve_from_counts
from ellips.metrics.plotting import draw_curve
from ellips.reporting import save_figure
from ellips.theory.localization import Localizer
from ellips.theory.sample_complexity import radius_errors, regress_errors

GRID = [Setting(k, d, kind) for kind, k, d in product(("isotropic", "anisotropic"), (2, 3, 5, 10), (2.0, 4.0, 6.0))]
RADII = tuple(round(0.05 * i, 2) for i in range(41))
SMOOTHING = (1_000, 10_000, 100_000)
SIGMAS = (0.25, 0.5, 1.0)

# Reference table of the project's METHOD, section 2: certified accuracy in % at 0.25 and 1.0, from 4,000 draws.
TABLE_DRAWS = 4000
# By setting: clean, then both radii for Theorem 4.1, pairwise and exact.
_REFERENCE = {
    Setting(5, 4.0, "isotropic"): (98.0, 95.0, 56.9, 96.7, 82.4, 96.7, 82.4),
    Setting(10, 4.0, "isotropic"): (78.0, 33.8, 0.0, 67.0, 21.8, 67.0, 21.8),
    Setting(3, 2.0, "anisotropic"): (91.4, 85.7, 46.9, 86.3, 59.1, 86.6, 65.6),
    Setting(5, 4.0, "anisotropic"): (98.6, 92.4, 22.2, 97.2, 80.8, 97.3, 83.5),
}
TABLE = {
    setting: {"clean": v[:1], "theorem": v[1:3], "pairwise": v[3:5], "exact": v[5:7]}
    for setting, v in _REFERENCE.items()
}


def run_setting(setting: Setting, options: Mapping[str, Any]) -> dict[str, Any]:
    """Compute every curve of one setting.

    Args:
        setting: The mixture.
        options: ``points``, ``radii``, ``search_radii`` (how many ellipsoids Pal et al. are given to choose from),
            ``smoothing_points`` (the first so many points; 0: none), ``smoothing`` (sample counts), ``seed``.

    Returns:
        Curves by name (radii, accuracy and interval), the smoothing's σ, areas as shares of the exact one, checks.
    """
    torch.set_num_threads(1)
    ellips, seed, radii = circle_mixture(setting), int(options["seed"]), options["radii"]
    z, labels = ellips.sample(options["points"], torch.Generator().manual_seed(seed))
    curves: dict[str, CertifiedCurve] = {}
    broken = pgd_breaks(ellips, z, labels, radii, seed=seed)
    standing = (broken[:, None] > torch.arange(len(radii))).sum(0)
    curves["pgd"] = curve_from_counts(standing, len(z), radii, 0.95)
    found = {method: ellips.certify(z, method) for method in METHODS}
    for method, c in found.items():
        curves[method] = certified_accuracy_curve(c.radius, c.prediction, labels, radii=radii)
    localizer = Localizer(ellips, options["search_radii"])
    bound = torch.tensor([localizer.best(r).certified_accuracy for r in radii], dtype=torch.float64)
    curves["pal"] = CertifiedCurve(curves["exact"].radii, bound, bound, bound)
    areas = {k: _area(c) / _area(curves["exact"]) for k, c in curves.items()}
    sigma = None
    if options["smoothing_points"]:
        sigma, smoothed = _smooth(setting, options)
        # Of the exact area on the same points: with fewer points another denominator would add its sampling error.
        part = found["exact"][: options["smoothing_points"]]
        same = certified_accuracy_curve(part.radius, part.prediction, labels[: len(part)], radii=radii)
        curves, areas = curves | smoothed, areas | {k: _area(c) / _area(same) for k, c in smoothed.items()}
    return {
        "name": setting.name,
        "sigma": sigma,
        "curves": {k: {n: t.tolist() for n, t in c._asdict().items()} for k, c in curves.items()},
        "areas": areas,
        "checks": _checks(curves),
    }


def _smooth(setting: Setting, options: Mapping[str, Any]) -> tuple[float, dict[str, CertifiedCurve]]:
    """Randomised smoothing at its best noise level, which is chosen on other draws."""
    ellips, seed, count = circle_mixture(setting), int(options["seed"]), int(options["smoothing_points"])

    def curve(sigma: float, samples: int, draws: int, number: int) -> CertifiedCurve:
        z, labels = ellips.sample(options["points"], torch.Generator().manual_seed(draws))
        z, labels = z[:number], labels[:number]
        prediction, radius = smoothed_certificates(ellips, z, sigma, samples, seed=seed)
        return certified_accuracy_curve(radius, prediction, labels, radii=options["radii"])

    sigma = max(SIGMAS, key=lambda s: _area(curve(s, SMOOTHING[0], seed + 1, count // 2)))
    return sigma, {f"smoothing_{n}": curve(sigma, n, seed, count) for n in options["smoothing"]}


def _area(curve: CertifiedCurve) -> float:
    return float(torch.trapezoid(curve.accuracy, curve.radii))


def _checks(curves: Mapping[str, CertifiedCurve]) -> dict[str, float]:
    """What must hold: largest excesses over all radii, in accuracy."""
    certified = torch.stack([curves[m].accuracy for m in METHODS])
    return {
        "certified_over_pgd": float((certified - curves["pgd"].accuracy).max()),
        "pgd_over_exact": float((curves["pgd"].accuracy - curves["exact"].accuracy).max()),
        "pal_over_exact": float((curves["pal"].accuracy - curves["exact"].accuracy).max()),
        # Pal et al. is a number about the population, the exact curve a sample: beyond its interval would be a fault.
        "pal_over_exact_interval": float((curves["pal"].accuracy - curves["exact"].upper).max()),
    }


# ------------------------------------------------------------------ results on disk


def load_or_run(setting: Setting, options: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return a setting's result, from its file if one with the same options is there."""
    path = folder / f"{setting.name}.json"
    key = json.loads(json.dumps({**options, "axes": [AXES_OFFSET, AXES_STEP]}))
    if path.exists():
        stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if stored.get("options") == key:
            return {**stored, "resumed": True}
    result = {"options": key, **run_setting(setting, options)}
    save_figure(draw_setting(result), folder / f"{setting.name}.png")
    replace_file(path, json.dumps(result))
    return result


def run_grid(
    settings: Sequence[Setting], options: Mapping[str, Any], folder: Path, workers: int
) -> list[dict[str, Any]]:
    """Run settings in several processes, slowest first, showing progress; results in the order of the settings."""
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[str, Any]] = {}
    console = Console(file=sys.stderr)
    context = multiprocessing.get_context("spawn")
    with Progress(console=console) as progress, ProcessPoolExecutor(workers, mp_context=context) as pool:
        task = progress.add_task("settings", total=len(settings))
        order = sorted(settings, key=lambda s: -s.classes)
        for future in as_completed(pool.submit(load_or_run, s, options, folder) for s in order):
            result = future.result()
            found[result["name"]] = result
            progress.console.print(f"{result['name']}{' (from an earlier run)' if result.get('resumed') else ''}")
            progress.advance(task)
    return [found[s.name] for s in settings]


# ------------------------------------------------------------------ figures

LABELS = {
    "pgd": "PGD accuracy (upper bound)", "exact": "exact", "pairwise": "pairwise", "theorem": "Theorem 4.1",
    "pal": "Pal et al.",
}  # fmt: skip


def _label(name: str) -> str:
    return LABELS.get(name) or f"smoothing, n = {int(name.split('_')[1]):,}"


def draw_setting(result: Mapping[str, Any]) -> Figure:
    """Draw the proven curves and, on axes of their own, the probabilistic ones of one setting."""
    curves = {k: CertifiedCurve(*(torch.tensor(v) for v in c.values())) for k, c in result["curves"].items()}
    smoothed = [name for name in curves if name.startswith("smoothing")]
    panels = [("proven (latent space is input space)", [n for n in curves if n not in smoothed])]
    if smoothed:
        panels.append((f"probabilistic: 1 − α = 99.9 % per point, σ = {result['sigma']:g}", ["pgd", *smoothed]))
    figure = Figure(figsize=(6.2 * len(panels), 4.2), layout="constrained")
    for axes, (title, names) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for style, name in enumerate(names):
            draw_curve(axes, curves[name], _label(name), style)
        axes.set_xlabel("ℓ2 radius")
        axes.set_title(title, fontsize="medium")
        axes.legend(fontsize="small", title="band: 95% interval", title_fontsize="small")
    figure.suptitle(result["name"].replace("_", ", "))
    return figure


def draw_summary(results: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the area under each curve as a share of the exact one, a row per setting."""
    figure = Figure(figsize=(8.5, 0.3 * len(results) + 1.6), layout="constrained")
    axes = figure.subplots()
    names = [n for n in results[0]["areas"] if n != "exact"]
    markers = "xso^vDP*"
    for place, name in enumerate(names):
        hollow = name.startswith("smoothing")
        axes.plot(
            [r["areas"][name] for r in results], range(len(results)), markers[place % len(markers)],
            label=_label(name) + (" (probabilistic)" if hollow else ""), fillstyle="none" if hollow else "full",
        )  # fmt: skip
    axes.axvline(1, color="black", linewidth=1, label="exact")
    axes.set_yticks(range(len(results)), [r["name"].replace("_", ", ") for r in results], fontsize="small")
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("area under the curve of certified accuracy on [0, 2], as a share of the exact certificate's")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=3, fontsize="small")
    return figure


def draw_sample_complexity(errors: Sequence[Mapping[str, float]], slope: Mapping[str, float]) -> Figure:
    """Draw median errors of the radius over the number of samples, one line per dimension."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for dim in sorted({e["dim"] for e in errors}):
        rows = [e for e in errors if e["dim"] == dim]
        (line,) = axes.loglog(
            [e["n"] for e in rows], [e["median_relative_error"] for e in rows], "-", label=f"d = {dim}"
        )
        for shown, style in ((True, "full"), (False, "none")):
            part = [e for e in rows if e["in_regression"] is shown]
            axes.loglog([e["n"] for e in part], [e["median_relative_error"] for e in part], "o", fillstyle=style,
                        color=line.get_color())  # fmt: skip
    axes.set_xlabel("training samples per class")
    axes.set_ylabel("median |R̂ − R| / R")
    axes.set_title(
        f"slope in n: {slope['n']:.2f}, in d: {slope['d']:.2f} (hollow: n < 2d, not in the fit)", fontsize="medium"
    )
    axes.legend()
    axes.grid(alpha=0.3, which="both")
    return figure


# ------------------------------------------------------------------ the command


def compare_table(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Compare with the reference table: differences in standard errors of both samples' binomial errors."""
    rows, worst = {}, 0.0
    by_name = {r["name"]: r for r in results}
    for setting, reference in TABLE.items():
        result = by_name.get(setting.name)
        if result is None:
            continue
        rows[setting.name] = {}
        for method, values in reference.items():
            curve = result["curves"]["exact" if method == "clean" else method]
            places = [curve["radii"].index(r) for r in ((0.0,) if method == "clean" else (0.25, 1.0))]
            here = [curve["accuracy"][p] for p in places]
            rows[setting.name][method] = [round(100 * v, 1) for v in here]
            for value, expected in zip(here, values, strict=True):
                # Half a count keeps the error of a share of 0 or 1 from being 0.
                p = min(max((value + expected / 100) / 2, 0.5 / TABLE_DRAWS), 1 - 0.5 / TABLE_DRAWS)
                error = math.sqrt(p * (1 - p) * (1 / TABLE_DRAWS + 1 / result["options"]["points"]))
                worst = max(worst, abs(value - expected / 100) / error)
    return {"rows": rows, "largest_difference_in_standard_errors": worst}


def summarise(results: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the largest of every check and the mean of every area's share."""
    worst = {f"largest_{k}": max(r["checks"][k] for r in results) for k in results[0]["checks"]}
    shares = {
        f"area_{k}_over_exact": sum(r["areas"][k] for r in results) / len(results)
        for k in results[0]["areas"]
        if k != "exact"
    }
    return {**worst, **shares}


def _parse(args: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/synthetic"), help="folder of results and figures")
    parser.add_argument("--points", type=int, default=None, help="draws per setting (4000; quick: 400)")
    parser.add_argument("--smoothing-points", type=int, default=None, help="of which smoothed (400; quick: 0)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes")
    return parser.parse_args(args)


def main(args: Sequence[str] | None = None) -> int:
    """Run the grid, write figures and JSON."""
    given = _parse(args)
    quick = given.quick
    options = {
        "radii": list(RADII),
        "search_radii": 512,
        "points": given.points or (400 if quick else 4000),
        "smoothing_points": given.smoothing_points if given.smoothing_points is not None else (0 if quick else 400),
        "smoothing": list(SMOOTHING),
        "seed": given.seed,
    }
    results = run_grid(GRID, options, given.output, given.workers)
    save_figure(draw_summary(results), given.output / "summary.png")
    errors = radius_errors(repetitions=2 if quick else 10, seed=given.seed)
    slope = regress_errors(errors)
    save_figure(draw_sample_complexity(errors, slope), given.output / "sample_complexity.png")
    ratios = summarise(results)
    ratios |= {"sample_complexity_slope_n": slope["n"], "sample_complexity_slope_d": slope["d"]}
    table = compare_table(results)
    ratios["table_largest_difference_in_standard_errors"] = table["largest_difference_in_standard_errors"]
    report(
        "synthetic",
        ratios,
        {**options, "quick": quick, "sigmas": SIGMAS, "space": "latent"},
        measurements={
            "table": table["rows"],
            "settings": {r["name"]: {k: r[k] for k in ("sigma", "areas", "checks")} for r in results},
            "sample_complexity": {"errors": errors, "regression": slope},
            "files": str(given.output),
        },
        json_file=given.json or given.output / "synthetic.json",
    )
    return int(ratios["largest_certified_over_pgd"] > 0)


if __name__ == "__main__":
    sys.exit(main())
