"""Isotropy against a loop over classes and finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ellips.losses import Isotropy, isotropy


@pytest.mark.parametrize(("n", "d", "k"), [(1, 3, 2), (80, 5, 4), (40, 30, 4), (60, 6, 30)])
def test_value_agrees_with_the_dense_loop(n: int, d: int, k: int) -> None:
    rng = np.random.default_rng(n * d)
    z, labels = rng.normal(size=(n, d)), rng.integers(0, k, n)
    expected = 0.0
    for label in np.unique(labels):
        cov = np.cov(z[labels == label].T, bias=True).reshape(d, d)
        expected += np.linalg.norm(cov - np.trace(cov) / d * np.eye(d)) ** 2
    value = isotropy(torch.from_numpy(z), torch.from_numpy(labels))
    assert float(value) == pytest.approx(expected, rel=1e-10, abs=1e-14)


def test_gradient_agrees_with_finite_differences() -> None:
    labels = torch.tensor([0, 0, 0, 0, 0, 1, 1, 3, 3, 3, 3, 3])
    for d in (3, 8):
        z = torch.randn(12, d, generator=torch.Generator().manual_seed(d), dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda x: Isotropy()(x, labels), (z,))


def test_isotropic_classes_cost_nothing() -> None:
    corners = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
    z = torch.cat([corners, 3 * corners + 7])
    assert float(isotropy(z, torch.arange(8) // 4)) == pytest.approx(0.0, abs=1e-10)


def test_runs_in_float32_under_autocast() -> None:
    z, labels = torch.randn(64, 16), torch.arange(64) % 4
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = Isotropy()(z, labels)
    assert torch.equal(inside, Isotropy()(z, labels))
