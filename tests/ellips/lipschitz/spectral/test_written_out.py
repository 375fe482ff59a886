"""Affine pieces that are written out as matrices: each column is held against the function."""

from __future__ import annotations

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

    def transposed(*given: Any) -> Any:
        pull_back = truly(*given)
        return lambda vector: (pull_back(vector).flatten() * slips).view(1, 2, 4, 6)

    weight = torch.randn(24, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    graph = export(lambda x: x.flatten(1) @ weight.mT, torch.rand(1, 2, 4, 6, dtype=torch.float64))
    assert product._Bounds(graph, 1024, 10).total() > 1
    monkeypatch.setattr(product._Bounds, "_transposed", transposed)
    with pytest.raises(UnprovenOperationError, match="autograd"):
        product._Bounds(graph, 1024, 10).total()
