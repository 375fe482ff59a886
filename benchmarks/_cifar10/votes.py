"""Claims that hold with probability: votes under noise on the network that was trained with it."""

from __future__ import annotations

from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from benchmarks._cifar10.data import BATCH, CLEAN, DENOISER, NOISY, SIGMA, Setting
from benchmarks._cifar10.deterministic import attacked
from benchmarks._cifar10.store import Store, even_rows, spread_rows
from benchmarks._votes import GRID, TRIED, VoteHead, chosen_features, fit_for_votes, grid_encoder, over_cells
from ellips import EllipsHead
from ellips.certificates import Certificate
from ellips.encoders import Denoised, FrozenEncoder, LinearHead, ResidualDenoiser
from ellips.encoders.weights import shipped_provenance
from ellips.input_certifiers import ArtSmoothedDecision, Chain, SmoothedDecision, SmoothedEncoder
from ellips.input_certifiers.smoothed_encoder import mean_error
from ellips.pipeline import ImageClassifier
from ellips.regularization_search import RegularizationSearch
from ellips.smoothing import ImageNoise, VotePlan

ALPHA = 0.001
RADII = (0.125, 0.25, 0.375, 0.5, 0.75)
STOPPING = (0.25, 0.5, 0.75)  # radii that early stopping decides
FEW, MANY = 1000, 10_000
SELECTION = 100
COPIES = 2  # noisy copies of each training image
CHUNK = 10  # images in each file


