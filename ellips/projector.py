"""The trained map from an encoder's features to latents."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ellips.distributed import GlobalBatchNorm1d
from ellips.validation import at_least, one_of

LatentNorm = Literal["none", "ball", "sphere"]


def normalize_latents(latents: Tensor, latent_norm: LatentNorm) -> Tensor:
    """Bring latents to where they shall live.

    What each means for a certificate that is to be carried on to the input:

    - ``"none"``: the latent as it is; no factor.
    - ``"ball"``: the nearest point of the unit ball. 1-Lipschitz, so a Lipschitz constant of the projector holds for
      the normalised latent too, everywhere.
    - ``"sphere"``: ``z / ‖z‖``, as CPP does. Its Lipschitz constant at z is ``1/‖z‖``, unbounded near the origin, so
      no global constant exists; and a full-rank Gaussian cannot live on the sphere, so covariances need shrinkage.

    Args:
        latents: Shape ``(N, d)``.
        latent_norm: One of the three.

    Raises:
        ValueError: If ``latent_norm`` is none of them.
    """
    if latent_norm == "none":
        return latents
    length: Tensor = torch.linalg.vector_norm(latents, dim=1, keepdim=True)
    if latent_norm == "ball":
        return latents / length.clamp(min=1.0)
    if latent_norm == "sphere":
        return latents / length.clamp(min=torch.finfo(latents.dtype).tiny)
    raise ValueError(f"Expected `latent_norm` to be one of {get_args(LatentNorm)} but got {latent_norm!r}.")


class PowerTransform(nn.Module):
    """``sign(x) |x|^exponent`` of each feature: Tukey's ladder of powers, which makes skewed features more Gaussian.

    Features behind a ReLU and a mean over pixels are at least 0 and skewed; their roots are closer to Gaussians, as in
    Yang et al. 2021 (Free Lunch for Few-shot Learning). Below 1 its slope at 0 is infinite: it has no
    Lipschitz constant, so no radius on the image follows from a latent one, and the gradient at 0 is given as 0. Votes
    under noise need no constant.

    Args:
        exponent: Above 0 and at most 1; 0.5 takes roots.

    Raises:
        ValueError: If the exponent is out of range.
    """

    def __init__(self, exponent: float) -> None:
        super().__init__()
        if not 0 < exponent <= 1:
            raise ValueError(f"Expected an exponent of features above 0 and at most 1 but got {exponent:g}.")
        self.exponent = exponent

    def forward(self, features: Tensor) -> Tensor:
        """Return as many features, in their type."""
        size = torch.where(features == 0, 1, features.abs())  # at 0 itself the gradient of a root is no number
        return torch.where(features == 0, 0, features.sign() * size**self.exponent)

    def extra_repr(self) -> str:
        """The exponent, for ``print``."""
        return f"exponent={self.exponent:g}"


class Projector(nn.Module):
    """Linear–BatchNorm–ReLU–Linear–ReLU (the pre-feature layer), then Linear to the latents (the feature head).

    Args:
        in_features: Width of the features.
        latent_dim: Width of the latents.
        hidden_dim: Width of the pre-feature layer; 0 leaves it out, so that the projector is one linear map.
        latent_norm: See :func:`normalize_latents`.
        sync_batchnorm: Whether BatchNorm uses the statistics of the global batch when several processes train.

    Raises:
        ValueError: If a width is out of range or ``latent_norm`` is unknown.

    Source: [E26] appendix H, after Chu et al. 2023 (CPP).
    """

    def __init__(
        self,
        in_features: int,
        latent_dim: int,
        hidden_dim: int = 4096,
        *,
        latent_norm: LatentNorm = "none",
        sync_batchnorm: bool = True,
    ) -> None:
        super().__init__()
        at_least(1, in_features=in_features, latent_dim=latent_dim)
        at_least(0, hidden_dim=hidden_dim)
        one_of(get_args(LatentNorm), latent_norm=latent_norm)
        self.latent_norm: LatentNorm = latent_norm
        batch_norm = GlobalBatchNorm1d if sync_batchnorm else nn.BatchNorm1d
        self.pre_feature = nn.Sequential()
        if hidden_dim:
            self.pre_feature.extend(
                [
                    nn.Linear(in_features, hidden_dim),
                    batch_norm(hidden_dim),
                    nn.ReLU(),
                    nn.Linear(hidden_dim, hidden_dim),
                    nn.ReLU(),
                ]
            )
        self.feature_head = nn.Linear(hidden_dim or in_features, latent_dim)

    def forward(self, features: Tensor) -> Tensor:
        """Return latents ``(N, latent_dim)`` of features ``(N, in_features)``."""
        latents: Tensor = self.feature_head(self.pre_feature(features))
        # Lengths in float32: in bfloat16 a "unit" vector can be 1 % longer than one.
        wide = latents if latents.dtype == torch.float64 else latents.float()
        return normalize_latents(wide, self.latent_norm)
