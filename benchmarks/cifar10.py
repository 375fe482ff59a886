"""CIFAR-10: the method against what one would use instead, by every kind of claim, as one page of results.

    python -m benchmarks.cifar10 --data DIR --out DIR [--page FILE] [--quick] [--json FILE]

DIR of the pictures holds ``train/<class>/`` and ``test/<class>/``, image files of 32x32. Four shipped encoders are
used: one trained with noise, one adversarially, one 1-Lipschitz, and one that never saw noise, behind a denoiser. Parts
of the work are written under ``--out`` as soon as they are finished, and a run that was stopped goes on from them. At
the end the page is written, with its figures beside it and the numbers in ``<page>.json``. Ratios:

- ``certify_speedup_over_smoothing_10000``: seconds of Cohen et al. with n = 10,000 for an image over those of the
  closed form `pairwise`, given the image's feature and the constant; ``..._theorem`` and ``..._exact`` likewise.
- ``exact_over_theorem_mean_radius``, ``pairwise_over_theorem_mean_radius``: on the same Gaussians, latent space.
- ``ellips_over_linear_votes_mean_radius``: on the same noise, n = 1,000.
- ``deterministic_violations``, ``probabilistic_violations``: attacked claims that did not hold.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks._cifar10 import costs, deterministic, estimates, latent, votes
from benchmarks._cifar10.data import ADVERSARIAL, LIPSCHITZ, Setting, Sizes
from benchmarks._cifar10.facts import facts_of
from benchmarks._cifar10.figures import draw
from benchmarks._cifar10.page import page
from benchmarks._cifar10.store import Store
from benchmarks._common import make_parser, report
from ellips.files import replace_file

COUNTS = (
    *("images_votes", "images_10000", "images_denoised", "images_early", "images_art", "images_clever"),
    *("images_attacked", "images_attacked_votes"),
)
OPTIONS = ("images", *COUNTS)
STAGES = ("latent", "deterministic", "votes", "denoised", "estimated", "attacks", "costs")
QUICK = Sizes(
    images=20,
    images_votes=10,
    images_10000=1,
    images_denoised=5,
    images_early=2,
    images_art=1,
    images_clever=2,
    images_attacked=20,
    images_attacked_votes=2,
    train=2000,
    held_out=200,
    votes=50,
    held_out_votes=20,
    clever_batches=3,
    clever_samples=4,
    steps=3,
    steps_deterministic=3,
    epochs=1,
    rounds=1,
)


def measure(setting: Setting, store: Store, stages: Sequence[str] = STAGES) -> dict[str, Any]:
    """Do all the work of some stages that is not done yet.

    Returns:
        The parts by name.
    """
    parts: dict[str, Any] = {}
    for stage in stages:
        parts |= _STAGE_PARTS[stage](setting, store)
    return parts


def _latent(setting: Setting, store: Store) -> dict[str, Any]:
    works = {
        "latent": latent.classifiers,
        "latent-accurate": latent.most_accurate,
        "objectives": latent.objectives,
        "theory": latent.theory,
    }
    return {name: store.part(name, partial(work, setting, store)) for name, work in works.items()}


def _deterministic(setting: Setting, store: Store) -> dict[str, Any]:
    proven = deterministic.Proven(setting, store)
    return {"deterministic": store.part("deterministic", proven.certificates)}


def _votes(setting: Setting, store: Store) -> dict[str, Any]:
    smoothed = votes.Smoothed(setting, store)
    return {
        "votes-head": store.part("votes-head", smoothed.describe),
        **{f"votes-{draws}": smoothed.fixed(draws) for draws in (votes.FEW, votes.MANY)},
        "votes-early": smoothed.early(),
        "votes-art": store.part("votes-art", smoothed.agreement),
        "votes-attacks": smoothed.attacks(),
    }


def _denoised(setting: Setting, store: Store) -> dict[str, Any]:
    smoothed = votes.SmoothedBehindDenoiser(setting, store)
    return {
        "votes-denoised-head": store.part("votes-denoised-head", smoothed.describe),
        "votes-denoised": smoothed.fixed(votes.FEW),
    }


def _estimated(setting: Setting, store: Store) -> dict[str, Any]:
    found = {}
    for name in (LIPSCHITZ, ADVERSARIAL):
        estimated = estimates.Estimated(setting, store, name)
        found[name] = {source: estimated.constants(source) for source in estimated.sources()}
        found[name]["nearest"] = estimated.nearest()
    return {"estimated": found}


def _attacks(setting: Setting, store: Store) -> dict[str, Any]:
    return {"deterministic-attacks": deterministic.Proven(setting, store).attacks()}


def _costs(setting: Setting, store: Store) -> dict[str, Any]:
    return {"costs": store.part("costs", lambda: costs.costs(setting, store))}


_STAGE_PARTS = {
    "latent": _latent,
    "deterministic": _deterministic,
    "votes": _votes,
    "denoised": _denoised,
    "estimated": _estimated,
    "attacks": _attacks,
    "costs": _costs,
}


def ratios_of(facts: dict[str, Any]) -> dict[str, float]:
    """Return the figures that the page is judged by."""
    rows, found = facts["latent"]["rows"], facts["probabilistic"]["all"]
    theorem = rows["full_theorem"]["mean_radius"]
    return {
        **facts["costs"]["ratios"],
        "exact_over_theorem_mean_radius": rows["full_exact"]["mean_radius"] / theorem,
        "pairwise_over_theorem_mean_radius": rows["full_pairwise"]["mean_radius"] / theorem,
        "ellips_over_linear_votes_mean_radius": found[f"ellips_{votes.FEW}"]["mean_radius"]
        / max(found[f"linear_{votes.FEW}"]["mean_radius"], 1e-12),
        **{f"{kind}_violations": each["violations"] for kind, each in facts["attacks"].items()},
    }


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="pictures: train/<class>, test/<class>")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="finished parts; the page, unless --page"
    )
    parser.add_argument("--page", type=Path, default=None, metavar="FILE", help="where the page goes: FILE.md")
    text = "only some of the work, and no page: several processes may share one --out"
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=None, help=text)
    parser.add_argument("--seed", type=int, default=0)
    for name in OPTIONS:
        text = f"{name.replace('_', ' ')}; {getattr(Sizes(), name)} unless given"
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=None, metavar="N", help=text)
    return parser


def main(args: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark, or what is left of it."""
    given = _parser().parse_args(args)
    asked = {name: getattr(given, name) for name in OPTIONS if getattr(given, name) is not None}
    sizes = replace(QUICK if given.quick else Sizes(), seed=given.seed, **asked)
    setting = Setting(given.data, sizes)
    settings: dict[str, Any] = {"sizes": asdict(sizes), "data": setting.describe(), "quick": given.quick}
    fixed = {name: value for name, value in asdict(sizes).items() if name not in COUNTS}  # more images may follow
    store = Store(given.out, settings | {"sizes": fixed})
    torch.manual_seed(sizes.seed)
    parts = measure(setting, store, given.stages or STAGES)
    if given.stages:
        return {}
    facts = facts_of(parts)
    target = given.page or given.out / "cifar10.md"
    options = [f"--{name.replace('_', '-')} {value}" for name, value in asked.items()]
    options += ["--quick"] if given.quick else []
    settings["command"] = " ".join(["python -m benchmarks.cifar10 --data DIR --out DIR --page FILE", *options])
    draw(setting, store, parts, target)
    numbers = given.json or target.with_suffix(".json")
    result = report("cifar10", ratios_of(facts), settings, measurements=facts, json_file=numbers)
    replace_file(target, page_of(numbers, target.stem))
    return result


def page_of(numbers: Path, stem: str) -> str:
    """Return the page that belongs to a file of numbers.

    Args:
        numbers: What a run wrote with ``--json``, or beside the page.
        stem: Name of the page without its suffix.
    """
    found = json.loads(numbers.read_text(encoding="utf-8"))
    return page(found["measurements"], found["settings"], found["machine"], stem)


if __name__ == "__main__":
    main()