class Smoothed:
    """The network that was trained with noise, its linear head, and Gaussians fitted to noisy features.

    Args:
        setting: The pictures.
        store: Where features are.

    Attributes:
        weights: Name of the network.
        stem: Of the names of its features.
    """

    weights: ClassVar[str] = NOISY
    stem: ClassVar[str] = NOISY

    def __init__(self, setting: Setting, store: Store) -> None:
        self.setting, self.store = setting, store
        recipe = shipped_provenance(self.weights)["recipe"]
        self.encoder = self.under_noise(grid_encoder(recipe["depth"], recipe["width"], self.weights, "bf16"))
        self.plain = self.under_noise(setting.encoder(self.weights, "bf16"))
        self.linear = LinearHead(self.weights)

    def under_noise(self, encoder: FrozenEncoder) -> FrozenEncoder:
        """Return the encoder that noisy images go through."""
        return encoder

    def noisy(self, split: str, rows: list[int], copies: int) -> dict[str, Tensor]:
        """Return features ``(N, copies, D)`` of noisy copies, and labels; from the store once they are there."""

        def compute() -> dict[str, Tensor]:
            generator = torch.Generator().manual_seed(self.setting.sizes.seed)
            found, labels = [], []
            step = max(1, BATCH // copies)
            for start in range(0, len(rows), step):
                images, truth = self.setting.read(split, rows[start : start + step])  # type: ignore[arg-type]
                many = images.repeat_interleave(copies, 0)
                noise = SIGMA * torch.randn(many.shape, generator=generator)
                found.append(self.encoder.encode(many + noise).view(len(images), copies, -1))
                labels.append(truth)
            return {"features": torch.cat(found), "labels": torch.cat(labels)}

        return self.store.tensors(f"features/{self.stem}-cells-{split}-noisy", compute)

    @cached_property
    def held(self) -> dict[str, Tensor]:
        """Noisy features of validation images, for choices."""
        sizes, total = self.setting.sizes, len(self.setting.data.source("val"))
        return self.noisy("val", even_rows(total, min(total, sizes.held_out_votes)), sizes.votes)

    @cached_property
    def chosen(self) -> VoteHead:
        """Gaussians on noisy features; which features, pooling and shrinkage by votes on the validation images."""
        train = self.noisy("train", self.setting.split_rows("train"), COPIES)
        held = self.held
        search = RegularizationSearch(SIGMA, sigma=SIGMA, **TRIED)
        return fit_for_votes(train["features"], train["labels"], held["features"], held["labels"], search, GRID)

    @property
    def head(self) -> EllipsHead:
        """The chosen Gaussians."""
        return self.chosen.head

    @cached_property
    def classifier(self) -> ImageClassifier:
        """The Gaussians on the network."""
        return ImageClassifier(self.plain if self.chosen.grid == 1 else self.encoder, self.head)

    @cached_property
    def linear_chain(self) -> Chain:
        """What a certifier by votes of the linear head takes: the network as it was trained."""
        return Chain(self.plain.encode, self.head.ellips, self.plain)

    def latents(self, features: Tensor) -> Tensor:
        """Return the latents of the grid encoder's features."""
        return self.head.latents(chosen_features(features, self.chosen))

    @cached_property
    def ball(self) -> float:
        """Radius of the smoothed encoder's ball: three quarters of the noisy validation latents are shorter."""
        lengths = torch.linalg.vector_norm(self.latents(self.held["features"].flatten(0, 1)).double(), dim=1)
        return float(lengths.quantile(0.75))

    def fixed(self, draws: int) -> list[dict[str, Any]]:
        """Count a fixed number of votes of the linear head and of the Gaussians, on the same noise."""
        sizes = self.setting.sizes
        return self._counted(f"votes-{draws}", sizes.images_votes if draws == FEW else sizes.images_10000, draws)

    def _counted(self, part_name: str, count: int, draws: int) -> list[dict[str, Any]]:
        rows = self.some(count)

        def of_chunk(part: slice) -> list[dict[str, Any]]:
            images, labels = (each[rows[part]] for each in self.setting.shown)
            return [
                {"row": row, "label": int(label), **self._fixed(image, draws)}
                for row, image, label in zip(rows[part], images, labels, strict=True)
            ]

        return self.store.rows(part_name, len(rows), CHUNK, of_chunk)

    def some(self, count: int) -> list[int]:
        """Return some of the shown images; fewer are a part of more."""
        return spread_rows(len(self.setting.shown[1]), count)

    @torch.no_grad()
    def _fixed(self, image: Tensor, draws: int) -> dict[str, Any]:
        selection, counted = (
            self._copies(image, count, purpose) for count, purpose in ((SELECTION, "selection"), (draws, "estimation"))
        )
        row: dict[str, Any] = {}
        deciders = (
            ("linear", lambda z: self.linear(over_cells(z)).argmax(1)),
            ("ellips", lambda z: self.head.ellips.predict(self.latents(z))),
        )
        for name, decide in deciders:
            choice = int(torch.bincount(decide(selection)).argmax())
            votes = decide(counted) == choice
            for count in sorted({FEW, draws}):
                plan = VotePlan.fixed(SIGMA, count, ALPHA)
                won = int(votes[:count].sum())
                proven = int(plan.proven(np.array([won]), 0)[0])
                row[f"{name}_{count}"] = [choice if proven else -1, plan.radius(proven, won) if proven else 0.0]
        for count in sorted({FEW, draws}):
            row[f"encoder_{count}"] = self._encoder(counted[:count])
        return row

    def _copies(self, image: Tensor, count: int, purpose: str) -> Tensor:
        noise, found = ImageNoise(image, SIGMA, self.setting.sizes.seed, purpose), []
        for start in range(0, count, BATCH):
            copies = torch.empty(min(BATCH, count - start), *image.shape)
            noise.fill(copies)
            found.append(self.encoder.encode(copies))
        return torch.cat(found)

    def _encoder(self, features: Tensor) -> list[float]:
        certifier = SmoothedEncoder(SIGMA, len(features), ALPHA, norm_bound=self.ball)
        values = certifier.project(self.latents(features).double())
        error = torch.tensor([mean_error(values, self.ball, ALPHA)], dtype=torch.float64)
        certificate = self.head.ellips.certify(values.mean(0)[None]).less(error)
        radius = float(certificate.radius / certifier.constant)
        return [int(certificate.prediction) if radius > 0 else -1, radius]

    def early(self) -> list[dict[str, Any]]:
        """Count votes of the Gaussians until the radii that are asked for are decided, or 10,000 are drawn."""
        rows = self.some(self.setting.sizes.images_early)
        certifier = self.decision(MANY, radii=STOPPING)

        def of_chunk(part: slice) -> list[dict[str, Any]]:
            images, labels = (each[rows[part]] for each in self.setting.shown)
            votes = certifier.vote(self.classifier.chain, images)
            columns = (labels, votes.prediction, votes.radius, votes.draws + votes.selection)
            names = ("label", "prediction", "radius", "passes")
            return [dict(zip(names, row, strict=True)) for row in zip(*(c.tolist() for c in columns), strict=True)]

        found = self.store.rows("votes-early", len(rows), CHUNK, of_chunk)
        return [{"row": row, **each} for row, each in zip(rows, found, strict=True)]

    def decision(self, draws: int, *, linear: bool = False, **changes: Any) -> SmoothedDecision:
        """Return the certifier by votes."""
        head = NOISY if linear else None
        return SmoothedDecision(
            SIGMA, draws, ALPHA, linear_head=head, chunk_size=BATCH, seed=self.setting.sizes.seed, **changes
        )

    def art(self, draws: int) -> ArtSmoothedDecision:
        """Return the toolbox's certifier of the linear head's votes, on the same noise."""
        return ArtSmoothedDecision(
            SIGMA, draws, ALPHA, linear_head=NOISY, chunk_size=BATCH, seed=self.setting.sizes.seed
        )

    def describe(self) -> dict[str, Any]:
        """Return what was chosen."""
        return {
            "features": self.chosen.describe(),
            "regularization": str(self.head.ellips.regularization),
            "ball": self.ball,
        }

    def agreement(self) -> dict[str, Any]:
        """Hold the toolbox's votes against ours, on the same noise and the linear head, for a few images."""
        rows = self.some(self.setting.sizes.images_art)
        images = self.setting.shown[0][rows]
        ours, theirs = (
            certifier.vote(self.linear_chain, images)
            for certifier in (self.decision(FEW, linear=True, stopping="fixed"), self.art(FEW))
        )
        return {
            "images": len(rows),
            "same": int((ours.prediction == theirs.prediction).sum()),
            "largest_difference": float((ours.radius - theirs.radius).abs().max()),
        }

    def attacks(self) -> list[dict[str, Any]]:
        """Attack the claims of the Gaussians' votes at 1,000 draws."""
        fixed = self.fixed(FEW)[: self.setting.sizes.images_attacked_votes]
        rows = [row["row"] for row in fixed]
        certifier = self.decision(FEW, stopping="fixed")

        def of_chunk(part: slice) -> list[dict[str, Any]]:
            images, labels = (each[rows[part]] for each in self.setting.shown)
            claims = [row[f"ellips_{FEW}"] for row in fixed[part]]
            certificate = _claimed(claims)
            steps = self.setting.sizes.steps
            return attacked(self.classifier, certifier, images, labels, certificate, rows[part], steps)

        return self.store.rows("votes-attacks", len(rows), CHUNK, of_chunk)


class SmoothedBehindDenoiser(Smoothed):
    """A network that never saw noise, behind a denoiser, and Gaussians fitted to denoised features."""

    weights = CLEAN
    stem = f"{CLEAN}-denoised"

    def under_noise(self, encoder: FrozenEncoder) -> FrozenEncoder:
        """See :class:`Smoothed`."""
        return Denoised(encoder, ResidualDenoiser(DENOISER))

    def fixed(self, draws: int) -> list[dict[str, Any]]:
        """See :class:`Smoothed`; of fewer images."""
        return self._counted(f"votes-denoised-{draws}", self.setting.sizes.images_denoised, draws)


def _claimed(claims: list[list[float]]) -> Certificate:
    prediction = torch.tensor([int(p) for p, _ in claims])
    radius = torch.tensor([r for _, r in claims], dtype=torch.float64)
    unknown = torch.full_like(radius, torch.nan)
    rival = (prediction.clamp_min(0) + 1) % 2  # of votes the attack has no nearest rival: one of the first two classes
    return Certificate(prediction, radius, rival, unknown, unknown, "votes", "probabilistic", "input")
