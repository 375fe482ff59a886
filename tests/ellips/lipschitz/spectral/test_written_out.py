"""Affine pieces that are written out as matrices: each column is held against the function."""

from __future__ import annotations

import operator
import random
from collections.abc import Callable
from fractions import Fraction
from functools import reduce
from typing import Any

import pytest
import torch
from torch import Tensor

from ellips.lipschitz import UnprovenOperationError
from ellips.lipschitz.capture.export import export
from ellips.lipschitz.spectral import product


@pytest.mark.parametrize("column", [0, 1, 23, 47])
def test_a_single_column_that_autograd_gets_wrong_is_refused(column: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By one part in a million, in all outputs that depend on it."""
    truly = product._Bounds._transposed
    slips = torch.ones(48, dtype=torch.float64)
    slips[column] -= 1e-6

    def transposed(*given: Any) -> Callable[[Tensor], Tensor]:
        pull_back = truly(*given)
        return lambda vector: (pull_back(vector).flatten() * slips).view(1, 2, 4, 6)

    weight = torch.randn(24, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    graph = export(lambda x: x.flatten(1) @ weight.mT, torch.rand(1, 2, 4, 6, dtype=torch.float64))
    assert product._Bounds(graph, 1024, 10).total() > 1
    monkeypatch.setattr(product._Bounds, "_transposed", transposed)
    with pytest.raises(UnprovenOperationError, match="autograd"):
        product._Bounds(graph, 1024, 10).total()


def test_operations_within_a_piece_are_counted_where_products_cancel() -> None:
    """A piece times 400 numbers that are each rounded down, less the exact product: as much as float64 has lost."""
    draw = random.Random(0)
    value, exact, factors = 1.0, Fraction(1), list[float]()
    for _ in range(400):
        tried = [1 + draw.random() * 2.0**-20 for _ in range(64)]
        factor = max(tried, key=lambda by: Fraction(value) * Fraction(by) - Fraction(value * by))
        value, exact, factors = value * factor, exact * Fraction(factor), [*factors, factor]
    lost = float(abs(exact - Fraction(value)))
    assert lost > 380 * 2.0**-53

    def function(x: Tensor) -> Tensor:
        left, right = x.split(1, 1)
        product_of_all = reduce(operator.mul, factors, left)
        return torch.cat([product_of_all, right * 0], 1) - x * value

    graph = export(lambda x: function(x).flatten(1), torch.rand(1, 2, 1, 1, dtype=torch.float64))
    bounds = product._Bounds(graph, 1024, 10)
    inside = bounds._between(graph.source, graph.result)
    assert lost <= bounds._rounding(graph.source, graph.result, inside) < 1e-10
