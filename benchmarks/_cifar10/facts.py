"""What the page says, as numbers: computed from the finished parts of a run, and from nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from benchmarks._cifar10 import deterministic, estimates, latent, votes
from benchmarks._cifar10.data import ADVERSARIAL, LIPSCHITZ, summary
from ellips.audit.claims import AuditedImage, verdict
from ellips.types import Soundness

Parts = Mapping[str, Any]
"""Parts by name, as :func:`benchmarks.cifar10.measure` returns them."""


def facts_of(parts: Parts) -> dict[str, Any]:
    """Return every number of the page."""
    return {
        "latent": _latent(parts["latent"], parts["latent-accurate"]),
        "objectives": {
            name: {**summary(row, latent.RADII, row["unit"]), "regularization": row["regularization"]}
            for name, row in parts["objectives"].items()
        },
        "theory": _theory(parts["theory"]),
        "deterministic": _deterministic(parts["deterministic"]),
        "probabilistic": _probabilistic(parts),
        "estimated": {name: _estimated(parts["estimated"][name]) for name in (ADVERSARIAL, LIPSCHITZ)},
        "attacks": {
            "deterministic": _attacks(parts["deterministic-attacks"], "deterministic"),
            "probabilistic": _attacks(parts["votes-attacks"], "probabilistic"),
        },
        "costs": parts["costs"],
    }


def _latent(found: Mapping[str, Any], accurate: Mapping[str, Any]) -> dict[str, Any]:
    rows = {
        name: {**summary(row, latent.RADII, found["unit"]), "regularization": row.get("regularization")}
        for name, row in (found["rows"] | {"full_accurate_exact": accurate}).items()
        if row is not None
    }
    return {"dim": found["dim"], "rows": rows}


def _theory(found: Mapping[str, Any]) -> dict[str, Any]:
    bound = found["degradation"]
    kept: dict[str, Any] = {"refused": bound.get("refused")}
    if kept["refused"] is None:
        kept |= {
            "kl": bound["kl"]["value"],
            "kl_upper": bound["kl"]["upper"],
            "neighbors": bound["kl"]["neighbors"],
            "count": bound["kl"]["count"],
            "dim": bound["kl"]["dim"],
            "total_variation": bound["total_variation"],
            "inequality": bound["inequality"],
            **{
                name: dict(zip((f"{r:g}" for r in found["radii"]), (100 * v for v in values), strict=True))
                for name, values in (
                    ("fitted", bound["fitted"]["accuracy"]),
                    ("bound", bound["bound"]),
                    ("measured", bound["measured"]["accuracy"]),
                )
            },
        }
    return {"mardia": found["mardia"], "passed": sum(found["passed"]), "degradation": kept}


def _deterministic(found: Mapping[str, Any]) -> dict[str, Any]:
    radii = deterministic.RADII
    return {
        "constant": found["constant"],
        "margin": summary(found["margin"], radii),
        "margin_whole_split": summary(found["margin_whole_split"], radii),
        "chosen_for": {
            limit: {**summary(row, radii), "regularization": row["regularization"]}
            for limit, row in found["chosen_for"].items()
        },
    }


def claims(rows: Sequence[Mapping[str, Any]], name: str) -> dict[str, Any]:
    """Return votes of one name as :func:`benchmarks._cifar10.data.series` keeps them, from rows of them."""
    return {
        "prediction": [int(row[name][0]) for row in rows],
        "radius": [float(row[name][1]) for row in rows],
        "label": [row["label"] for row in rows],
    }


def _probabilistic(parts: Parts) -> dict[str, Any]:
    few, many, early = (parts[f"votes-{kind}"] for kind in (votes.FEW, votes.MANY, "early"))
    stopped = {row["row"] for row in early}
    early = [row for row in early if row["row"] in {each["row"] for each in few}]
    found: dict[str, Any] = dict(parts["votes-head"])
    shown = {"all": (few, (votes.FEW,)), "several": (many, (votes.FEW, votes.MANY))}
    shown["stopped"] = [row for row in few if row["row"] in stopped], (votes.FEW,)
    for images, (rows, draws) in shown.items():
        found[images] = {
            f"{name}_{n}": {**summary(claims(rows, f"{name}_{n}"), votes.RADII), "passes": n + votes.SELECTION}
            for name in ("linear", "ellips", "encoder")
            for n in draws
        }
    columns = {name: [row[name] for row in early] for name in ("prediction", "radius", "label")}
    passes = sum(row["passes"] for row in early) / len(early)
    found["stopped"]["ellips_early"] = {**summary(columns, votes.RADII), "passes": passes}
    return {**found, "denoised": _denoised(parts, few), "art": parts["votes-art"]}


def _denoised(parts: Parts, noisy: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Votes behind a denoiser, and those of the network that was trained with noise, on the same images."""
    rows = {row["row"]: row for row in parts["votes-denoised"]}
    both = {
        f"{name}_{of}": {
            **summary(claims(shown, f"{name}_{votes.FEW}"), votes.RADII),
            "passes": votes.FEW + votes.SELECTION,
        }
        for of, shown in (("noise", [row for row in noisy if row["row"] in rows]), ("denoised", list(rows.values())))
        for name in ("linear", "ellips", "encoder")
    }
    return {"rows": both, **parts["votes-denoised-head"]}


def _estimated(found: Mapping[str, Any]) -> dict[str, Any]:
    distance = {row["index"]: row["distance"] for row in found["nearest"]}
    result: dict[str, Any] = {
        "nearest_median": _median([d for d in distance.values() if math.isfinite(d)]),
        "nearest_found": sum(math.isfinite(d) for d in distance.values()),
        "nearest_images": len(distance),
    }
    for source in ("jacobian", "clever"):
        rows = found[source]
        columns = {name: [row[name] for row in rows] for name in ("prediction", "radius", "label")}
        ratios = [r["radius"] / distance[r["index"]] for r in rows if math.isfinite(distance.get(r["index"], math.inf))]
        tried = [row for row in rows if row["attacked"]]
        result[source] = {
            **summary(columns, estimates.RADII),
            "constant_median": _median([row["constant"] for row in rows]),
            "constant_largest": max(row["constant"] for row in rows),
            "above_one": sum(row["constant"] > 1 for row in rows),
            "attacked": len(tried),
            "broken": sum(row["violated_by"] is not None for row in tried),
            "radius_median": _median([row["radius"] for row in rows]),
            "radius_over_nearest": _median(ratios),
        }
    return result


def _median(values: Sequence[float]) -> float:
    return median(values) if values else math.nan


def _attacks(rows: Sequence[Mapping[str, Any]], soundness: Soundness) -> dict[str, Any]:
    images = [
        AuditedImage(soundness, soundness, row["index"], row["radius"], row["violated_by"], row["distance"])
        for row in rows
        if row["attacked"]
    ]
    if not images:
        return {"attacked": 0, "violations": 0, "passed": None, "alpha": None}
    found = verdict(images, votes.ALPHA)
    return {name: found[name] for name in ("attacked", "violations", "alpha", "passed")}
