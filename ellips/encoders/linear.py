"""The linear classifier that an encoder was trained with."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from ellips.encoders.weights import load_file, load_shipped_head, shipped_names


class LinearHead(nn.Module):
    """The linear classifier of an encoder's own training, from its file: features to scores, frozen.

    It is the peer of Gaussians on the same features: Cohen et al. (2019) smooth the encoder with exactly this head.

    Args:
        weights: A ``.safetensors`` file with ``weight`` (K, D) and ``bias`` (K,), as ``ellips train-encoder`` writes
            it beside the encoder; or the name of a shipped encoder that has one (``"cifar10_noise"``).

    Attributes:
        in_features: D.
        num_classes: K.

    Raises:
        ValueError: If the file holds something else.
        WeightsNotFoundError: If there is no such file.
    """

    def __init__(self, weights: str | Path) -> None:
        super().__init__()
        found = load_shipped_head(str(weights)) if str(weights) in shipped_names() else load_file(weights)
        if found.state.keys() != {"weight", "bias"} or found.state["weight"].ndim != 2:
            shapes = {name: tuple(value.shape) for name, value in list(found.state.items())[:5]}
            raise ValueError(
                f"Expected {found.origin} to hold `weight` (K, D) and `bias` (K,) of a linear classifier but got "
                f"{shapes}; name the file `<name>-head.safetensors` that `ellips train-encoder` writes."
            )
        self.num_classes, self.in_features = found.state["weight"].shape
        self.linear = nn.Linear(self.in_features, self.num_classes)
        self.linear.load_state_dict(found.state)
        self.requires_grad_(False)
        self.eval()

    def forward(self, features: Tensor) -> Tensor:
        """Map features ``(N, D)`` to scores ``(N, K)``."""
        scores: Tensor = self.linear(features)
        return scores
