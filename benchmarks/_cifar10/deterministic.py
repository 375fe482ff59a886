"""Claims that are proven: Gaussians on a 1-Lipschitz network against its own margin, and attacks on them."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from benchmarks._cifar10.data import LIPSCHITZ, Setting, linear_certificate, series
from benchmarks._cifar10.store import Store, spread_rows
from ellips import EllipsHead
from ellips.audit import AttackSettings, audit_series
from ellips.certificates import Certificate
from ellips.encoders import LinearHead
from ellips.files.records import records_from_certificate
from ellips.input_certifiers import ByConstant, InputCertifier
from ellips.lipschitz import KnownConstant, SpectralProduct
from ellips.pipeline import ImageClassifier
from ellips.regularization_search import RegularizationSearch, select_regularization
from ellips.types import Series

RADII = (36 / 255, 0.25, 72 / 255, 108 / 255, 0.5, 1.0)
SEARCH = {"pooling": (0.5, 0.8, 0.95, 1.0), "shrinkage": (0.03, 0.1, 0.3, 0.6, 0.8)}
CHUNK = 250  # images in each file of the attacks


class Proven:
    """The 1-Lipschitz network, its proven constant, and Gaussians on its features for each radius of interest.

    Args:
        setting: The pictures.
        store: Where features are.
    """

    def __init__(self, setting: Setting, store: Store) -> None:
        self.setting, self.store = setting, store
        self.encoder = setting.encoder(LIPSCHITZ)

    @cached_property
    def constant(self) -> float:
        """Proven from the stored weights, for all images."""
        image = self.setting.shown[0][:1]
        found: float = self.store.part("constant", lambda: SpectralProduct().constant(self.encoder, image))
        return found

    @property
    def certifier(self) -> ByConstant:
        """What carries latent radii to the image; the constant is the same for all, so it is proven once."""
        return ByConstant(KnownConstant(self.constant, reason="SpectralProduct() of the stored weights"))

    def classifier(self, radius: float) -> ImageClassifier:
        """Return Gaussians whose regularisation is chosen on the validation images for one radius."""
        features, labels = self.setting.features(self.store, LIPSCHITZ, "train")
        held, truth = self.setting.features(self.store, LIPSCHITZ, "val")
        head = EllipsHead(features.shape[1], self.setting.classes, latent_dim=None, pooling=0.5, shrinkage=0.1).fit(
            features, labels
        )
        search = RegularizationSearch(radius * self.constant, **SEARCH)
        best, _ = select_regularization(head.moments.compute(), head.latents(held).detach(), truth, search)
        head.ellips.regularization = best.regularization
        return ImageClassifier(self.encoder, head.finalize())

    def certificates(self) -> dict[str, Any]:
        """Certify the shown images by the network's own margin, and by Gaussians chosen for each radius."""
        images, labels = self.setting.shown
        features, truth = self.setting.features(self.store, LIPSCHITZ, "test")
        rows = self.setting.rows()
        prediction, radius = linear_certificate(LinearHead(LIPSCHITZ).linear, features)
        own = prediction, radius / self.constant
        found: dict[str, Any] = {
            "constant": self.constant,
            "margin": series((own[0][rows], own[1][rows]), labels),
            "margin_whole_split": series(own, truth),
            "chosen_for": {},
        }
        for limit in RADII:
            classifier = self.classifier(limit)
            certificate = classifier.certify(images, self.certifier)
            chosen = str(classifier.head.ellips.regularization)
            found["chosen_for"][f"{limit:.4g}"] = series(certificate, labels, regularization=chosen)
        return found

    def attacks(self) -> list[dict[str, Any]]:
        """Attack the claim of every image, right or wrong, at its whole radius; a file for each chunk of images."""
        wanted = spread_rows(len(self.setting.data.source("test")), self.setting.sizes.images_attacked)
        classifier: ImageClassifier | None = None

        def of_chunk(part: slice) -> list[dict[str, Any]]:
            nonlocal classifier
            classifier = classifier or self.classifier(RADII[0])
            return self._attacked(classifier, wanted[part])

        return self.store.rows("deterministic-attacks", len(wanted), CHUNK, of_chunk)

    def _attacked(self, classifier: ImageClassifier, rows: list[int]) -> list[dict[str, Any]]:
        images, labels = self.setting.read("test", rows)
        steps = self.setting.sizes.steps_deterministic
        certificate = classifier.certify(images, self.certifier)
        return attacked(classifier, self.certifier, images, labels, certificate, rows, steps)


def attacked(
    classifier: ImageClassifier,
    certifier: InputCertifier,
    images: Tensor,
    labels: Tensor,
    certificate: Certificate,
    rows: list[int],
    steps: int,
) -> list[dict[str, Any]]:
    """Attack each claim with a positive radius by the library's audit: PGD, untargeted and at the nearest rival.

    Returns:
        For each image its position, radius, prediction and label, whether it was attacked, and the violation found.
    """
    name = Series("input", certificate.method, "attacked")
    records = records_from_certificate(certificate, torch.tensor(rows), labels, series=name, seconds=0.0)
    target = replace(certifier.target(classifier.chain), function=None)  # predictions are attacked; slopes are not
    settings = AttackSettings(steps=steps, restarts=1, autoattack_points=0)
    audited = {each.index: each for each in audit_series(records, images, target, settings)}
    return [
        {
            "index": record.index,
            "label": record.label,
            "prediction": record.prediction,
            "radius": record.radius,
            "attacked": record.index in audited,
            "violated_by": audited[record.index].violated_by if record.index in audited else None,
            "distance": audited[record.index].distance if record.index in audited else None,
        }
        for record in records
    ]
