"""The quadratic programs behind exact radii, where they end at an edge: flat, level, out of range, none or many."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ellips.certificates.secular import Problems, SecularSolution, solve_secular


def problem(margin: float, coefficients: list[float], eigenvalues: list[float]) -> Problems:
    """One of them, from m, β² and λ."""
    values = torch.tensor([eigenvalues], dtype=torch.float64)
    concavity = (-values.amin(1)).clamp(min=0)
    beta = torch.tensor([coefficients], dtype=torch.float64)
    return Problems(torch.tensor([margin], dtype=torch.float64), beta, values + concavity[:, None], concavity)


def solve(*found: Problems) -> SecularSolution:
    return solve_secular(Problems(*(torch.cat(columns) for columns in zip(*found, strict=True))))


@pytest.mark.parametrize("margin", [0.25, 0.5, 3.0])
@pytest.mark.parametrize("concavity", [0.125, 0.5, 3.0])
def test_where_the_gradient_is_0_the_steepest_bend_decides(margin: float, concavity: float) -> None:
    multiplier, dual = solve(problem(margin, [0.0, 0.0], [-concavity, 1.0]))
    assert dual.item() == pytest.approx(margin / concavity, rel=1e-12)
    assert dual.item() <= margin / concavity
    assert multiplier.item() == pytest.approx(1 / concavity, rel=1e-12)


@pytest.mark.parametrize("margin", [0.0, -0.25, -3.0])
@pytest.mark.parametrize("coefficients", [[0.0, 0.0], [1.0, 0.0], [0.25, 4.0]])
@pytest.mark.parametrize("eigenvalues", [[-0.5, 1.0], [0.0, 0.0], [0.0, 2.0], [1.0, 2.0]])
def test_without_a_margin_there_is_no_radius(
    margin: float, coefficients: list[float], eigenvalues: list[float]
) -> None:
    assert solve(problem(margin, coefficients, eigenvalues)).dual.item() == 0


def test_a_gradient_of_one_is_not_taken_for_none() -> None:
    """In its last bits either: m − 2‖δ‖ − ‖δ‖² = 0 at ‖δ‖ = √2 − 1, where a bend alone would reach to 1."""
    near = 1 + 2.0**-52 * torch.arange(-256, 257, dtype=torch.float64)
    found = solve(*(problem(1.0, [0.0, value], [-1.0, -1.0]) for value in near.tolist()))
    radii = found.dual.sqrt()
    assert ((radii - (2**0.5 - 1)).abs() < 1e-9).all()


def test_a_boundary_that_is_just_reached_is_no_less_than_reached() -> None:
    """m + 2√β²x + λx² with m = β²/λ touches 0 at x = −β/λ, so the radius is 1/2 there and above it infinite."""
    touching = solve(problem(0.5, [1.0], [2.0]))
    assert touching.dual.item() == pytest.approx(0.25, rel=1e-6)
    assert touching.dual.item() <= 0.25
    above = solve(problem(0.5 + 1e-9, [1.0], [2.0]), problem(5.0, [1.0], [2.0]))
    assert above.dual.isinf().all()
    assert above.multiplier.isinf().all()
    level = solve(problem(1.0, [0.0, 1.0], [0.0, 2.0]), problem(1.0, [1e-9, 1.0], [0.0, 2.0]))
    assert level.dual.isinf().tolist() == [True, False]  # along λ = 0 < β it falls without end
    assert 0 < level.dual[1] < 1e20


@pytest.mark.parametrize("eigenvalues", [[0.0, 0.0], [0.0, 1.0], [-1e-308, 0.0]])
def test_what_float64_cannot_hold_is_no_radius(eigenvalues: list[float]) -> None:
    multiplier, dual = solve(problem(1e200, [1e-300, 0.0], eigenvalues))
    assert dual.item() == 0
    assert multiplier.item() == 0


def test_none_and_more_than_a_batch_are_solved_like_one() -> None:
    dim = 2**16  # two problems at a time
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(5, dim, generator=generator, dtype=torch.float64)
    concavity = (-values.amin(1)).clamp(min=0)
    beta = torch.randn(5, dim, generator=generator, dtype=torch.float64).square() / dim
    margin = torch.tensor([1.0, 0.0, 2.0, 0.5, 3.0], dtype=torch.float64)
    problems = Problems(margin, beta, values + concavity[:, None], concavity)
    many = solve_secular(problems)
    single = [solve_secular(problems.take(slice(i, i + 1))) for i in range(5)]
    assert torch.allclose(many.dual, torch.cat([one.dual for one in single]), rtol=1e-9, atol=0)
    assert (many.dual > 0).tolist() == (margin > 0).tolist()
    nothing = solve_secular(problems.take(slice(0, 0)))
    assert [part.shape for part in nothing] == [(0,), (0,)]


def test_newton_ends_at_the_root_from_wherever_it_starts() -> None:
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    values = draw(200, 6) * 10 ** draw(200, 1)
    concavity = (-values.amin(1)).clamp(min=0)
    problems = Problems(10 ** draw(200), (10 ** draw(200, 6)), values + concavity[:, None], concavity)
    multiplier, dual = solve_secular(problems)
    held = multiplier.isfinite()
    assert held.double().mean() > 0.5
    t = multiplier[held]
    u = t / (1 - t * concavity[held])
    value, slope, _ = problems.take(held).rounded().evaluate(u)
    assert ((value / slope).abs() <= 1e-6 * u).all()
    for factor in (0.5, 0.9, 1.1, 2.0):
        assert (problems.take(held).rounded().evaluate(factor * u)[2] <= dual[held]).all()
