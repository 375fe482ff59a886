"""What all stages share: pictures, encoders, features, and the classifiers that stand on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks._cifar10.store import Store, even_rows
from ellips import EllipsHead
from ellips.automatic_regularization import choose_automatically
from ellips.certificates import Certificate
from ellips.datamodules import ImageFolderDataModule, Split
from ellips.encoders import FrozenEncoder
from ellips.encoders.margin_classifier import margin_radii
from ellips.metrics.functional import certified_accuracy
from ellips.precision import Precision

NOISY, ADVERSARIAL, LIPSCHITZ = "cifar10_noise", "cifar10_adversarial", "cifar10_lipschitz"
CLEAN, DENOISER = "cifar10_clean", "cifar10_denoiser"
BATCH = 500
SIGMA = 0.25


@dataclass(frozen=True)
class Sizes:
    """How much is done. Images are spread over the test split; each smaller set is a part of the larger ones.

    Attributes:
        images: Test images of every table.
        images_votes: Of them, those that 1,000 noisy copies of each vote for.
        images_10000: Of them, those that 10,000 noisy copies of each vote for, at a fixed number.
        images_denoised: Of them, those that 1,000 noisy copies of each vote for behind a denoiser.
        images_early: Of them, those that votes with early stopping are counted for.
        images_art: Of them, those that the Adversarial Robustness Toolbox counts votes for, too.
        images_clever: Of them, those whose constant CLEVER estimates and whose nearest adversarial image is looked for.
        images_attacked: Test images whose deterministic claim is attacked.
        images_attacked_votes: Of those of the tables, the ones whose probabilistic claim is attacked.
        train: Training images that Gaussians are fitted to; None: all but those set apart for validation.
        held_out: Validation images for choices.
        votes: Noisy copies of each of ``held_out_votes`` validation images, for choices by votes.
        held_out_votes: Their number.
        clever_batches: See :class:`ellips.lipschitz.Clever`.
        clever_samples: Likewise.
        steps: Of each attack.
        steps_deterministic: Of those on deterministic claims, which are many.
        epochs: Of each projector's training.
        rounds: Timed rounds.
        seed: Of everything that is drawn.
    """

    images: int = 500
    images_votes: int = 500
    images_10000: int = 500
    images_denoised: int = 500
    images_early: int = 500
    images_art: int = 20
    images_clever: int = 500
    images_attacked: int = 10_000
    images_attacked_votes: int = 50
    train: int | None = None
    held_out: int = 2000
    votes: int = 100
    held_out_votes: int = 300
    clever_batches: int = 10
    clever_samples: int = 16
    steps: int = 10
    steps_deterministic: int = 6
    epochs: int = 10
    rounds: int = 5
    seed: int = 0


class Setting:
    """Pictures of a folder with the three encoders.

    Args:
        root: Folder with ``train/<class>/`` and ``test/<class>/``.
        sizes: How much is done.
    """

    def __init__(self, root: Path, sizes: Sizes) -> None:
        self.data = ImageFolderDataModule(FrozenEncoder(nn.Flatten()), root, val_fraction=0.1)
        self.sizes = sizes
        self.heads: dict[tuple[object, ...], EllipsHead] = {}
        self._encoders: dict[tuple[str, Precision], FrozenEncoder] = {}

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.data.class_names)

    def describe(self) -> dict[str, Any]:
        """Return what tells these pictures from others."""
        counts = {split: len(self.data.source(split)) for split in ("train", "val", "test")}
        return {"counts": counts, "test_content": self.data.source("test").content(self.rows())}

    def rows(self, count: int | None = None) -> list[int]:
        """Return positions in the test split: those of the tables, or ``count`` of the whole split."""
        total = len(self.data.source("test"))
        return even_rows(total, self.sizes.images if count is None else count)

    def read(self, split: Split, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return images in [0, 1] and labels."""
        source = self.data.source(split)
        return source.read(list(rows))[0].float() / 255, torch.from_numpy(source.labels[list(rows)])

    @cached_property
    def shown(self) -> tuple[Tensor, Tensor]:
        """Images and labels of the tables."""
        return self.read("test", self.rows())

    def encoder(self, name: str, precision: Precision = "32") -> FrozenEncoder:
        """Return a shipped encoder, the same each time."""
        if (name, precision) not in self._encoders:
            self._encoders[name, precision] = FrozenEncoder(name, precision=precision)
        return self._encoders[name, precision]

    def split_rows(self, split: Split) -> list[int]:
        """Return the rows of a split that are used."""
        total = len(self.data.source(split))
        wanted = {"train": self.sizes.train, "val": self.sizes.held_out, "test": None}[split]
        return even_rows(total, min(total, wanted or total))

    def features(self, store: Store, name: str, split: Split) -> tuple[Tensor, Tensor]:
        """Return float32 features and labels of a split's clean images."""

        def compute() -> dict[str, Tensor]:
            encoder, found, labels = self.encoder(name), [], []
            rows = self.split_rows(split)
            for start in range(0, len(rows), BATCH):
                images, truth = self.read(split, rows[start : start + BATCH])
                found.append(encoder.encode(images))
                labels.append(truth)
            return {"features": torch.cat(found), "labels": torch.cat(labels)}

        found = store.tensors(f"features/{name}-{split}", compute)
        return found["features"], found["labels"]


