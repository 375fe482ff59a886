"""Linear classifiers of 1-Lipschitz features, with the certificate of their pairwise margins."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ellips.validation import at_least


class MarginClassifier(nn.Module):
    """Unit directions w_k, scores ``w_kᵀz + b_k``; a rival is as far as its margin over ``‖w_i − w_j‖``.

    That radius holds for images, too, if the features are 1-Lipschitz: the certificate with pairwise norms of
    Leino, Wang and Fredrikson (2021, "Globally-robust neural networks").

    Args:
        num_classes: K.
        feature_dim: Width of the features; at least K − 1 unless the directions are learned.
        learned: Train directions and biases; otherwise they are the corners of a regular simplex, and 0.

    Raises:
        ValueError: If there are fewer than two classes, or fewer features than a simplex needs.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, num_classes: int, feature_dim: int, learned: bool = False) -> None:
        super().__init__()
        at_least(2, num_classes=num_classes)
        if learned:
            self.weight = nn.Parameter(functional.normalize(torch.randn(num_classes, feature_dim), dim=1))
            self.bias = nn.Parameter(torch.zeros(num_classes))
        elif feature_dim < num_classes - 1:
            raise ValueError(
                f"Expected `feature_dim` to be at least {num_classes - 1}, which a simplex of {num_classes} corners "
                f"needs, but got {feature_dim}."
            )
        else:
            self.register_buffer("weight", simplex(num_classes, feature_dim))
            self.register_buffer("bias", torch.zeros(num_classes))

    @property
    def directions(self) -> Tensor:
        """The unit directions, shape ``(K, D)``."""
        return functional.normalize(self.weight, dim=1)

    def forward(self, features: Tensor) -> Tensor:
        """Map features ``(N, D)`` to scores ``(N, K)``, at least in float32."""
        with torch.autocast(features.device.type, enabled=False):
            wide = features if features.dtype == torch.float64 else features.float()
            return functional.linear(wide, self.directions.to(wide), self.bias.to(wide))

    def edges(self) -> Tensor:
        """Return ``‖w_i − w_j‖``, shape ``(K, K)``."""
        return torch.cdist(self.directions, self.directions, compute_mode="donot_use_mm_for_euclid_dist")

    def certify(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Return predictions, and the distances of the features to the nearest other class's region.

        Nothing is said of rounding: this is for training and for comparison, not a :class:`Certificate`.

        Args:
            scores: Shape ``(N, K)``.

        Returns:
            Two tensors of shape ``(N,)``.
        """
        return margin_radii(scores, self.edges().to(scores))


def margin_radii(scores: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
    """Return predictions of any linear classifier, and the distances to the nearest other class's region.

    Args:
        scores: Shape ``(N, K)``.
        edges: ``‖w_i − w_j‖``, shape ``(K, K)``.

    Returns:
        Two tensors of shape ``(N,)``.
    """
    best, prediction = scores.max(1)
    radius = (best[:, None] - scores) / edges[prediction]  # of the prediction itself 0 / 0
    return prediction, radius.scatter(1, prediction[:, None], torch.inf).amin(1)


def simplex(corners: int, dim: int) -> Tensor:
    """Return unit vectors with equal angles between them, the widest there are; shape ``(corners, dim)``."""
    centred = torch.eye(corners, dtype=torch.float64) - 1 / corners
    # The centred corners span corners - 1 dimensions; their coordinates in an orthonormal basis of that span.
    basis = torch.linalg.svd(centred).U[:, : corners - 1]
    coordinates = functional.normalize(centred @ basis, dim=1)
    return functional.pad(coordinates, (0, dim - corners + 1)).float()
