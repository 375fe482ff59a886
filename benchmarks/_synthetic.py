"""Mixtures in the plane, an attack on them and randomised smoothing of their classifier, for `benchmarks.synthetic`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ellips import Ellips

# [E26] does not say how the anisotropic classes are turned. Axes turned by 160° + 142°·k for class k reproduce the
# project's reference table to within its sampling error; aligned, radial and tangential axes do not.
AXES_OFFSET, AXES_STEP = 160.0, 142.0
VARIANCES = (1.5, 0.5)


class Setting(NamedTuple):
    """One mixture of the grid: K means on a circle."""

    classes: int
    distance: float
    kind: str  # "isotropic" or "anisotropic"

    @property
    def name(self) -> str:
        """Name for files and tables."""
        return f"{self.kind}_K{self.classes}_dist{self.distance:g}"


def circle_mixture(setting: Setting) -> Ellips:
    """Return the mixture of [E26] App. H.2: mean k at the angle 2πk/K, equal priors."""
    index = torch.arange(setting.classes, dtype=torch.float64)
    angles = 2 * math.pi * index / setting.classes
    means = setting.distance * torch.stack([angles.cos(), angles.sin()], 1)
    covariances = torch.eye(2, dtype=torch.float64).expand(setting.classes, 2, 2)
    if setting.kind == "anisotropic":
        turn = torch.deg2rad(AXES_OFFSET + AXES_STEP * index)
        axes = torch.stack([torch.stack([turn.cos(), -turn.sin()], -1), torch.stack([turn.sin(), turn.cos()], -1)], -2)
        covariances = axes @ torch.diag(torch.tensor(VARIANCES, dtype=torch.float64)) @ axes.mT
    return Ellips.from_parameters(means, covariances, torch.full((setting.classes,), 1 / setting.classes))


def pgd_breaks(
    ellips: Ellips,
    z: Tensor,
    labels: Tensor,
    radii: Sequence[float],
    *,
    steps: int = 25,
    starts: int = 2,
    seed: int = 0,
) -> Tensor:
    """Attack every point at every radius by projected gradient descent; return where it first succeeds.

    One attack per rival descends that rival's margin, a quadratic whose gradient 2(Wδ + b) needs no automatic
    differentiation, from the point itself and from random starts on the sphere. The attack sees scores only, never a
    certificate. What breaks at one radius stays broken at the larger ones.

    Args:
        ellips: The classifier.
        z: Shape ``(N, d)``.
        labels: True classes, shape ``(N,)``.
        radii: Ascending radii.
        steps: Gradient steps of each start.
        starts: The point itself and ``starts − 1`` random ones.
        seed: Seed of the random starts.

    Returns:
        Shape ``(N,)``: index of the first radius at which the point is wrong; ``len(radii)`` if at none.
    """
    generator = torch.Generator().manual_seed(seed)
    scores = ellips(z)
    broken = torch.where(scores.argmax(1) == labels, len(radii), 0)
    rivals = torch.arange(ellips.num_classes).expand(len(z), -1)
    rivals = rivals[rivals != labels[:, None]].view(len(z), -1)
    margin = scores.gather(1, labels[:, None]) - scores.gather(1, rivals)
    pull = torch.einsum("kij,nkj->nki", ellips.precisions, z[:, None] - ellips.means)
    own = labels[:, None]
    b = torch.take_along_dim(pull, rivals[..., None], 1) - torch.take_along_dim(pull, own[..., None], 1)
    w = ellips.precisions[rivals] - ellips.precisions[own]
    for place, radius in enumerate(radii):
        alive = (broken > place).nonzero().squeeze(1)
        if radius == 0 or not len(alive):
            continue
        for start in range(starts):
            won = _descend(w[alive], b[alive], margin[alive], radius, steps, generator if start else None)
            broken[alive[won]] = place
            alive = alive[~won]
    return broken


def _descend(
    w: Tensor, b: Tensor, margin: Tensor, radius: float, steps: int, generator: torch.Generator | None
) -> Tensor:
    """Whether some step of a descent on some rival's margin inside the ball makes it negative, shape ``(N,)``."""
    delta = torch.zeros_like(b)
    if generator is not None:
        delta = radius * torch.nn.functional.normalize(torch.randn(b.shape, generator=generator, dtype=b.dtype), dim=-1)
    won = torch.zeros(len(b), dtype=torch.bool)
    size = 2.5 * radius / math.sqrt(steps)
    for step in range(steps):
        gradient = (w @ delta.unsqueeze(-1)).squeeze(-1) + b
        delta = delta - size / math.sqrt(step + 1) * torch.nn.functional.normalize(gradient, dim=-1)
        delta = delta * (radius / delta.norm(dim=-1, keepdim=True).clamp(min=radius))
        value = ((w @ delta.unsqueeze(-1)).squeeze(-1) * delta).sum(-1) + 2 * (b * delta).sum(-1) + margin
        won |= (value < 0).any(1)
    return won


def smoothed_certificates(
    ellips: Ellips, z: Tensor, sigma: float, samples: int, *, alpha: float = 0.001, selection: int = 100, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Certify by randomised smoothing (Cohen et al. 2019) with the Adversarial Robustness Toolbox.

    The toolbox's PyTorch front end puts every noisy copy through a data loader, item by item: 0.8 s a point with 1e5
    copies. Its mixin, which holds the procedure, is used with a prediction of our own instead, in a twentieth of that.

    Args:
        ellips: The base classifier.
        z: Shape ``(N, d)``.
        sigma: Standard deviation of the noise.
        samples: Noisy copies per point for the bound.
        alpha: Probability of a wrong certificate, per point.
        selection: Noisy copies per point for choosing the class.
        seed: Seed of NumPy's global generator, which the toolbox draws from.

    Returns:
        Predictions (−1: abstained) and radii, shape ``(N,)``.
    """
    from art.estimators.certification.randomized_smoothing.randomized_smoothing import RandomizedSmoothingMixin

    class Smoothed(RandomizedSmoothingMixin):  # type: ignore[misc]  # the toolbox ships no types
        def _predict_classifier(self, x: Any, batch_size: int, training_mode: bool, **kwargs: Any) -> Any:  # noqa: ANN401
            return ellips(torch.from_numpy(x)).numpy()

    np.random.seed(seed)  # noqa: NPY002 - the toolbox draws from NumPy's global generator
    smoothed = Smoothed(sample_size=selection, scale=sigma, alpha=alpha)
    prediction, radius = smoothed.certify(z.float().numpy(), n=samples)
    return torch.from_numpy(prediction), torch.from_numpy(radius).double().clamp(min=0)
