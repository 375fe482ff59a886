"""Synthetic Gaussian mixtures, where the latent space is the input space and the truth is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ellips.classifier import Ellips
from ellips.types import FeatureBatch
from ellips.validation import at_least, one_of, positive

from .base import SPLITS, Split, SplitDataModule
from .sampling import RowsDataset


class GaussianMixtureDataModule(SplitDataModule):
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
        images_per_class: Of a training batch; see :class:`SplitDataModule`.

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
        images_per_class: int | None = None,
    ) -> None:
        super().__init__(
            batch_size=batch_size, eval_batch_size=eval_batch_size, seed=seed, images_per_class=images_per_class
        )
        at_least(2, components=components)
        at_least(0, distance=distance)
        at_least(1, train_size=train_size, val_size=val_size, test_size=test_size)
        for variance in variances:
            positive(variances=variance)
        self.sizes: dict[Split, int] = {"train": train_size, "val": val_size, "test": test_size}
        self.components = components
        self.distance = distance
        self.variances = variances
        self._splits: dict[Split, Points] = {}

    @property
    def class_names(self) -> list[str]:
        """``"0"`` to ``"K-1"``."""
        return [str(k) for k in range(self.components)]

    @property
    def feature_dim(self) -> int:
        """Two: the plane."""
        return 2

    def encoder_fingerprint(self) -> dict[str, str]:
        """Return that of the identity, which has no weights: heads made for these points refuse any encoder."""
        return {"architecture": "identity", "weights": "none", "preprocessing": "none", "feature_dim": "2"}

    @cached_property
    def mixture(self) -> Ellips:
        """The mixture that the points are drawn from."""
        angles = 2 * math.pi * torch.arange(self.components, dtype=torch.float64) / self.components
        means = self.distance * torch.stack([angles.cos(), angles.sin()], dim=1)
        covariances = torch.diag(torch.tensor(self.variances, dtype=torch.float64)).expand(self.components, 2, 2)
        priors = torch.full((self.components,), 1 / self.components, dtype=torch.float64)
        return Ellips.from_parameters(means, covariances, priors)

    def dataset(self, split: Split) -> RowsDataset[FeatureBatch]:
        """Draw the points of a split, at the first call.

        Raises:
            ValueError: If there is no such split.
        """
        one_of(SPLITS, split=split)
        if split not in self._splits:
            generator = torch.Generator().manual_seed(self.seed * 3 + SPLITS.index(split))
            points, labels = self.mixture.sample(self.sizes[split], generator)
            self._splits[split] = Points(points.float(), labels)
        return self._splits[split]


class Points(RowsDataset[FeatureBatch]):
    """Features ``(N, D)`` with labels ``(N,)``, in memory."""

    def __init__(self, points: Tensor, labels: Tensor) -> None:
        self.points = points
        self.target = labels

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, rows: Sequence[int]) -> FeatureBatch:
        index = torch.as_tensor(rows)
        return FeatureBatch(self.points[index], self.target[index], index)

    @property
    def labels(self) -> NDArray[np.int64]:
        """See :class:`RowsDataset`."""
        labels: NDArray[np.int64] = self.target.numpy()
        return labels
