from __future__ import annotations

import pytest
import torch
from mpmath import mpf
from torch import Tensor

from ellips import Ellips
from ellips.certificates.bounds import FarRivals
from ellips.certificates.verify import Kernel
from tests.soundness.generators import Draw, make_case
from tests.soundness.oracle import Balls, true_distance

ALL = torch.float64


def _last_radii(ellips: Ellips, z: Tensor, prediction: Tensor, guess: Tensor) -> Tensor:
    """By bisection, the largest radius at which each rival is proven to be far, shape ``(N, K)``."""
    kernel = Kernel(ellips)
    far = FarRivals(kernel, guess)
    y, scores, errors = kernel.whiten(z)
    margins, _ = kernel.margins(scores, errors, prediction)
    low, high = torch.full_like(margins, -400.0), torch.full_like(margins, 400.0)
    for _ in range(64):
        middle = (low + high) / 2
        answer = torch.stack(
            [far.prove(z, y, prediction, margins, 2 ** middle[:, k])[:, k] for k in range(ellips.num_classes)], dim=1
        )
        low, high = torch.where(answer, middle, low), torch.where(answer, high, middle)
    return torch.where(low > -399, 2**low, 0.0)


@pytest.mark.parametrize(
    "name", ["usual", "conditioned", "low_dimension", "tangencies", "flat", "unreached", "far_points"]
)
@pytest.mark.parametrize("factor", [1.0, 0.5, 0.0, float("nan")])
def test_the_last_radius_at_which_a_rival_counts_as_far_is_below_its_distance(name: str, factor: float) -> None:
    """Whatever is guessed for λ_max: a wrong guess must be found out."""
    compared = 0
    for seed in range(40):
        ellips, z = make_case(name, 6000 + seed, 2)
        if ellips.dim > 5:
            continue
        prediction = ellips.predict(z)
        guess = factor * torch.linalg.eigvalsh(ellips.precisions)[:, -1]
        last = _last_radii(ellips, z, prediction, guess)
        for i in range(2):
            for k in range(min(3, ellips.num_classes)):
                if k != int(prediction[i]) and last[i, k] > 0:
                    assert mpf(float(last[i, k])) < true_distance(ellips, z[i], int(prediction[i]), k)
                    compared += 1
    assert compared > 3


def test_gradients_that_cancel_are_bounded_from_above() -> None:
    """Shared covariances of high condition: m / 2‖b‖ is the distance, and P(z−μ) all but cancels in b."""
    compared = 0
    for seed in range(60):
        draw = Draw(seed)
        dim = draw.integer(2, 5)
        ellips = Ellips(2, dim)
        factor = torch.eye(dim, dtype=ALL) + draw.normal(dim, dim).tril()
        factor[-1] *= 2.0 ** draw.integer(0, 24)
        ellips.precision_factors.copy_(factor.expand(2, dim, dim))
        flattest = torch.linalg.eigh(factor.T @ factor)[1][:, 0]
        ellips.means.copy_(torch.stack([flattest * 0, flattest]))
        ellips.log_priors.copy_(torch.tensor([-0.1, -3.0]))
        ellips.fitted.fill_(True)
        z = flattest * draw.normal(4, 1) + 1e-9 * draw.normal(4, dim)
        prediction = ellips.predict(z)
        last = _last_radii(ellips, z, prediction, torch.ones(2, dtype=ALL))
        for i in range(4):
            k = 1 - int(prediction[i])
            if last[i, k] > 0:
                assert mpf(float(last[i, k])) < true_distance(ellips, z[i], 1 - k, k)
                compared += 1
    assert compared > 50


@pytest.mark.parametrize("name", ["usual", "conditioned", "low_dimension", "near_ties", "far_points", "flat"])
def test_margins_are_between_their_bounds(name: str) -> None:
    for seed in range(15):
        ellips, z = make_case(name, 7000 + seed, 2)
        kernel, balls = Kernel(ellips), Balls(ellips, 300)
        _, scores, errors = kernel.whiten(z)
        prediction = ellips.predict(z)
        low, high = kernel.margins(scores, errors, prediction)
        for i in range(2):
            exact = [balls.matrix(z[i], k)[2] for k in range(min(4, ellips.num_classes))]
            own = balls.matrix(z[i], int(prediction[i]))[2]
            for k, score in enumerate(exact):
                if k != int(prediction[i]):
                    assert own - score > float(low[i, k])
                    assert own - score < float(high[i, k])
