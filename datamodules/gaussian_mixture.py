"""Synthetic Gaussian mixtures, where the latent space is the input space and the truth is known."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import torch
from torch.utils.data import Dataset

from ellips.classifier import Ellips
from ellips.types import FeatureBatch

from .base import EncodedDataModule, Split
from .sources import ArraySource


class GaussianMixtureDataModule(EncodedDataModule):
    """K Gaussians in the plane, their means on a circle, as in the paper's synthetic experiments ([E26] App. H.2).

    There is no encoder: the points are the features, and certificates on them are ``exact``.

    Args:
        components: K, the number of classes.
        distance: Radius of the circle; mean k stands at the angle 2πk/K.
        variances: Along the two axes: ``(1, 1)`` is isotropic, ``(1.5, 0.5)`` the paper's anisotropic mixture.
        train_size: Points of the training split.
        val_size: Points of the validation split.
        test_size: Points of the test split.
        seed: Of the points and of the training order.
        batch_size: Largest training batch of one process.
        eval_batch_size: Largest batch of the other loaders; None: like ``batch_size``.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        components: int = 3,
        distance: float = 4.0,
        variances: tuple[float, float] = (1.0, 1.0),
        *,
        train_size: int = 4000,
        val_size: int = 1000,
        test_size: int = 4000,
        seed: int = 0,
        batch_size: int = 1000,
        eval_batch_size: int | None = None,
    ) -> None:
        super().__init__(None, batch_size=batch_size, eval_batch_size=eval_batch_size, seed=seed)  # type: ignore[arg-type]
        self.sizes: dict[Split, int] = {"train": train_size, "val": val_size, "test": test_size}
        if components < 2 or distance < 0 or min(variances) <= 0 or min(self.sizes.values()) < 1:
            raise ValueError(
                "Expected at least two components, a distance of at least 0, positive variances and sizes but got "
                f"components={components}, distance={distance}, variances={variances}, sizes={self.sizes}."
            )
        self.components = components
        self.distance = distance
        self.variances = variances

    @property
    def class_names(self) -> list[str]:
        """``"0"`` to ``"K-1"``."""
        return [str(k) for k in range(self.components)]

    @property
    def feature_dim(self) -> int:
        """Two: the plane."""
        return 2

    def encoder_fingerprint(self) -> dict[str, str]:
        """The identity has no weights."""
        return {"architecture": "identity", "weights": "none", "preprocessing": "none", "feature_dim": "2"}

    @cached_property
    def mixture(self) -> Ellips:
        """The mixture that the points are drawn from."""
        angles = 2 * math.pi * torch.arange(self.components, dtype=torch.float64) / self.components
        means = self.distance * torch.stack([angles.cos(), angles.sin()], dim=1)
        covariances = torch.diag(torch.tensor(self.variances, dtype=torch.float64)).expand(self.components, 2, 2)
        priors = torch.full((self.components,), 1 / self.components, dtype=torch.float64)
        return Ellips.from_parameters(means, covariances, priors)

    def make_source(self, split: Split) -> ArraySource:
        """Draw the points of a split, as ``(N, 2)`` in place of images."""
        generator = torch.Generator().manual_seed(self.seed * 3 + list(self.sizes).index(split))
        points, labels = self.mixture.sample(self.sizes[split], generator)
        return ArraySource(f"gaussian_mixture/{split}", points.float(), labels.numpy())

    def _dataset(self, split: Split) -> Dataset[Any]:
        return _Points(self.make_source(split) if split not in self._sources else self._sources[split])


class _Points(Dataset[FeatureBatch]):
    """Batches of points, by lists of rows."""

    def __init__(self, source: object) -> None:
        if not isinstance(source, ArraySource):
            raise TypeError(f"Expected points in memory but got {type(source).__name__}.")
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, rows: list[int]) -> FeatureBatch:
        points, _ = self.source.read(rows)
        index = torch.as_tensor(rows)
        return FeatureBatch(points, torch.from_numpy(self.source.labels)[index], index)
