"""Claims that promise nothing: CLEVER and Jacobian norms, beside the truth, an audit, and what an attack finds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks._cifar10.data import Setting, fitted_head, series
from benchmarks._cifar10.deterministic import attacked
from benchmarks._cifar10.store import Store, spread_rows
from ellips.audit import AttackSettings, attack_balls
from ellips.certificates import Certificate
from ellips.input_certifiers import ByConstant
from ellips.lipschitz import Clever, ConstantSource, JacobianNorm
from ellips.pipeline import ImageClassifier

RADII = (0.125, 0.25, 0.5, 1.0)
REACH = 2.0  # farthest that an adversarial image is looked for
HALVINGS = 6
CHUNK = 20  # images in each file


class Estimated:
    """Gaussians on an encoder, with constants that are estimated.

    Args:
        setting: The pictures.
        store: Where features are.
        name: The encoder.
    """

    def __init__(self, setting: Setting, store: Store, name: str) -> None:
        self.setting, self.store, self.name = setting, store, name
        self._classifier: ImageClassifier | None = None

    @property
    def classifier(self) -> ImageClassifier:
        """Gaussians with chosen regularisation on the encoder's features."""
        if self._classifier is None:
            head = fitted_head(self.setting, self.store, self.name)
            self._classifier = ImageClassifier(self.setting.encoder(self.name), head)
        return self._classifier

    def sources(self) -> dict[str, tuple[ConstantSource, list[int]]]:
        """Return each source with the shown images that it is asked about."""
        sizes = self.setting.sizes
        every = len(self.setting.shown[1])
        clever = Clever(0.5, sizes.clever_batches, sizes.clever_samples, seed=sizes.seed)
        return {
            "jacobian": (JacobianNorm(num_iterations=12, tolerance=0.01, ball_radius=0.5), spread_rows(every, every)),
            "clever": (clever, spread_rows(every, sizes.images_clever)),
        }

    def constants(self, source: str) -> list[dict[str, Any]]:
        """Estimate constants, turn them into radii, and attack these."""
        given, rows = self.sources()[source]
        certifier = ByConstant(given)

        def of_chunk(part: slice) -> list[dict[str, Any]]:
            images, labels = (each[rows[part]] for each in self.setting.shown)
            certificate = self.classifier.certify(images, certifier)
            claims = attacked(
                self.classifier, certifier, images, labels, certificate, rows[part], self.setting.sizes.steps
            )
            tensors = certificate.tensors()
            columns = (claims, tensors["lipschitz"].tolist(), tensors["latent_radius"].tolist())
            return [
                {**claim, "constant": constant, "latent_radius": latent}
                for claim, constant, latent in zip(*columns, strict=True)
            ]

        return self.store.rows(f"estimated-{self.name}-{source}", len(rows), CHUNK, of_chunk)

    def nearest(self) -> list[dict[str, Any]]:
        """Look for the nearest image of another prediction, by attacks at radii that halve the distance left."""
        rows = spread_rows(len(self.setting.shown[1]), self.setting.sizes.images_clever)

        def of_chunk(part: slice) -> list[dict[str, Any]]:
            images = self.setting.shown[0][rows[part]]
            certificate = self.classifier.certify(images)
            distance = self._nearest(images, certificate)
            return [{"index": i, "distance": d} for i, d in zip(rows[part], distance.tolist(), strict=True)]

        return self.store.rows(f"nearest-{self.name}", len(rows), CHUNK, of_chunk)

    def _nearest(self, images: Tensor, certificate: Certificate) -> Tensor:
        """Return distances, infinite where nothing was found within :data:`REACH`."""
        chain, steps = self.classifier.chain, 2 * self.setting.sizes.steps
        settings = AttackSettings(steps=steps, restarts=1, autoattack_points=0)
        low = torch.zeros(len(images), dtype=torch.float64)
        found = torch.full_like(low, torch.inf)
        radius = torch.full_like(low, REACH)
        for _ in range(HALVINGS + 1):
            for moved in attack_balls(chain.scores, images, radius, certificate.rival, settings).values():
                with torch.no_grad():
                    changed = chain.decide(moved.float()) != certificate.prediction
                length = torch.linalg.vector_norm((moved - images).flatten(1), dim=1)
                found = torch.where(changed & (length < found), length, found)
            low = torch.where(found <= radius, low, radius)
            radius = (low + found.clamp_max(REACH)) / 2
        return found

    def curve(self, source: str) -> dict[str, Any]:
        """Return :func:`series` of a source's radii."""
        rows = self.constants(source)
        columns = (torch.tensor([row[key] for row in rows]) for key in ("prediction", "radius", "label"))
        prediction, radius, label = columns
        return series((prediction, radius), label)
