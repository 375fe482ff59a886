"""The figures of the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch

from benchmarks._cifar10 import votes
from benchmarks._cifar10.data import ADVERSARIAL, LIPSCHITZ, Setting, fitted_head
from benchmarks._cifar10.facts import Parts, claims
from benchmarks._cifar10.store import Store
from ellips.metrics import certified_accuracy_curve
from ellips.reporting import LabelledCurve, plot_curves, plot_spectra, save_figure
from ellips.reporting.figures import plot_panels
from ellips.types import Soundness, Space

LARGEST = {"deterministic": 1.0, "probabilistic": 0.65, "estimated": 0.5}


def curve(
    label: str, row: Mapping[str, Any], soundness: Soundness, largest: float, space: Space = "input", unit: float = 1.0
) -> LabelledCurve:
    """Return the curve of a classifier that a part holds."""
    prediction, truth = (torch.tensor(row[name]) for name in ("prediction", "label"))
    radius = torch.tensor(row["radius"], dtype=torch.float64) / unit
    return LabelledCurve(
        label, certified_accuracy_curve(radius, prediction, truth, max_radius=largest), space, soundness
    )


def draw(setting: Setting, store: Store, parts: Parts, page: Path) -> list[Path]:
    """Draw every figure beside the page.

    Returns:
        The files: ``<page>.png`` with the three kinds of claim, ``<page>_latent.svg`` and ``<page>_spectra.svg``.
    """
    with mpl.rc_context({"svg.fonttype": "path"}):
        stem = page.with_suffix("")
        spectra = plot_spectra(fitted_head(setting, store, ADVERSARIAL).ellips, setting.data.class_names)
        return [
            *save_figure(plot_panels(_groups(parts)), stem.with_suffix(".png"), dpi=90),
            *save_figure(_latent(parts["latent"]), stem.with_name(f"{stem.name}_latent.svg")),
            *save_figure(spectra, stem.with_name(f"{stem.name}_spectra.svg")),
        ]


def _groups(parts: Parts) -> list[Sequence[LabelledCurve]]:
    proven, fixed = parts["deterministic"], parts[f"votes-{votes.FEW}"]
    first, *_, last = proven["chosen_for"]
    middle = "0.5" if "0.5" in proven["chosen_for"] else last
    far = LARGEST["deterministic"]
    groups: list[Sequence[LabelledCurve]] = [
        [
            curve("ELLIPS, chosen for 36/255", proven["chosen_for"][first], "deterministic", far),
            curve(f"ELLIPS, chosen for {middle}", proven["chosen_for"][middle], "deterministic", far),
            curve("the network's own margin", proven["margin"], "deterministic", far),
        ],
        [
            curve(label, claims(fixed, f"{name}_{votes.FEW}"), "probabilistic", LARGEST["probabilistic"])
            for name, label in (
                ("ellips", "ELLIPS votes"),
                ("linear", "votes of the linear head"),
                ("encoder", "ELLIPS, encoder smoothed"),
            )
        ],
        [
            curve(f"ELLIPS, {label}", _columns(parts["estimated"][name]["jacobian"]), "estimated", LARGEST["estimated"])
            for name, label in ((ADVERSARIAL, "adversarially trained"), (LIPSCHITZ, "1-Lipschitz"))
        ],
    ]
    return groups


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {name: [row[name] for row in rows] for name in ("prediction", "radius", "label")}


def _latent(found: Mapping[str, Any]) -> mpl.figure.Figure:
    names = {
        "full_exact": "ELLIPS exact",
        "full_pairwise": "ELLIPS pairwise",
        "full_theorem": "ELLIPS Theorem 4.1",
        "linear_refitted": "linear softmax",
    }
    rows = found["rows"]
    curves = [curve(label, rows[name], "exact", 0.4, "latent", found["unit"]) for name, label in names.items()]
    figure = plot_curves(curves)
    figure.axes[0].set_xlabel("ℓ2 radius in latent space, in units of the latents' scale")
    return figure
