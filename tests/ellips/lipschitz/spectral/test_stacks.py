"""Stacks of matrices: what the two rules cover, and what only looks like it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ellips.lipschitz import UnprovenOperationError
from ellips.lipschitz.capture.export import export
from ellips.lipschitz.spectral import product

Function = Callable[[Tensor], Tensor]
SHAPE = (3, 2, 4)  # three blocks of eight numbers


def rows(x: Tensor) -> Tensor:
    """``(N, 3, 2, 4)`` to ``(3, N, 8)``."""
    return x.transpose(0, 1).flatten(2)


def stack(columns: int, *lengths: float, seed: int = 0) -> Tensor:
    """Three matrices of eight rows, with orthonormal columns of different lengths (rows, where there are more)."""
    generator = torch.Generator().manual_seed(seed)
    matrices = torch.randn(3, max(8, columns), min(8, columns), dtype=torch.float64, generator=generator)
    matrices = torch.linalg.qr(matrices)[0] * torch.tensor(lengths, dtype=torch.float64)[:, None, None]
    return matrices if columns <= 8 else matrices.mT


def reflected(x: Tensor, a: Tensor, beta: float = 1.0, alpha: float = -1.0) -> Tensor:
    given = rows(x)
    return torch.baddbmm(given, torch.bmm(given, a), a.mT, beta=beta, alpha=alpha).transpose(0, 1)


def image() -> Tensor:
    return torch.rand(*SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def truth_of(function: Function) -> float:
    """The largest slope at one image, by differences."""
    moved = image() + 1e-6 * torch.eye(24, dtype=torch.float64).view(-1, *SHAPE)
    away = (function(moved) - function(image()[None])).flatten(1) / 1e-6
    return float(torch.linalg.matrix_norm(away, ord=2))


def bounds_of(function: Function) -> tuple[float, float]:
    """By rules alone, and with what is affine written out."""
    graph = export(lambda x: function(x).reshape(1, -1), image()[None])  # without its comparison with the function
    by_rules, dense = (product._Bounds(graph, limit, 10).total() for limit in (0, 1024))
    return by_rules, dense


def multiplied(x: Tensor, a: Tensor) -> Tensor:
    return torch.bmm(rows(x), a).transpose(0, 1)


ROOT = 2**0.5
REFLECTION, STRETCH = (3, ROOT, ROOT, ROOT), (3, 1.0, 2.0, 1.0)
PROVEN: dict[str, tuple[tuple[float, ...], Callable[[Tensor, Tensor], Tensor]]] = {
    "each block by its own matrix": ((5, 1.0, 3.0, 0.5), multiplied),
    "the last block is the steepest": ((8, 1.0, -3.0, 4.0), multiplied),
    "wider": ((11, 2.0, 1.0, 0.0), multiplied),
    "reflections": (REFLECTION, reflected),
    "reflections of one direction": ((1, ROOT, ROOT, ROOT), reflected),
    "longer than a reflection": ((3, 1.0, 1.7, 1.0), reflected),
    "shorter than a reflection": ((3, 0.3, 1.0, 0.7), reflected),
    "projections": ((3, 1.0, 1.0, 1.0), reflected),
    "stretched": (STRETCH, lambda x, a: reflected(x, a, alpha=1.0)),
    "stretched the other way": (STRETCH, lambda x, a: reflected(x, a, beta=-1.0)),
    "factors": (STRETCH, lambda x, a: reflected(x, a, beta=0.25, alpha=-0.5)),
    "a large share that stays": (STRETCH, lambda x, a: reflected(x, a, beta=6.0, alpha=-0.5)),
    "nothing stays": (STRETCH, lambda x, a: reflected(x, a, beta=0.0, alpha=3.0)),
    "wider, stretched": ((11, 1.0, 2.0, 1.0), lambda x, a: reflected(x, a, alpha=2.0)),
    "behind and before others": (REFLECTION, lambda x, a: 3 * reflected(x.flip(3) - 0.5, a).roll(1, 2)),
}


@pytest.mark.parametrize("name", PROVEN)
def test_stacks_are_bounded_by_what_their_steepest_block_does(name: str) -> None:
    (columns, *lengths), function = PROVEN[name]
    matrices = stack(int(columns), *lengths)
    truth = truth_of(lambda x: function(x, matrices))
    for bound in bounds_of(lambda x: function(x, matrices)):
        assert truth * (1 - 1e-7) <= bound <= truth * (1 + 1e-6)


def test_two_numbers_that_cancel_leave_what_stays() -> None:
    """Square matrices leave nothing of what stays: an upper bound all the same."""
    matrices = stack(8, 1.2, 1.2, 1.0)
    by_rules, _ = bounds_of(lambda x: reflected(x, matrices))
    assert 0.44 <= by_rules <= 1 + 1e-6


@pytest.mark.parametrize("beta", [1.0, -0.3, 3.0])
@pytest.mark.parametrize("length", [1.0, 1.3, ROOT])
def test_what_stays_is_not_bounded_by_less(beta: float, length: float) -> None:
    """Beside few columns something stays just as it is: ``beta x``, whose slope no rounding may take anything from."""
    for columns in (1, 3):
        matrices = stack(columns, length, length, length)
        for bound in bounds_of(lambda x, given=matrices: reflected(x, given, beta=beta, alpha=-beta)):
            assert abs(beta) <= bound <= abs(beta) * (1 + 1e-6)


@pytest.mark.parametrize("function", [multiplied, reflected])
def test_matrices_in_float32_are_taken_in_float64(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Its products are those of the numbers themselves: float32 would lose a part in a million."""
    matrices = stack(3, ROOT, ROOT, ROOT).float()
    graph = export(lambda x: function(x, matrices).reshape(1, -1), image()[None].float())
    truth = truth_of(lambda x: function(x, matrices.double()))
    for limit in (0, 1024):
        assert truth * (1 - 1e-7) <= product._Bounds(graph, limit, 10).total() <= truth * (1 + 1e-6)


