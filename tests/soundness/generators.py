"""Mixtures and latents that are hard on certificates; every one from a seed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ellips import Ellips
from tests.ellips.mixtures import KINDS, random_mixture, random_points


class Draw:
    """Random numbers by name."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._generator, dtype=torch.float64)

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand(1, generator=self._generator, dtype=torch.float64))

    def integer(self, low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=self._generator))

    def rotations(self, count: int, dim: int) -> Tensor:
        return torch.linalg.qr(self.normal(count, dim, dim))[0]

    def priors(self, classes: int) -> Tensor:
        return (0.3 * self.normal(classes)).softmax(0)

    def spectra(self, count: int, dim: int, power: float) -> Tensor:
        """Variances between 10^-power and 1, in any order."""
        exponents = torch.rand(count, dim, generator=self._generator, dtype=torch.float64)
        return 10.0 ** (-power * exponents)


class Case(NamedTuple):
    ellips: Ellips
    z: Tensor


Generator = Callable[[Draw, int], Case]


def _covariances(turn: Tensor, spectra: Tensor) -> Tensor:
    covariances = turn @ torch.diag_embed(spectra) @ turn.mT
    return (covariances + covariances.mT) / 2


def usual(draw: Draw, points: int) -> Case:
    kind, seed = KINDS[draw.integer(0, len(KINDS) - 1)], draw.integer(0, 10**6)
    ellips = random_mixture(kind, draw.integer(2, 10), draw.integer(1, 32), seed, draw.uniform(0.01, 4.0))
    return Case(ellips, random_points(ellips, points, seed))


def conditioned(draw: Draw, points: int) -> Case:
    """Condition to 1e12, scale 1e±12, rotated or along the axes, stored full or diagonal."""
    classes, dim = draw.integer(2, 6), draw.integer(1, 32)
    spectra = draw.spectra(classes, dim, draw.uniform(0, 12))
    scale, style = 10.0 ** draw.uniform(-12, 12), draw.integer(0, 2)
    means = draw.uniform(0.01, 3) * draw.normal(classes, dim)
    if style == 0:
        covariances = _covariances(draw.rotations(classes, dim), spectra)
    else:
        covariances = spectra if style == 1 else torch.diag_embed(spectra)
    try:
        ellips = Ellips.from_parameters(means * scale, covariances * scale**2, draw.priors(classes))
    except ValueError:  # more singular than a mixture may be
        return conditioned(draw, points)
    return Case(ellips, random_points(ellips, points, draw.integer(0, 10**6), draw.uniform(0.5, 1.5)))


def low_dimension(draw: Draw, points: int) -> Case:
    classes, dim = draw.integer(2, 4), draw.integer(1, 3)
    spectra = draw.spectra(classes, dim, draw.uniform(0, 3))
    covariances = _covariances(draw.rotations(classes, dim), spectra) if draw.integer(0, 1) else spectra
    scale = 10.0 ** draw.uniform(-12, 12)
    means = draw.normal(classes, dim)
    ellips = Ellips.from_parameters(means * scale, covariances * scale**2, draw.priors(classes))
    return Case(ellips, scale * 2 * draw.normal(points, dim))


def near_ties(draw: Draw, points: int) -> Case:
    """Points moved towards another class until the two are level, up to a gap between 1 and 1e-17."""
    ellips, z = (conditioned if draw.integer(0, 1) else usual)(draw, points)
    other = ellips.means[torch.randint(0, ellips.num_classes, (points,), generator=draw._generator)]
    first = ellips.predict(z)
    low, high = torch.zeros(points, 1).double(), torch.ones(points, 1).double()
    for _ in range(draw.integer(4, 60)):
        middle = (low + high) / 2
        same = (ellips.predict(z + middle * (other - z)) == first).unsqueeze(1)
        low, high = torch.where(same, middle, low), torch.where(same, high, middle)
    return Case(ellips, z + low * (other - z))


def exact_ties(draw: Draw, points: int) -> Case:
    """Mirrored classes, points on the mirror; or two classes alike to the last bit."""
    dim = draw.integer(1, 8)
    half, spectrum = draw.normal(1, dim), draw.spectra(1, dim, 2).expand(2, dim)
    if draw.integer(0, 1):
        half[:, 1:] = 0
        z = draw.normal(points, dim)
        z[:, 0] = 0
        ellips = Ellips.from_parameters(torch.cat([-half, half]), spectrum, torch.tensor([0.5, 0.5]))
    else:
        ellips = Ellips.from_parameters(torch.cat([half, half]), spectrum, torch.tensor([0.5, 0.5]))
        z = draw.normal(points, dim)
    return Case(ellips, z)


