"""Class-conditional MMD against dense loops, finite differences and its own expectation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ellips.losses import ClassMMD


def kernel_mean(x: NDArray[np.float64], y: NDArray[np.float64], h: float) -> float:
    return float(np.mean([[np.exp(-np.sum((a - b) ** 2) / (2 * h * h)) for b in y] for a in x]))


def reference(
    z: NDArray[np.float64], labels: NDArray[np.int64], noise: NDArray[np.float64], h: float | None, std: float
) -> float:
    total = 0.0
    for k in np.unique(labels):
        rows = z[labels == k]
        drawn = rows.mean(0) + std * noise[labels == k]
        both = np.concatenate([rows, drawn])
        width = h
        if width is None:
            distances = sorted(np.sum((a - b) ** 2) for i, a in enumerate(both) for j, b in enumerate(both) if i != j)
            width = float(np.sqrt(distances[(len(distances) - 1) // 2]))
        total += kernel_mean(rows, rows, width) + kernel_mean(drawn, drawn, width) - 2 * kernel_mean(rows, drawn, width)
    return total


@pytest.mark.parametrize("bandwidth", [None, 0.7, 3.0])
@pytest.mark.parametrize("std", [1.0, 0.3])
def test_value_agrees_with_the_dense_loop(bandwidth: float | None, std: float) -> None:
    rng = np.random.default_rng(0)
    z, labels = rng.normal(size=(30, 4)), rng.integers(0, 4, 30)
    loss = ClassMMD(bandwidth, std=std, seed=5)
    latents, target = torch.from_numpy(z), torch.from_numpy(labels)
    expected = reference(z, labels, loss.noise(latents, target, 7).numpy(), bandwidth, std)
    assert float(loss(latents, target, step=7)) == pytest.approx(expected, rel=1e-9)
    # Spread over processes the rows come in another order.
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    assert float(loss(latents[order], target[order], step=7)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("kind", ["sampled", "expected"])
def test_gradient_agrees_with_finite_differences(kind: str) -> None:
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 2])
    z = torch.randn(7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    loss = ClassMMD(1.3, kind)  # type: ignore[arg-type]
    assert torch.autograd.gradcheck(lambda x: loss(x, labels), (z,))


def test_the_closed_form_is_the_expectation_of_the_samples() -> None:
    rng = np.random.default_rng(1)
    z = rng.normal(size=(6, 3)) * [1.0, 2.0, 0.5]
    mean, h, s = z.mean(0), 1.5, 0.8
    drawn, other = (mean + s * rng.normal(size=(200_000, 3)) for _ in range(2))
    cross = np.mean([np.exp(-((drawn - row) ** 2).sum(1) / (2 * h * h)).mean() for row in z])
    among = np.exp(-((drawn - other) ** 2).sum(1) / (2 * h * h)).mean()
    expected = kernel_mean(z, z, h) + among - 2 * cross
    value = ClassMMD(h, "expected", std=s)(torch.from_numpy(z), torch.zeros(6, dtype=torch.long))
    assert float(value) == pytest.approx(expected, abs=3e-3)


def test_gaussian_classes_cost_less_than_others() -> None:
    generator = torch.Generator().manual_seed(0)
    gaussian = torch.randn(400, 4, generator=generator)
    labels = torch.arange(400) % 2
    bimodal = gaussian.sign() * 3
    for kind in ("sampled", "expected"):
        loss = ClassMMD(reference=kind)  # type: ignore[arg-type]
        assert float(loss(gaussian, labels)) < 0.1 * float(loss(bimodal, labels))
        assert float(loss(gaussian, labels)) >= 0


def test_noise_depends_on_seed_and_step_alone() -> None:
    z, labels = torch.randn(20, 3), torch.arange(20) % 2
    torch.manual_seed(1)
    first = ClassMMD(seed=1)(z, labels, step=3)
    torch.manual_seed(2)
    assert torch.equal(ClassMMD(seed=1)(z, labels, step=3), first)
    assert not torch.equal(ClassMMD(seed=1)(z, labels, step=4), first)
    assert not torch.equal(ClassMMD(seed=2)(z, labels, step=3), first)


def test_survives_classes_of_one_or_of_equal_samples() -> None:
    z = torch.tensor([[1.0, 2.0], [3.0, 4.0], [3.0, 4.0]], requires_grad=True)
    for kind in ("sampled", "expected"):
        loss = ClassMMD(reference=kind)(z, torch.tensor([0, 1, 1]))  # type: ignore[arg-type]
        loss.backward()
        assert bool(torch.isfinite(loss))
    assert z.grad is not None
    assert bool(torch.isfinite(z.grad).all())


@pytest.mark.parametrize("options", [{"bandwidth": 0.0}, {"std": -1.0}, {"reference": "both"}])
def test_refuses_settings_out_of_range(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        ClassMMD(**options)  # type: ignore[arg-type]
