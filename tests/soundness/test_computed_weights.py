"""Weights that a network computes from others: what is proven is of the stored numbers, not of what float32 makes."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from ellips.lipschitz import SpectralProduct, UnprovenOperationError
from ellips.lipschitz.base import evaluation_error

IMAGES = torch.rand(3, 3, 2, 2, generator=torch.Generator().manual_seed(0))


class Computed(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, weight: Tensor) -> Tensor:
        return self.function(weight)


def network(function: Callable[[Tensor], Tensor] | None) -> nn.Module:
    """A linear layer whose weight is a function of another, badly conditioned one; None: weight normalisation."""
    torch.manual_seed(0)
    layer = nn.Linear(12, 12)
    with torch.no_grad():
        layer.weight.copy_(torch.linalg.qr(torch.randn(12, 12))[0] * torch.logspace(0, -3, 12) @ torch.randn(12, 12))
    if function is None:
        nn.utils.parametrizations.weight_norm(layer)
    else:
        nn.utils.parametrize.register_parametrization(layer, "weight", Computed(function), unsafe=True)
    return nn.Sequential(nn.Flatten(), layer).eval().requires_grad_(False)


WEIGHTS: dict[str, Callable[[Tensor], Tensor] | None] = {
    "weight norm": None,
    "inverse": torch.linalg.inv,
    "without its mean": lambda w: (w + 3e3) - (w + 3e3).mean(1, keepdim=True),
    "exponential": lambda w: (9 * w).exp(),
    "masked by what float32 rounds away": lambda w: w * (0 * w + 1 + 1e-8 > 1),
    "transposed in part": lambda w: torch.cat([w[:6].T.reshape(6, 12), w[6:]], 0) / 3,
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_the_constant_is_that_of_exact_arithmetic(name: str) -> None:
    function = network(WEIGHTS[name])
    truth = float(torch.linalg.matrix_norm(deepcopy(function).double()[1].weight, ord=2))
    for dense_limit in (0, 1024):
        bound = float(SpectralProduct(dense_limit)(function, IMAGES).constant[0])
        assert truth <= bound <= truth * (1 + 1e-6)


@pytest.mark.parametrize("name", WEIGHTS)
def test_the_error_of_the_latents_is_that_of_their_weights_too(name: str) -> None:
    function = network(WEIGHTS[name])
    latents = function(IMAGES)
    away = (latents - deepcopy(function).double()(IMAGES.double())).norm(dim=1)
    error = evaluation_error(function, IMAGES, latents)
    assert (away <= error * (1 + 1e-6)).all()
    assert (error <= 2 * away).all()


def test_stored_weights_that_change_below_what_float32_tells_are_noticed() -> None:
    """Through `.data`, which counts no changes: what is computed from them stays the same in float32, bit by bit."""
    function, source = network(WEIGHTS["without its mean"]), SpectralProduct()
    before = function[1].weight.clone()
    source(function, IMAGES)
    stored = function[1].parametrizations.weight.original
    rounded = (stored + 3e3) - 3e3
    stored.data.copy_(rounded + 0.9 * (stored - rounded) + 1e-5 * rounded.sign())
    assert torch.equal(function[1].weight, before)
    truth = float(torch.linalg.matrix_norm(deepcopy(function).double()[1].weight, ord=2))
    bound = float(source(function, IMAGES).constant[0])
    assert truth <= bound <= truth * (1 + 1e-6)


LOST: dict[str, Callable[[Tensor], Tensor]] = {
    "absorbed": lambda w: w + ((3 * w + 1e30) - 1e30),
    "nearly singular": lambda w: torch.linalg.inv(w - w.mean(0) * (1 - 1e-13)),
    "as many as it has": lambda w: w * (w * 1e9 % 2.0 > 1e-6).cumsum(1)[:, -1:].long() / ((w + 1e17) - 1e17 + 1),
}


@pytest.mark.parametrize("name", LOST)
def test_weights_that_float64_cannot_tell_are_refused(name: str) -> None:
    with pytest.raises(UnprovenOperationError, match="rounded"):
        SpectralProduct()(network(LOST[name]), IMAGES)
