"""Gaussians for votes under noise: on which features, and how regularised, is chosen on validation images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ellips import EllipsHead
from ellips.encoders import CifarResNet, FrozenEncoder
from ellips.precision import Precision
from ellips.regularization_search import Candidate, RegularizationSearch
from ellips.vote_search import select_by_votes

GRID = 2
POWERS = (1.0, 0.5)
TRIED: dict[str, tuple[float, ...]] = {
    "pooling": (0.25, 0.5, 0.75, 0.9),
    "shrinkage": (0.01, 0.03, 0.1, 0.3),
    "noise": (0.0, 0.5, 1.0),
}


@dataclass(frozen=True)
class VoteHead:
    """Gaussians on noisy features, as they were chosen.

    Attributes:
        head: Features of its grid to latents and scores.
        grid: Cells of the encoder's last maps along each side, over which means are taken.
        candidate: What was chosen among the regularisations, with its figures on the validation images.
    """

    head: EllipsHead
    grid: int
    candidate: Candidate

    def describe(self) -> str:
        """What was chosen, in one line."""
        cells = "the image" if self.grid == 1 else f"{self.grid}x{self.grid} cells"
        power = self.head.config["feature_power"]
        return (
            f"means over {cells}, {'as they are' if power == 1 else f'to the power {power:g}'}, with "
            f"{self.candidate.noise:g} times the noise's own covariance added"
        )


def grid_encoder(depth: int, width: int, weights: str | Path, precision: Precision = "32") -> FrozenEncoder:
    """Return the encoder with means over a grid of cells as features; :func:`over_cells` has those of the image."""
    return FrozenEncoder(CifarResNet(depth, width, GRID), weights=weights, precision=precision)


def over_cells(features: Tensor, grid: int = GRID) -> Tensor:
    """Return the means over the whole image ``(..., D)`` of features ``(..., D grid²)``."""
    return features.unflatten(-1, (-1, grid**2)).mean(-1)


def fit_for_votes(
    train: Tensor, labels: Tensor, held_out: Tensor, held_labels: Tensor, search: RegularizationSearch, grid: int
) -> VoteHead:
    """Fit Gaussians to noisy features; of grids and powers those with the largest mean radius on held-out images.

    Args:
        train: Features of noisy copies, shape ``(N, copies, D)``.
        labels: Shape ``(N,)``.
        held_out: Likewise, of images that are not among those, shape ``(M, n, D)``.
        held_labels: Shape ``(M,)``.
        search: For each grid and power, how pooling and shrinkage are chosen.
        grid: Of the features; means over the image are tried, too.
    """
    tried = []
    for cells in sorted({1, grid}):
        seen, held = (x if cells == grid else over_cells(x, grid) for x in (train, held_out))
        for power in POWERS:
            width, classes = seen.shape[-1], int(labels.max()) + 1
            head = EllipsHead(width, classes, latent_dim=None, feature_power=power, pooling=0.5, shrinkage=0.1)
            head.fit(seen.flatten(0, 1), labels.repeat_interleave(seen.shape[1])).eval()
            latents = head.latents(held.flatten(0, 1)).view(held.shape)
            best, _ = select_by_votes(head.moments.compute(), latents, held_labels, search)
            head.ellips.regularization = best.regularization
            tried.append(VoteHead(head.finalize(best.added).eval(), cells, best))
    return max(tried, key=lambda found: found.candidate.mean_radius)


def chosen_features(features: Tensor, found: VoteHead, grid: int = GRID) -> Tensor:
    """Return of an encoder's features those that the Gaussians are on."""
    return features if found.grid == grid else over_cells(features, grid)
