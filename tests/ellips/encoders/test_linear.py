from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ellips.encoders import LinearHead
from ellips.errors import WeightsNotFoundError


def test_gives_the_scores_of_the_layer_that_was_saved(tmp_path: Path) -> None:
    layer = nn.Linear(5, 3)
    save_file(dict(layer.state_dict()), tmp_path / "head.safetensors")
    head = LinearHead(tmp_path / "head.safetensors")
    features = torch.rand(4, 5)
    assert torch.equal(head(features), layer(features))
    assert (head.in_features, head.num_classes) == (5, 3)
    assert not any(parameter.requires_grad for parameter in head.parameters())


def test_other_weights_are_refused_with_the_cure(tmp_path: Path) -> None:
    save_file({"conv.weight": torch.rand(2, 2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"conv\.weight.*-head\.safetensors"):
        LinearHead(tmp_path / "other.safetensors")
    with pytest.raises(WeightsNotFoundError):
        LinearHead(tmp_path / "nothing.safetensors")