def tangencies(draw: Draw, points: int) -> Case:
    """Points on a symmetry axis of both classes: b is orthogonal to the lowest eigenspace, the hard case."""
    dim = draw.integer(2, 8)
    spectra = draw.spectra(2, dim, draw.uniform(0.1, 6))
    spectra[1, 0] = spectra[0, 0] * 10.0 ** draw.uniform(0.05, 3)  # the rival is wider along the first axis
    means, z = draw.normal(2, dim), draw.normal(points, dim) * spectra[0].sqrt()
    free = draw.integer(1, dim)
    means[:, :free], z[:, :free] = 0, 0
    style = draw.integer(0, 2)
    if style == 0:
        turn = draw.rotations(1, dim)
        return Case(
            Ellips.from_parameters(means @ turn[0].T, _covariances(turn, spectra), draw.priors(2)), z @ turn[0].T
        )
    covariances = spectra if style == 1 else torch.diag_embed(spectra)
    return Case(Ellips.from_parameters(means, covariances, draw.priors(2)), z)


def flat(draw: Draw, points: int) -> Case:
    """W = 0: one covariance, shared; hyperplanes."""
    classes, dim = draw.integer(2, 8), draw.integer(1, 32)
    spectrum = draw.spectra(1, dim, draw.uniform(0, 10))
    scale = 10.0 ** draw.uniform(-12, 12)
    shared = _covariances(draw.rotations(1, dim), spectrum) if draw.integer(0, 1) else spectrum
    try:
        ellips = Ellips.from_parameters(
            scale * draw.normal(classes, dim),
            scale**2 * shared.expand(classes, *shared.shape[1:]),
            draw.priors(classes),
        )
    except ValueError:
        return flat(draw, points)
    return Case(ellips, random_points(ellips, points, draw.integer(0, 10**6)))


def unreached(draw: Draw, points: int) -> Case:
    """The prediction wider than every rival in all directions, and rivals rare."""
    classes, dim = draw.integer(2, 4), draw.integer(1, 16)
    spectra = draw.spectra(classes, dim, 1)
    spectra[0] = 3.0
    priors = torch.full((classes,), 10.0 ** -draw.uniform(0, 4) / classes, dtype=torch.float64)
    priors[0] = 1 - priors[1:].sum()
    if draw.integer(0, 1):
        spectra = _covariances(draw.rotations(classes, dim), spectra)
    ellips = Ellips.from_parameters(0.2 * draw.normal(classes, dim), spectra, priors)
    return Case(ellips, 4 * draw.normal(points, dim))


def far_points(draw: Draw, points: int) -> Case:
    ellips, z = usual(draw, points)
    return Case(ellips, z * 10.0 ** draw.uniform(1, 8))


def wide(draw: Draw, points: int) -> Case:
    """Many dimensions: d to 256."""
    dim = (48, 64, 96, 128, 256)[draw.integer(0, 4)]
    ellips = random_mixture(("full", "diagonal")[draw.integer(0, 1)], draw.integer(2, 5), dim, draw.integer(0, 10**6))
    return Case(ellips, random_points(ellips, points, draw.integer(0, 10**6)))


def many_classes(draw: Draw, points: int) -> Case:
    """Many classes: K to 1000."""
    classes = int(10 ** draw.uniform(2, 3))
    dim = max(2, int(min(64, 4000 / classes)))
    kind = KINDS[draw.integer(0, len(KINDS) - 1)]
    ellips = random_mixture(kind, classes, dim, draw.integer(0, 10**6), draw.uniform(0.3, 2))
    return Case(ellips, random_points(ellips, points, draw.integer(0, 10**6)))


def broad(draw: Draw, points: int) -> Case:
    """Many classes in many dimensions: K from 50 to 200, d from 64 to 256."""
    dim, kind = (64, 96, 128, 256)[draw.integer(0, 3)], ("full", "full", "shared", "diagonal")[draw.integer(0, 3)]
    ellips = random_mixture(kind, draw.integer(50, 200), dim, draw.integer(0, 10**6), draw.uniform(0.2, 1))
    return Case(ellips, random_points(ellips, points, draw.integer(0, 10**6)))