def fitted_head(setting: Setting, store: Store, name: str, *, choose: bool = True, **kind: Any) -> EllipsHead:
    """Fit Gaussians to an encoder's features, once.

    Args:
        setting: The pictures; it keeps the head.
        store: Where features are.
        name: The encoder.
        choose: Choose pooling and shrinkage on validation images; otherwise there is none of either.
        **kind: ``covariance_type`` and ``rank``.

    Raises:
        ValueError: If a covariance is singular, without a choice.
    """
    key = name, choose, tuple(kind.items())
    if key not in setting.heads:
        features, labels = setting.features(store, name, "train")
        start = {"pooling": 0.5, "shrinkage": 0.1} if choose else {}
        head = EllipsHead(features.shape[1], setting.classes, latent_dim=None, **start, **kind).fit(features, labels)
        setting.heads[key] = regularized(head, *setting.features(store, name, "val")) if choose else head.eval()
    return setting.heads[key]


@torch.no_grad()
def regularized(head: EllipsHead, features: Tensor, labels: Tensor) -> EllipsHead:
    """Choose pooling and shrinkage on validation images, and fit with them."""
    head.eval()
    latents = head.latents(features)
    best, _ = choose_automatically(head.ellips, head.moments.compute(), latents, labels, torch.arange(len(labels)))
    head.ellips.regularization = best.regularization
    return head.finalize()


def linear_certificate(layer: nn.Linear, features: Tensor) -> tuple[Tensor, Tensor]:
    """Return predictions and latent radii of a linear classifier: margins over ``‖w_i − w_j‖``, float64."""
    weight, bias = layer.weight.double(), layer.bias.double()
    scores = features.double() @ weight.T + bias
    return margin_radii(scores, torch.cdist(weight, weight, compute_mode="donot_use_mm_for_euclid_dist"))


def series(found: Certificate | tuple[Tensor, Tensor], labels: Tensor, **more: Any) -> dict[str, Any]:
    """Return what is kept of a classifier on some images: predictions, radii and labels."""
    prediction, radius = (found.prediction, found.radius) if isinstance(found, Certificate) else found
    columns = {"prediction": prediction, "radius": radius.double().clamp_max(1e6), "label": labels}
    return {**{name: value.tolist() for name, value in columns.items()}, **more}


def summary(rows: dict[str, Any], radii: Sequence[float], unit: float = 1.0) -> dict[str, Any]:
    """Return certified accuracy in per cent and the mean radius, 0 where wrong.

    Args:
        rows: Of :func:`series`.
        radii: In units of ``unit``.
        unit: What radii are measured in.
    """
    prediction, label = (torch.tensor(rows[name]) for name in ("prediction", "label"))
    radius = torch.tensor(rows["radius"], dtype=torch.float64) / unit
    values = certified_accuracy(radius, prediction, label, sorted({0.0, *radii}))
    shown = dict(zip((f"{r:.4g}" for r in sorted({0.0, *radii})), (100 * values).tolist(), strict=True))
    mean = float(torch.where(prediction == label, radius, 0.0).mean())
    return {"images": len(label), "certified_accuracy": shown, "mean_radius": mean}