A, OTHER = stack(3, ROOT, ROOT, ROOT), stack(3, ROOT, ROOT, ROOT, seed=1)
NEARLY, NEGATIVE = A.clone(), -A
NEARLY[1, 2, 0] += 0.7


TURNED, TINY, HUGE, LOST, ONES = A.mT.contiguous(), 1e-160 * A, 1e160 * A, A * torch.nan, torch.ones(3, 1, 8).double()


def between(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    given = rows(x)
    return torch.baddbmm(given, torch.bmm(given, first), second.mT, alpha=-1).transpose(0, 1)


def of_another(x: Tensor, change: Function) -> Tensor:
    given = rows(x)
    return torch.baddbmm(given, torch.bmm(change(given), A), A.mT, alpha=-1).transpose(0, 1)


def changed_on_the_way(x: Tensor, change: Function) -> Tensor:
    given = rows(x)
    return torch.baddbmm(given, change(torch.bmm(given, A)), A.mT, alpha=-1).transpose(0, 1)


LOOKS_LIKE: dict[str, Function] = {
    "another matrix on the way back": lambda x: between(x, A, OTHER),
    "one number moved": lambda x: between(x, A, NEARLY),
    "the other sign": lambda x: between(x, A, NEGATIVE),
    "another order of blocks": lambda x: between(x, A, A.roll(1, 0)),
    "another order of columns": lambda x: between(x, A, A.roll(1, 2)),
    "what is reflected is turned around": lambda x: of_another(x, lambda y: y.flip(2)),
    "what is reflected is steeper": lambda x: of_another(x, lambda y: 2 * y),
    "what is reflected is negative": lambda x: of_another(x, torch.neg),
    "what is reflected is its absolute value": lambda x: of_another(x - 2, torch.abs),
    "what is reflected is of another block": lambda x: of_another(x, lambda y: y.roll(1, 0)),
    "turned around on the way": lambda x: changed_on_the_way(x, torch.neg),
    "blocks exchanged on the way": lambda x: changed_on_the_way(x, lambda y: y.roll(1, 0)),
    "bent on the way": lambda x: changed_on_the_way(x, lambda y: -y.abs() - y),
}


@pytest.mark.parametrize("name", LOOKS_LIKE)
def test_what_only_looks_like_a_reflection_is_refused(name: str) -> None:
    """Each is steeper than 1, so that a rule that took it for a reflection would be unsound."""
    assert truth_of(LOOKS_LIKE[name]) > 1.05
    with pytest.raises(UnprovenOperationError, match=r"baddbmm.*(one x|transpose)"):
        bounds_of(LOOKS_LIKE[name])


REFUSED: dict[str, tuple[Function, str]] = {
    "matrices from the left": (lambda x: torch.bmm(TURNED, rows(x).mT), "from the right"),
    "of the image with itself": (lambda x: torch.bmm(rows(x), rows(x).mT), "from the right"),
    "a constant that stays": (lambda x: torch.baddbmm(ONES, torch.bmm(rows(x), A), A.mT), "one x"),
    "a constant that is reflected": (lambda x: torch.baddbmm(rows(x), torch.bmm(ONES, A), A.mT), "one x"),
    "matrices of the image": (lambda x: between(x, A, 0 * rows(x).mT + A), "transpose"),
    "not numbers": (lambda x: torch.bmm(rows(x), LOST), "finite"),
    "numbers whose products vanish": (lambda x: reflected(x, TINY), "range of numbers"),
    "numbers whose products are infinite": (lambda x: reflected(x, HUGE), "finite"),
    "a factor that is infinite": (lambda x: reflected(x, A, alpha=torch.inf), "finite"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_stacks_are_not_proven_for_is_refused(name: str) -> None:
    function, message = REFUSED[name]
    with pytest.raises(UnprovenOperationError, match=message):
        bounds_of(function)
