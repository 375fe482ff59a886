"""Radii in latent space: certificates, covariances, regularisation and objectives on the features of one encoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from benchmarks._cifar10.data import ADVERSARIAL, Setting, fitted_head, linear_certificate, regularized, series
from benchmarks._cifar10.store import Store
from ellips import EllipsHead
from ellips.certificates import METHODS
from ellips.encoders import LinearHead
from ellips.losses import CertifiedRadius, CodingRateReduction, Isotropy, LatentLoss, Objective
from ellips.regularization_search import RegularizationSearch, select_regularization
from ellips.theory.degradation import degradation
from ellips.theory.normality import mardia
from lightning_modules import Optimization

SEARCH = {"pooling": (0.0, 0.25, 0.5, 0.75, 1.0), "shrinkage": (0.01, 0.1, 0.3, 0.5)}
RADII = (0.05, 0.1, 0.15, 0.2, 0.3)  # in units of the latents' scale
TARGET = 0.5  # of the certified-radius loss, on the unit ball
LATENT_DIM, HIDDEN_DIM, TRAIN_BATCH = 32, 256, 1000
COVARIANCES: dict[str, dict[str, Any]] = {
    "full": {},
    "diagonal": {"covariance_type": "diagonal"},
    "low_rank": {"covariance_type": "low_rank", "rank": 16},
}
OBJECTIVES: dict[str, Callable[[], list[LatentLoss]]] = {
    "paper": lambda: [CodingRateReduction(warmup_steps=50), Isotropy(start_step=50)],
    "certified_radius": lambda: [CertifiedRadius(TARGET)],
}


def unit_of(latents: Tensor) -> float:
    """Return the root of the latents' total variance: radii in it do not depend on the latents' scale."""
    return float((latents.double() - latents.double().mean(0)).square().sum(1).mean().sqrt())


@torch.no_grad()
def classifiers(setting: Setting, store: Store, name: str = ADVERSARIAL) -> dict[str, Any]:
    """Certify the shown images by every classifier on an encoder's features.

    Returns:
        ``unit``, and ``rows``: by name, what :func:`series` keeps; None where a covariance is singular.
    """
    train, labels = setting.features(store, name, "train")
    test, truth = _shown_features(setting, store, name)
    rows: dict[str, Any] = {
        "linear": series(linear_certificate(LinearHead(name).linear, test), truth),
        "linear_refitted": series(linear_certificate(_refitted(train, labels, setting.classes), test), truth),
    }
    for kind, arguments in COVARIANCES.items():
        head = fitted_head(setting, store, name, **arguments)
        chosen = str(head.ellips.regularization)
        for method in METHODS if kind == "full" else ("exact",):
            rows[f"{kind}_{method}"] = series(head.ellips.certify(test, method), truth, regularization=chosen)
    try:
        head = fitted_head(setting, store, name, choose=False)
        rows["full_unregularized_exact"] = series(head.ellips.certify(test), truth)
    except ValueError:  # fewer images of a class than dimensions
        rows["full_unregularized_exact"] = None
    return {"unit": unit_of(train), "dim": train.shape[1], "rows": rows}


@torch.no_grad()
def most_accurate(setting: Setting, store: Store, name: str = ADVERSARIAL) -> dict[str, Any]:
    """Certify by Gaussians whose regularisation is chosen for accuracy alone, on the same validation images."""
    features, labels = setting.features(store, name, "train")
    held, held_labels = setting.features(store, name, "val")
    head = EllipsHead(features.shape[1], setting.classes, latent_dim=None, pooling=0.5, shrinkage=0.1)
    head.fit(features, labels).eval()
    search = RegularizationSearch(0.0, method="theorem", **SEARCH)
    best, _ = select_regularization(head.moments.compute(), head.latents(held), held_labels, search)
    head.ellips.regularization = best.regularization
    test, truth = _shown_features(setting, store, name)
    return series(head.finalize().ellips.certify(test), truth, regularization=str(best.regularization))


def _shown_features(setting: Setting, store: Store, name: str) -> tuple[Tensor, Tensor]:
    features, labels = setting.features(store, name, "test")
    return features[setting.rows()], labels[setting.rows()]


def _refitted(features: Tensor, labels: Tensor, classes: int) -> nn.Linear:
    """Return logistic regression on clean features: what Gaussians, which are fitted to these, compare with."""
    center, scale = features.double().mean(0), features.double().std(0).clamp_min(1e-6)
    standard = ((features - center) / scale).numpy()
    found = LogisticRegression(max_iter=1000, tol=1e-3).fit(standard, labels.numpy())
    weight = torch.from_numpy(found.coef_) / scale
    layer = nn.Linear(features.shape[1], classes, dtype=torch.float64)
    layer.load_state_dict({"weight": weight, "bias": torch.from_numpy(found.intercept_) - weight @ center})
    return layer


def objectives(setting: Setting, store: Store, name: str = ADVERSARIAL) -> dict[str, Any]:
    """Train the same projector by each objective, and certify the shown images, each in its own latents' unit."""
    found = {}
    for objective, make in OBJECTIVES.items():
        head = _trained(setting, store, name, make())
        with torch.no_grad():
            unit = unit_of(head.latents(setting.features(store, name, "train")[0]))
            test, truth = _shown_features(setting, store, name)
            certificate = head.ellips.certify(head.latents(test))
        found[objective] = series(certificate, truth, unit=unit, regularization=str(head.ellips.regularization))
    return found


def _trained(setting: Setting, store: Store, name: str, losses: list[LatentLoss]) -> EllipsHead:
    features, labels = setting.features(store, name, "train")
    torch.manual_seed(setting.sizes.seed)
    generator = torch.Generator().manual_seed(setting.sizes.seed)
    head = EllipsHead(
        features.shape[1],
        setting.classes,
        latent_dim=LATENT_DIM,
        hidden_dim=HIDDEN_DIM,
        latent_norm="ball",
        pooling=0.5,
        shrinkage=0.1,
    )
    objective, optimizer = Objective(losses), Optimization("adamw", learning_rate=1e-3).build_optimizer(head)
    head.train()
    step = 0
    for _ in range(setting.sizes.epochs):
        for rows in torch.randperm(len(labels), generator=generator).split(TRAIN_BATCH):
            loss = objective(head.latents(features[rows]), labels[rows], head.ellips, step)["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
    return regularized(head.eval().fit(features, labels), *setting.features(store, name, "val"))


@torch.no_grad()
def theory(setting: Setting, store: Store, name: str = ADVERSARIAL) -> dict[str, Any]:
    """Test the classes' normality, and bound what departing from it costs, on the whole test split."""
    head = fitted_head(setting, store, name)
    latents, labels = setting.features(store, name, "test")
    tests = mardia(latents, labels, setting.classes)
    unit = unit_of(setting.features(store, name, "train")[0])
    radii = [0.0, *(unit * r for r in RADII)]
    found = {"mardia": tests.table(), "passed": tests.passed(0.05).tolist(), "radii": [0.0, *RADII]}
    try:
        bound = degradation(head.ellips, latents, labels, radii, max_per_class=1000, seed=setting.sizes.seed)
        found["degradation"] = bound.to_dict()
    except ValueError as error:  # too few latents of a class
        found["degradation"] = {"refused": str(error)}
    return found
