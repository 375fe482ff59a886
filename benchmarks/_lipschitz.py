"""Classifiers on 1-Lipschitz features: Gaussians with exact radii beside linear ones, over accuracy and radius."""

from __future__ import annotations

from functools import cache
from itertools import product, starmap
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ellips import Ellips
from ellips.gaussians import Moments
from ellips.gaussians.moments import ClassMoments
from ellips.gaussians.regularization import Regularization
from ellips.losses import CertifiedRadius

SHOWN = (0.0, 36 / 255, 0.25, 72 / 255, 108 / 255, 0.5, 1.0)
SEARCH = {"pooling": (0.5, 0.8, 0.95, 1.0), "shrinkage": (0.03, 0.1, 0.3, 0.6, 0.8, 0.9)}
TRAINED = ((0.4, None), (2.0, None), (36 / 255, 0.1), (0.25, 0.2), (0.5, 0.3))  # radius and width of their loss
_START = Regularization(0.8, 0.6)  # of Gaussians that are trained
_STEPS, _BATCH, _RATE = 200, 500, 2e-3
Parts = dict[str, Tensor]  # of train, val and test


def gaussians(features: Parts, labels: Parts, constant: float) -> dict[str, Any]:
    """Fit and train Gaussians, choose one for each radius on the validation split, certify the test split.

    Args:
        features: Shape ``(N, D)`` each.
        labels: Shape ``(N,)`` each.
        constant: The encoder's proven constant, which radii are divided by.

    Returns:
        For each radius how the chosen ones were made, and their :func:`summary`.
    """
    collected = ClassMoments(int(labels["train"].max()) + 1, features["train"].shape[1])
    collected.update(features["train"], labels["train"])
    moments = collected.compute()
    regularizations = starmap(Regularization, product(SEARCH["pooling"], SEARCH["shrinkage"]))
    made = {str(regularization): fitted(moments, regularization) for regularization in regularizations}
    for radius, width in TRAINED:
        loss = CertifiedRadius(radius * constant, gaussians="fitted", width=width)
        made[f"trained for {radius:.4g}, width {width}"] = trained(moments, features, labels, loss)

    @cache
    def certified(name: str, part: str) -> dict[str, Any]:
        with torch.no_grad():
            certificate = made[name].certify(features[part])
        return summary(certificate.prediction, certificate.radius / constant, labels[part])

    found = {}
    for radius in (f"{limit:.4g}" for limit in SHOWN):
        name, best = max(
            ((name, certified(name, "val")["certified_accuracy"][radius]) for name in made), key=itemgetter(1)
        )
        found[radius] = {"gaussians": name, "validation": best, **certified(name, "test")}
    return found


def fitted(moments: Moments, regularization: Regularization) -> Ellips:
    """Return Gaussians of some moments."""
    ellips = Ellips(*moments.mean.shape)
    ellips.regularization = regularization
    return ellips.fit_moments(*moments)


def trained(moments: Moments, features: Parts, labels: Parts, loss: CertifiedRadius) -> Ellips:
    """Return Gaussians trained on what is reported: their own exact radius."""
    ellips = fitted(moments, _START).trainable_()
    optimizer = torch.optim.Adam(ellips.parameters(), lr=_RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, _STEPS)
    generator = torch.Generator().manual_seed(0)
    for step in range(_STEPS):
        rows = torch.randint(len(labels["train"]), (_BATCH,), generator=generator)
        optimizer.zero_grad()
        loss(features["train"][rows], labels["train"][rows], ellips, step).backward()
        optimizer.step()
        schedule.step()
    return ellips


def summary(prediction: Tensor, radius: Tensor, labels: Tensor) -> dict[str, Any]:
    """Return certified accuracy in per cent at each radius, and the mean radius, 0 where wrong."""
    right = prediction == labels
    accuracy = {f"{r:.4g}": round(100 * float((right & (radius >= r)).double().mean()), 2) for r in SHOWN}
    mean = float(torch.where(right, radius.double(), 0.0).clamp_max(1e3).mean())
    return {"certified_accuracy": accuracy, "mean_radius": mean}


def ahead(networks: dict[str, Any]) -> dict[str, dict[str, float | None]]:
    """Compare the Gaussians of the first LipNeXt, at the radius they were chosen for, with linear classifiers.

    Args:
        networks: What :func:`benchmarks.lipschitz_encoders.evaluate` returns, by name.

    Returns:
        For each radius points above its own margin, and above the line through the margins of every LipNeXt, clean
        against certified accuracy, at the Gaussians' clean accuracy; None where that lies beyond all of them.
    """
    own, gaussians = networks["lipnext"]["margin"], networks["lipnext"]["ellips_chosen_for"]
    lines = [each["margin"]["certified_accuracy"] for name, each in networks.items() if name.startswith("lipnext")]
    found = {}
    for radius, chosen in gaussians.items():
        clean, certified = (chosen["certified_accuracy"][key] for key in ("0", radius))
        points = sorted((line["0"], line[radius]) for line in lines)
        within = points[0][0] <= clean <= points[-1][0]
        there = float(np.interp(clean, *zip(*points, strict=True))) if within else None
        found[radius] = {
            "over_own_margin": round(certified - own["certified_accuracy"][radius], 2),
            "over_frontier": None if there is None else round(certified - there, 2),
        }
    return found
