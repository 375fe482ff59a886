from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from ellips.audit.slopes import steepest_slopes
from ellips.encoders.reflector import BlockReflector, reflector_rows
from ellips.lipschitz import SpectralProduct

WIDTH, RANK, SIDE = 4, 2, 4


def layer(*, growing: bool = False) -> BlockReflector:
    torch.manual_seed(0)
    made = BlockReflector(WIDTH, RANK, SIDE, growing=growing).eval()
    made.load_state_dict(made.state_dict())
    return made.requires_grad_(False)


def maps(count: int) -> Tensor:
    return torch.randn(count, WIDTH, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def bound_of(module: nn.Module, dense_limit: int = 0) -> float:
    return SpectralProduct(dense_limit).constant(lambda x: module(x).flatten(1), maps(1))


@pytest.mark.parametrize("growing", [False, True])
def test_a_reflector_has_the_constant_one_and_is_proven_to(growing: bool) -> None:
    reflector = layer(growing=growing)
    assert 1 <= bound_of(reflector) <= 1 + 1e-6
    assert bound_of(reflector, dense_limit=512) <= 1 + 1e-6
    precise = copy.deepcopy(reflector).double()
    radius = torch.ones(2, dtype=torch.float64)
    slopes = steepest_slopes(lambda x: precise(x).flatten(1), maps(2).double(), radius, steps=10, restarts=0)
    assert 0.999 < float(slopes.max()) <= 1 + 1e-6


def test_what_keeps_its_padding_keeps_all_lengths() -> None:
    reflector = layer(growing=True)
    reflector.bias.fill_(3.0)
    left, right = maps(5), maps(10)[5:]
    torch.testing.assert_close(
        (reflector(left) - reflector(right)).flatten(1).norm(dim=1), (left - right).flatten(1).norm(dim=1)
    )


def test_blocks_follow_the_kernel_and_are_not_stored() -> None:
    reflector, other = layer(), BlockReflector(WIDTH, RANK, SIDE)
    assert set(reflector.state_dict()) == {"kernel", "bias"}
    with pytest.raises(RuntimeError, match="load_state_dict"):
        other(maps(1))
    nn.Sequential(nn.ReLU(), other).load_state_dict({f"1.{k}": v for k, v in reflector.state_dict().items()})
    torch.testing.assert_close(other(maps(2)), reflector(maps(2)), rtol=0, atol=0)
    twin = copy.deepcopy(other)
    twin.load_state_dict({"kernel": torch.randn(WIDTH, RANK, 3, 3), "bias": torch.zeros(WIDTH)})
    assert not torch.equal(twin(maps(2)), other(maps(2)))
    torch.testing.assert_close(other(maps(2)), reflector(maps(2)), rtol=0, atol=0)


@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_a_kernel_has_no_length(factor: float) -> None:
    reflector, other = layer(), layer()
    other.load_state_dict({"kernel": factor * reflector.kernel, "bias": reflector.bias})
    torch.testing.assert_close(other(maps(2)), reflector(maps(2)), rtol=1e-4, atol=1e-5)


def test_blocks_that_are_altered_are_no_longer_orthogonal() -> None:
    """What is proven is what is computed with, not what should have been."""
    reflector = layer()
    assert reflector.blocks is not None
    reflector.blocks[3] *= 1.5
    assert bound_of(reflector) > 2


def test_sizes_that_do_not_fit_are_refused() -> None:
    for width, rank, side in ((4, 4, 4), (4, 0, 4), (4, 2, 3), (4, 2, 0)):
        with pytest.raises(ValueError, match="even side"):
            BlockReflector(width, rank, side)
    for rows, rank in ((3, 6), (7, 2)):
        with pytest.raises(ValueError, match="fewer than 6 directions"):
            reflector_rows(torch.randn(6, rank), rows, 1e-5)


def test_a_kernel_of_zeros_is_refused() -> None:
    with pytest.raises(ValueError, match="all zero"):
        layer().load_state_dict({"kernel": torch.zeros(WIDTH, RANK, 3, 3), "bias": torch.zeros(WIDTH)})
