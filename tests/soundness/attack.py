"""A search for the steepest secant of a function: what a claimed Lipschitz constant has to survive."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

Function = Callable[[Tensor], Tensor]


def steepest(function: Function, shape: tuple[int, ...], spots: Tensor, steps: int = 60) -> float:
    """Return the largest ratio of distances found, in float64 where the function takes it, less what it may round."""
    precise = in_double(function, shape)
    dtype = torch.float32 if precise is None else torch.float64
    tried = function if precise is None else precise
    return max(secant for secant in _secants(tried, shape, spots.to(dtype), dtype, steps))


def in_double(function: Function, shape: tuple[int, ...]) -> Function | None:
    """Return the function for float64 images, None if it does not take them."""
    try:
        precise = copy.deepcopy(function).double() if isinstance(function, nn.Module) else function
        with torch.no_grad():
            fits = precise(torch.rand(1, *shape, dtype=torch.float64)).dtype == torch.float64
    except Exception:
        return None
    return precise if fits else None


def _secants(
    function: Function, shape: tuple[int, ...], spots: Tensor, dtype: torch.dtype, steps: int
) -> Iterator[float]:
    generator = torch.Generator().manual_seed(0)

    def random(scale: float) -> Tensor:
        return scale * torch.randn(8, *shape, generator=generator, dtype=torch.float64).to(dtype)

    uniform = torch.rand(8, *shape, generator=generator, dtype=torch.float64).to(dtype)
    level = torch.linspace(0.45, 0.57, 8, dtype=dtype).view(8, 1, 1, 1).expand(8, *shape)
    starts = [uniform, uniform.round(), level, random(3.0), random(30.0), 0.5 + random(1e-3), *spots.split(1)]
    yield 0.0
    for start, scale in itertools.product(starts, (1e-3, 1e-2, 1e-1, 1.0, 10.0)):
        yield _ratio(function, start, start + random(scale)[: len(start)])
        ones = torch.ones_like(start)
        yield _ratio(function, start, start + scale * ones / ones[0].norm())
        yield _ratio(function, start, start + scale * _axis(start))
    for start in starts[:4]:
        yield from _ascent(function, start, steps)


def _axis(start: Tensor) -> Tensor:
    unit = torch.zeros_like(start)
    unit.view(len(start), -1)[:, 0] = 1
    return unit


@torch.no_grad()
def _ratio(function: Function, left: Tensor, right: Tensor) -> float:
    """Return the steepest of several secants, each pair by itself."""
    best = 0.0
    for a, b in zip(left.split(1), right.split(1), strict=True):
        first, second = function(a.clone()).double(), function(b.clone()).double()
        distance = float((a.double() - b.double()).norm())
        rounding = 64 * torch.finfo(a.dtype).eps * float(first.norm() + second.norm())
        rise = float((first - second).norm()) - rounding
        if distance and rise == rise:
            best = max(best, rise / distance)
    return best


def _ascent(function: Function, start: Tensor, steps: int) -> Iterator[float]:
    """Climb on secants by their gradients, where there are any."""
    left = start.clone().requires_grad_()
    right = (start + 0.05 * torch.rand(start.shape, dtype=start.dtype)).requires_grad_()
    optimizer = torch.optim.Adam([left, right], lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        try:
            rise = (function(left * 1.0) - function(right * 1.0)).norm(dim=1)
            slope = rise / (left - right).flatten(1).norm(dim=1).clamp_min(1e-3)
            (-slope.log().sum()).backward()
        except Exception:
            return
        if any(x.grad is None or not bool(x.grad.isfinite().all()) for x in (left, right)):
            return
        optimizer.step()
    yield _ratio(function, left.detach(), right.detach())