def vast(draw: Draw, points: int) -> Case:
    """A thousand classes in 128 or 256 dimensions."""
    kind, dim = (("full", 128), ("diagonal", 256), ("full", 256))[draw.integer(0, 2)]
    ellips = random_mixture(kind, 1000, dim, draw.integer(0, 10**6), draw.uniform(0.2, 1))
    return Case(ellips, random_points(ellips, points, draw.integer(0, 10**6)))


def low_rank(draw: Draw, points: int) -> Case:
    """A common covariance and few directions: widths D from nearly -1 to 1e8, every rank from 0 to d, scale 1e±12."""
    classes, dim = draw.integer(2, 8), draw.integer(1, 24)
    rank, scale = draw.integer(0, dim), 10.0 ** draw.uniform(-12, 12)
    covariance = _covariances(draw.rotations(1, dim), draw.spectra(1, dim, draw.uniform(0, 6)))[0]
    widths = 10.0 ** (draw.uniform(0, 8) * (2 * draw.spectra(classes, rank, 1) - 1.2)) - 1
    directions = draw.rotations(classes, dim)[:, :rank]
    means = scale * draw.uniform(0.01, 3) * draw.normal(classes, dim)
    ellips = Ellips.from_low_rank(means, scale**2 * covariance, directions, widths, draw.priors(classes))
    if draw.integer(0, 2) == 0:  # two of one shape, sometimes to the last bit alike
        ellips.directions[1], ellips.scales[1] = ellips.directions[0], ellips.scales[0]
        if draw.integer(0, 1):
            ellips.means[1], ellips.log_priors[1] = ellips.means[0], ellips.log_priors[0]
    return Case(ellips, random_points(ellips, points, draw.integer(0, 10**6), draw.uniform(0.5, 2)))


def low_rank_ties(draw: Draw, points: int) -> Case:
    """Two mirrored classes and points on the mirror."""
    dim = draw.integer(2, 8)
    rank, half = draw.integer(1, dim - 1), draw.normal(1, dim)
    directions = torch.zeros(2, rank, dim, dtype=torch.float64)
    directions[:, :, 1:] = draw.rotations(1, dim - 1)[0, :rank]
    widths = (10.0 ** (3 * draw.normal(1, rank)) - 1).expand(2, rank)
    half[:, 1:] = 0
    ellips = Ellips.from_low_rank(
        torch.cat([-half, half]), draw.spectra(1, dim, 2)[0].diag(), directions, widths, torch.tensor([0.5, 0.5])
    )
    z = draw.normal(points, dim)
    z[:, 0] = 0
    return Case(ellips, z)


def almost_one(draw: Draw, points: int) -> Case:
    """Classes a step of 1 to 1e-320 apart, points among them; sometimes two more that are 1 to 1e12 away."""
    classes, dim, style = draw.integer(2, 4), draw.integer(1, 4), draw.integer(0, 2)
    step, turn = 10.0 ** -draw.uniform(0, 320), draw.rotations(1, dim)
    means = draw.normal(classes, dim) * step
    if draw.integer(0, 1):
        away = draw.normal(1, dim) * 10.0 ** draw.uniform(0, 12)
        means = torch.cat([means, away, -away])  # so that the others stay where the center is
    count = len(means)
    spectra = draw.spectra(1, dim, 2).expand(count, dim).clone()
    if draw.integer(0, 1):
        spectra[0] *= 10.0 ** (draw.integer(0, 1) * draw.spectra(1, dim, 2)[0])  # in some directions, or not at all
    priors = (10.0 ** -draw.uniform(0, 13) * draw.normal(count)).softmax(0)
    if style == 2:
        directions, widths = turn.expand(count, dim, dim), spectra / spectra[1:2] - 1
        ellips = Ellips.from_low_rank(means, spectra[1].diag(), directions, widths, priors)
    else:
        ellips = Ellips.from_parameters(means, spectra if style else _covariances(turn, spectra), priors)
    return Case(ellips, draw.normal(points, dim) * step * draw.integer(0, 1))


GENERATORS: dict[str, Generator] = {
    function.__name__: function
    for function in (
        usual, conditioned, low_dimension, near_ties, exact_ties, tangencies, flat, unreached, far_points, wide,
        many_classes, broad, vast, low_rank, low_rank_ties, almost_one,
    )
}  # fmt: skip


DEAR = ("wide", "many_classes", "broad")  # a few mixtures of these, and of `vast` none, is what tests can pay


def make_case(name: str, seed: int, points: int) -> Case:
    """Return the mixture and the latents that a generator makes of a seed."""
    return GENERATORS[name](Draw(seed * 1009 + int(math.fsum(map(ord, name)))), points)
