"""Scales at the ends of float32 and float64, and classifiers that change behind the module's back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from ellips import Ellips
from ellips.certificates import METHODS, check
from ellips.gaussians.fingerprint import fingerprint
from tests.ellips.mixtures import random_mixture, random_points


@pytest.mark.parametrize("kind", ["full", "diagonal"])
@pytest.mark.parametrize("power", [-58, -40, -22, -20, -18, -12, 12, 18, 20, 22, 24, 40, 58])
def test_radii_scale_with_the_latents(kind: str, power: int) -> None:
    ellips = random_mixture(kind, 4, 3, seed=1)
    z, scale = random_points(ellips, 40, 1), 10.0**power
    covariances = ellips.covariances if kind == "full" else ellips.covariances.diagonal(dim1=1, dim2=2)
    scaled = Ellips.from_parameters(ellips.means * scale, covariances * scale**2, ellips.priors)
    for method in METHODS:
        certificate = scaled.certify(z * scale, method)
        assert check(scaled, z * scale, certificate).all()
        torch.testing.assert_close(certificate.radius / scale, ellips.certify(z, method).radius, rtol=1e-9, atol=0)


@pytest.mark.parametrize("power", [30, 100, 140])
def test_points_far_away_keep_radii_that_are_proven(power: int) -> None:
    ellips = random_mixture("full", 4, 3, seed=1)
    z = random_points(ellips, 40, 1) * 10.0**power
    certificate = ellips.certify(z)
    assert check(ellips, z, certificate).all()
    assert (certificate.radius > 0).any()


@pytest.mark.parametrize("power", [151, 155, 200, 300])
def test_points_that_cannot_be_squared_are_refused_with_the_cure(power: int) -> None:
    ellips = random_mixture("full", 4, 3, seed=1)
    z = random_points(ellips, 4, 1) * 10.0**power
    for method in METHODS:
        with pytest.raises(ValueError, match="divide the latents by their scale"):
            ellips.certify(z, method)


@pytest.mark.parametrize(("spread", "away"), [(1e155, 0.0), (1.0, 1e155)])
def test_means_that_cannot_be_squared_are_refused_wherever_the_point_is(spread: float, away: float) -> None:
    unit = random_mixture("full", 4, 3, seed=1)
    ellips = Ellips.from_parameters(spread * unit.means + away, unit.covariances, unit.priors)
    z = torch.zeros(2, 3, dtype=torch.float64)
    for method in METHODS:
        with pytest.raises(ValueError, match="divide the latents by their scale"):
            ellips.certify(z, method)


def test_means_that_cancel_and_cannot_be_squared_are_refused() -> None:
    unit = random_mixture("full", 3, 3, seed=1)
    means = unit.means * 0
    means[0], means[1] = 1e155, -1e155
    with pytest.raises(ValueError, match="divide the latents by their scale"):
        Ellips.from_parameters(means, unit.covariances, unit.priors).certify(torch.ones(2, 3, dtype=torch.float64))


def test_gradients_that_cannot_be_squared_are_refused_with_the_cure() -> None:
    unit = random_mixture("full", 4, 3, seed=1)
    ellips = Ellips.from_parameters(1e-50 * unit.means, 1e-100 * unit.covariances, unit.priors)
    with pytest.raises(ValueError, match="divide the latents by their scale"):
        ellips.certify(1e60 * random_points(unit, 4))


@pytest.mark.parametrize("power", [-75, -100, 75, 100])
def test_deviations_that_cannot_be_squared_are_refused_with_the_cure(power: int) -> None:
    ellips, scale = random_mixture("full", 4, 3, seed=1), 10.0**power
    z = random_points(ellips, 4, 1)
    scaled = Ellips.from_parameters(ellips.means * scale, ellips.covariances * scale**2, ellips.priors)
    with pytest.raises(ValueError, match="between 1e-60 and 1e60"):
        scaled.certify(z * scale)


def _of_scales(kind: str, *scales: float) -> Ellips:
    """Classes with the shapes of one mixture, each with deviations of its own scale."""
    unit, sizes = random_mixture(kind, len(scales), 3, seed=1), torch.tensor(scales, dtype=torch.float64)
    covariances = unit.covariances if kind == "full" else unit.covariances.diagonal(dim1=1, dim2=2)
    squares = sizes.square().view(-1, *[1] * (covariances.ndim - 1))
    return Ellips.from_parameters(unit.means * sizes[:, None], covariances * squares, unit.priors)


@pytest.mark.parametrize(
    ("scales", "away"),
    [
        ((1e65, 1.0, 2.0), 1.0),
        ((1e-65, 1.0, 2.0), 1.0),
        ((1.0, 1e-65, 1e65), 1.0),
        ((1.0, 1e-55, 2.0), 1e45),
        ((1.0, 2.0, 3.0), 1e155),
        ((1.0, 2.0, 3.0), -1e155),
    ],
)
def test_one_class_or_point_that_cannot_be_squared_is_enough_to_refuse(scales: tuple[float, ...], away: float) -> None:
    ellips = _of_scales("full", *scales)
    z = torch.ones(2, 3, dtype=torch.float64)
    z[1] *= away
    for method in METHODS:
        with pytest.raises(ValueError, match="divide the latents by their scale"):
            ellips.certify(z, method)


@pytest.mark.parametrize("kind", ["full", "diagonal"])
def test_wide_classes_beside_a_narrow_one_keep_radii_that_are_proven(kind: str) -> None:
    """In float32 the wide ones' precisions would be 0, and gradients of 1e-14 with them: radii two times too large."""
    ellips = _of_scales(kind, 1e23, 1.4e23, 100.0)
    z = 1e32 * torch.randn(200, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    certificates = {method: ellips.certify(z, method) for method in METHODS}
    assert (certificates["exact"].radius > 1e31).any()
    for certificate in certificates.values():
        assert check(ellips, z, certificate).all()


def _through_data(ellips: Ellips) -> None:
    ellips.means.data.add_(0.25)


def _through_numpy(ellips: Ellips) -> None:
    ellips.precision_factors.numpy()[0] *= 1.5


def _exchanged_through_numpy(ellips: Ellips) -> None:
    means = ellips.means.numpy()
    means[[0, 1]] = means[[1, 0]]


def _one_bit(ellips: Ellips) -> None:
    ellips.log_priors.data.view(torch.int64)[2] ^= 1 << 51


@pytest.mark.parametrize("change", [_through_data, _through_numpy, _exchanged_through_numpy, _one_bit])
@pytest.mark.parametrize("kind", ["full", "diagonal"])
def test_a_changed_classifier_is_noticed_however_it_was_changed(kind: str, change: Callable[[Ellips], None]) -> None:
    ellips = random_mixture(kind, 3, 4, seed=1)
    z = random_points(ellips, 20, 1)
    for method in METHODS:
        ellips.certify(z, method)
    scale = float(ellips.scale)
    change(ellips)
    fresh = Ellips(3, 4, covariance_type=ellips.covariance_type)
    fresh.load_state_dict(ellips.state_dict())
    for method in METHODS:
        torch.testing.assert_close(ellips.certify(z, method).radius, fresh.certify(z, method).radius, rtol=0, atol=0)
    assert float(ellips.scale) == float(fresh.scale)
    if change is _through_numpy:
        assert float(ellips.scale) != scale


@pytest.mark.parametrize("through", ["numpy", "data", "torch"])
def test_numbers_written_above_the_diagonal_later_are_not_read(through: str) -> None:
    """Triangular factors are used as they lie in the mixture, uncut; they need not stay triangular."""
    ellips = random_mixture("full", 3, 4, seed=1)
    z = random_points(ellips, 20, 1)
    before = [ellips.certify(z, method) for method in METHODS]  # what is known of the factors is remembered by now
    scores, held = ellips(z), ellips.precision_factors
    above: Any = {"numpy": held.numpy(), "data": held.data, "torch": held}[through]
    above[:, 0, 1:] = 7.0
    assert torch.equal(ellips(z), scores)
    for method, expected in zip(METHODS, before, strict=True):
        found = ellips.certify(z, method)
        assert torch.equal(found.radius, expected.radius)
        assert check(ellips, z, found).all()


def test_every_bit_and_every_place_counts() -> None:
    x = torch.randn(3, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    base, seen = fingerprint([x]), set()
    for place in range(x.numel()):
        for bit in (0, 20, 52, 63):
            y = x.clone()
            y.view(torch.int64).view(-1)[place] ^= (1 << bit) if bit < 63 else -(2**63)
            seen.add(fingerprint([y]))
    assert len(seen) == 4 * x.numel()
    assert base not in seen
    assert fingerprint([-x[:, :, :4]]) != fingerprint([x[:, :, :4]])  # an even number of signs
    assert fingerprint([x.roll(1, 0)]) != base != fingerprint([x.roll(1, 2)])
