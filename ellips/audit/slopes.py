"""A search for slopes steeper than a Lipschitz constant allows."""

from __future__ import annotations

import torch
from torch import Tensor

from ellips.lipschitz.jacobian import latent_dim, spectral_norms
from ellips.types import ImageMap


def steepest_slopes(
    function: ImageMap, images: Tensor, radius: Tensor, *, steps: int = 30, restarts: int = 2, seed: int = 0
) -> Tensor:
    """Search each ball for two points between which the function changes as fast as possible.

    Gradient ascent on the secant slope ‖f(a) − f(b)‖ / ‖a − b‖ over both ends. For a smooth function it climbs towards
    the largest Jacobian norm; unlike the Jacobian norm itself, it has a useful gradient where the function is
    piecewise linear. At the ends and in the middle the Jacobian's spectral norm is then taken too. Whatever is found is
    a lower bound of the Lipschitz constant on the ball, so anything above a claimed constant refutes the claim.

    Args:
        function: Maps images to vectors ``(N, d)``, each image by itself, differentiable; in the type of the images.
        images: Shape ``(N, C, H, W)``; float64 leaves the least doubt about what is found.
        radius: Shape ``(N,)``, finite and positive: radii of the balls.
        steps: Steps of each ascent.
        restarts: Ascents of each image, from random places.
        seed: Seed of the places.

    Returns:
        Shape ``(N,)``, float64: the steepest slope found.
    """
    generator = torch.Generator().manual_seed(seed)
    ball = radius.to(images).view(-1, *[1] * (images.ndim - 1))
    start = torch.randn((len(images), latent_dim(function, images)), generator=generator, dtype=torch.float64)
    local = spectral_norms(function, images, start.to(images), num_iterations=20)
    best = torch.zeros(len(images), dtype=torch.float64, device=images.device)
    for restart in range(restarts + 1):
        # The first ascent starts at the image, along the direction in which it is steepest there.
        centre = images if restart == 0 else _into(images + 0.7 * ball * _random(images, generator), images, ball)
        first, second = centre - 0.1 * ball * local.right, centre + 0.1 * ball * local.right
        for step in range(steps):
            first, second = _climb(function, images, ball, first, second, 0.2 * (1 - step / steps))
        best = torch.maximum(best, _secant(function, first, second).detach().double())
        for point in (first, second, (first + second) / 2):
            local = spectral_norms(function, point, local.left, num_iterations=20)
            best = torch.maximum(best, local.norm)
    return best


def slope_passes(steps: int, restarts: int) -> int:
    """Return about how many passes of a point :func:`steepest_slopes` takes, those of Jacobians' products aside."""
    return (restarts + 1) * (2 * steps + 5)


def _random(images: Tensor, generator: torch.Generator) -> Tensor:
    drawn = torch.randn(images.shape, generator=generator, dtype=torch.float64).to(images)
    return _unit(drawn)


def _unit(vectors: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(vectors.flatten(1), dim=1).clamp_min(torch.finfo(vectors.dtype).tiny)
    unit: Tensor = vectors / length.view(-1, *[1] * (vectors.ndim - 1))
    return unit


def _into(points: Tensor, images: Tensor, ball: Tensor) -> Tensor:
    """Bring points back into the balls around the images."""
    change = points - images
    length = torch.linalg.vector_norm(change.flatten(1), dim=1).view_as(ball)
    inside: Tensor = images + change * (ball / length.clamp_min(1e-300)).clamp_max(1.0)
    return inside


def _secant(function: ImageMap, first: Tensor, second: Tensor) -> Tensor:
    rise: Tensor = torch.linalg.vector_norm((function(first) - function(second)).flatten(1), dim=1)
    slope: Tensor = rise / torch.linalg.vector_norm((first - second).flatten(1), dim=1)
    return slope


def _climb(
    function: ImageMap, images: Tensor, ball: Tensor, first: Tensor, second: Tensor, length: float
) -> tuple[Tensor, Tensor]:
    """Move both ends uphill by a share of the ball's radius, within the ball and not onto each other."""
    with torch.enable_grad():
        ends = [end.detach().requires_grad_() for end in (first, second)]
        slope = _secant(function, *ends)
        gradients = torch.autograd.grad(slope.clamp_min(1e-30).log().sum(), ends)
    moved = [
        _into(end.detach() + length * ball * _unit(g), images, ball) for end, g in zip(ends, gradients, strict=True)
    ]
    # Rounding rules where the ends come close: keep a hundredth of the radius between them.
    near = torch.linalg.vector_norm((moved[0] - moved[1]).flatten(1), dim=1).view_as(ball) < 0.01 * ball
    return tuple(torch.where(near, end.detach(), new) for end, new in zip(ends, moved, strict=True))  # type: ignore[return-value]
