"""Sizes against the tensors themselves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ellips.head import EllipsHead
from ellips.planning import cache_bytes, checkpoint_bytes, covariance_numbers, mixture_bytes, projector_numbers


def held(tensors: dict[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


@pytest.mark.parametrize("kind", ["full", "diagonal"])
@pytest.mark.parametrize(("latent", "hidden"), [(None, 7), (5, 0), (5, 7)])
def test_a_head_holds_what_is_said(kind: str, latent: int | None, hidden: int) -> None:
    head = EllipsHead(6, 3, latent_dim=latent, hidden_dim=hidden, covariance_type=kind)  # type: ignore[arg-type]
    parameters, _ = numbers = projector_numbers(6, latent, hidden)
    assert parameters == sum(p.numel() for p in head.parameters())
    mixture = mixture_bytes(kind, 3, latent or 6)
    assert held(head.ellips.state_dict()) == mixture + 1  # whether it was fitted
    # The counter of batch normalisation is one number of 8 bytes, counted as two of 4.
    assert held(head.projector.state_dict()) == 4 * sum(numbers)
    stepped = torch.optim.AdamW(head.parameters()) if parameters else None
    kept = 0
    if stepped is not None:
        sum(p.sum() for p in head.parameters()).backward()  # type: ignore[union-attr]
        stepped.step()
        kept = sum(v.numel() * 4 for state in stepped.state.values() for name, v in state.items() if name != "step")
    assert checkpoint_bytes(numbers, mixture, "adamw") == held(head.state_dict()) - 1 + kept


def test_low_rank_has_directions_and_scales_of_each_class_over_one_matrix() -> None:
    assert covariance_numbers("low_rank", 10, 100, 5) == 10 * 100 * 5 + 10 * 5 + 100 * 100
    with pytest.raises(ValueError, match="`rank`"):
        covariance_numbers("low_rank", 10, 100)
    with pytest.raises(ValueError, match="covariance_type"):
        covariance_numbers("banded", 10, 100)


def test_a_cached_row_is_its_features_its_label_and_its_place() -> None:
    assert cache_bytes(10, 96) == 10 * (96 * 4 + 16)
    assert cache_bytes(10, 96, "bfloat16") == 10 * (96 * 2 + 16)
    with pytest.raises(ValueError, match="cache_dtype"):
        cache_bytes(10, 96, "int8")
