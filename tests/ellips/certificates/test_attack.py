"""Every claim is attacked: beyond the radius the prediction changes, within it nothing changes it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ellips import Ellips
from ellips.certificates import worst_case_perturbation
from tests.ellips.mixtures import KINDS, random_mixture, random_points

MOVES = 10_000
STEPS = 20


def _random_moves(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(shape, generator=generator, dtype=torch.float64), dim=-1)


def _gradient_moves(ellips: Ellips, z: Tensor, certificate_class: Tensor, radius: Tensor, unit: Tensor) -> Tensor:
    """Projected gradient descent on the smallest margin, on the sphere of the radius, from random starts."""
    for _ in range(STEPS):
        unit = unit.detach().requires_grad_()
        scores = ellips(z + unit * radius)
        own = scores.gather(1, certificate_class)
        rival = scores.scatter(1, certificate_class, -torch.inf).amax(1, keepdim=True)
        (gradient,) = torch.autograd.grad((own - rival).sum(), unit)
        step = torch.nn.functional.normalize(gradient, dim=1)
        unit = torch.nn.functional.normalize(unit.detach() - 0.3 * step, dim=1)
    return unit


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [2, 16])
def test_radii_are_attained_and_never_exceeded(kind: str, dim: int) -> None:
    ellips = random_mixture(kind, 5, dim, seed=11 + dim, spread=0.8)
    z = random_points(ellips, 12, dim)
    certificate = ellips.certify(z)
    moving = (certificate.radius.isfinite() & (certificate.radius > 1e-6)).nonzero().squeeze(1)[:4]
    assert len(moving) == 4
    delta = worst_case_perturbation(ellips, z, certificate)
    generator = torch.Generator().manual_seed(0)
    for row in moving.tolist():
        radius, prediction = certificate.radius[row], certificate.prediction[row]
        worst = delta[row] / delta[row].norm()
        assert ellips.predict((z[row] + worst * radius * (1 + 1e-6)).unsqueeze(0)) != prediction
        within = radius * (1 - 1e-6)
        random = _random_moves((MOVES, dim), generator)
        assert (ellips.predict(z[row] + random * within) == prediction).all()
        starts = torch.cat([random[:240], worst + 0.1 * random[240:500]])
        starts = torch.nn.functional.normalize(starts, dim=1)
        chosen = _gradient_moves(ellips, z[row], prediction.expand(len(starts), 1), within, starts)
        assert (ellips.predict(z[row] + chosen * within) == prediction).all()
        # The attack is a strong one: just outside the radius it does find a way.
        outside = radius * (1 + 1e-3)
        chosen = _gradient_moves(ellips, z[row], prediction.expand(len(starts), 1), outside, starts)
        assert (ellips.predict(z[row] + chosen * outside) != prediction).any()
