"""The weighted sum of losses, and the blocks of samples they share."""

from __future__ import annotations

import pytest
import torch

from ellips.losses import CodingRateReduction, Isotropy, Objective
from ellips.losses.groups import class_blocks


def test_terms_are_weighted_and_start_when_told() -> None:
    z, labels = torch.randn(40, 4), torch.arange(40) % 4
    objective = Objective([CodingRateReduction(weight=2.0), Isotropy(weight=0.5, start_step=10)])
    early, late = objective(z, labels, step=9), objective(z, labels, step=10)
    assert set(early) == {"loss", "CodingRateReduction"}
    assert float(early["loss"]) == pytest.approx(2 * float(early["CodingRateReduction"]))
    expected = 2 * float(late["CodingRateReduction"]) + 0.5 * float(late["Isotropy"])
    assert float(late["loss"]) == pytest.approx(expected)


def test_two_terms_of_one_class_keep_their_own_names() -> None:
    z, labels = torch.randn(40, 4), torch.arange(40) % 4
    terms = Objective([CodingRateReduction(0.1), CodingRateReduction(0.5), CodingRateReduction(1.0)])(z, labels)
    assert set(terms) == {"loss", "CodingRateReduction", "CodingRateReduction_2", "CodingRateReduction_3"}


def test_refuses_an_empty_or_idle_objective() -> None:
    with pytest.raises(ValueError, match="at least one loss"):
        Objective([])
    with pytest.raises(ValueError, match="start_step"):
        Objective([Isotropy(start_step=5)])(torch.randn(4, 2), torch.zeros(4, dtype=torch.long), step=0)
    with pytest.raises(ValueError, match="weight"):
        Isotropy(weight=-1.0)


def test_holds_no_state_of_its_own() -> None:
    assert not Objective([CodingRateReduction(), Isotropy()]).state_dict()


@pytest.mark.parametrize("seed", range(5))
def test_blocks_hold_every_sample_once_and_pad_at_most_twofold(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.randn(500, generator=generator).abs() * 5**seed).long()
    blocks = class_blocks(labels)
    seen = torch.cat([block.index[block.mask] for block in blocks])
    assert torch.equal(seen.sort().values, torch.arange(500))
    assert sum(block.index.numel() for block in blocks) <= 1000
    for block in blocks:
        assert torch.equal(block.mask.sum(1), block.count)
        for row, mask, label in zip(block.index, block.mask, block.label, strict=True):
            assert bool((labels[row[mask]] == label).all())
