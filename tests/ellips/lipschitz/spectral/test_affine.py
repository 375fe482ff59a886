"""Affine rules: constants that depend on the image, and which axis a factor or a piece belongs to."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ellips.lipschitz import UnprovenOperationError
from ellips.lipschitz.capture.export import export
from ellips.lipschitz.capture.graph import Node
from ellips.lipschitz.spectral import affine, product

Function = Callable[[Tensor], Tensor]
SHAPE = (2, 3, 2)


def image() -> Tensor:
    return torch.rand(*SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def bounds_of(function: Function) -> tuple[float, float]:
    """By rules alone, and with what is affine written out."""
    graph = export(lambda x: function(x).reshape(1, -1), image()[None])
    by_rules, dense = (product._Bounds(graph, limit, 10).total() for limit in (0, 1024))
    return by_rules, dense


def truth_of(function: Function) -> float:
    """The largest slope of a linear function, by differences."""
    moved = image() + 1e-3 * torch.eye(12, dtype=torch.float64).view(-1, *SHAPE)
    slopes = torch.stack([(function(x[None]) - function(image()[None])).flatten() for x in moved]) / 1e-3
    return float(torch.linalg.matrix_norm(slopes, ord=2))


SQUARE = torch.tensor([[1.0, 0.5], [-0.25, 0.75]], dtype=torch.float64)
KERNEL = torch.ones(2, 2, 1, 1, dtype=torch.float64)

DEPENDS: dict[str, tuple[Function, str]] = {
    "a bias": (lambda x: torch.addmm(9 * x[0, 1:, :2, 0], x[0, 0, :2], SQUARE), "addmm.*depends on the image"),
    "a matrix": (lambda x: torch.addmm(SQUARE, x[0, 0, :2], x[0, 1, :2]), "addmm.*depends on the image"),
    "a matrix from the left": (lambda x: torch.addmm(SQUARE, SQUARE, x[0, 1, :2]), "addmm.*depends on the image"),
    "both factors": (lambda x: x[0, 0, :2] @ x[0, 1, :2], "two matrices that depend"),
    "a bias of a convolution": (lambda x: functional.conv2d(x, KERNEL, 9 * x[0, :, 0, 0]), "constant kernel"),
    "a kernel": (lambda x: functional.conv2d(x, x[:, :, :1, :1]), "constant kernel"),
    "a bias of a linear layer": (lambda x: functional.linear(x, SQUARE, 9 * x[0, :, 0, 0]), "image with itself"),
}


@pytest.mark.parametrize("what", DEPENDS)
def test_constants_that_depend_on_the_image_are_refused(what: str) -> None:
    function, message = DEPENDS[what]
    with pytest.raises(UnprovenOperationError, match=message):
        bounds_of(function)


def _normalised(x: Tensor) -> Tensor:
    """As many channels as rows, and a factor for each row, that BatchNorm takes for channels without a batch's axis."""
    kernel = torch.tensor([1.0, 1e-3, 1e-3], dtype=torch.float64)[:, None, None, None] * torch.ones(3, 2, 1, 1)
    convolved = functional.conv2d(x[0], kernel)
    statistics = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    return functional.batch_norm(convolved, *statistics, weight=torch.tensor([1e-3, 1.0, 1.0], dtype=torch.float64))


def test_factors_of_rows_are_not_taken_for_those_of_channels() -> None:
    """Folded into the convolution they would leave a thousandth."""
    truth = truth_of(_normalised)
    assert truth == pytest.approx(2**0.5, rel=1e-4)
    for bound in bounds_of(_normalised):
        assert truth * (1 - 1e-9) <= bound <= truth * (1 + 1e-4)


@pytest.mark.parametrize("axis", [0, 2, -1])
def test_stacked_pieces_are_where_they_are(axis: int) -> None:
    """Written out, what follows has to find them there: it takes a different share of each number."""
    weight = torch.randn(2, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def function(x: Tensor) -> Tensor:
        return torch.stack([x[0, 0], x[0, 0].flip(0)], axis).reshape(1, 12) @ weight.T

    truth = truth_of(function)
    by_rules, dense = bounds_of(function)
    assert truth <= by_rules
    assert truth * (1 - 1e-9) <= dense <= truth * (1 + 1e-6)


@pytest.mark.parametrize("divisor", [0.7, 5.3, 11.0, 49.0])
def test_reciprocals_of_float32_are_taken_in_float64(divisor: float) -> None:
    """In float32 some are rounded down, by up to 6e-8."""
    constant = torch.tensor(divisor)
    graph = export(lambda x: (x / constant).reshape(1, -1), image()[None].float())
    for limit in (0, 1024):
        bound = product._Bounds(graph, limit, 10).total()
        assert 1 / float(constant) <= bound <= (1 + 2e-7) / float(constant)


@pytest.mark.parametrize("slip", [1e-6, -1e-6])
def test_a_resize_that_is_off_in_one_direction_is_refused(slip: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Held against one matrix per axis, numbers that are all too large or all too small are noticed alike."""

    def resized(x: Tensor) -> Tensor:
        return functional.interpolate(x, size=(2, 2), mode="bilinear")

    assert all(bound > 0 for bound in bounds_of(resized))
    again = affine.again

    def off(node: Node, value: Tensor) -> Tensor:
        return again(node, value) + slip

    monkeypatch.setattr(affine, "again", off)
    with pytest.raises(UnprovenOperationError, match="one matrix per axis"):
        bounds_of(resized)
