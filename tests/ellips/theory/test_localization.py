"""Localisation: every number against Monte Carlo, and the theorem's own consistency."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import chi2, ncx2, norm

from ellips.classifier import Ellips
from ellips.errors import NotFittedError
from ellips.theory.localization import (
    Localizer,
    delta_of_radius,
    log_volume,
    radius_of_delta,
    robust_classifier_exists,
)
from ellips.theory.quadratic_form import quadratic_form_cdf

F64 = torch.float64


def mixture(classes: int, dim: int, spread: float, seed: int = 0, shared: bool = False) -> Ellips:
    g = torch.Generator().manual_seed(seed)
    means = spread * torch.randn(classes, dim, generator=g, dtype=F64)
    x = torch.randn(classes, dim, 4 * dim, generator=g, dtype=F64) * torch.linspace(0.6, 1.4, dim, dtype=F64)[:, None]
    covariances = x @ x.mT / (4 * dim)
    if shared:
        covariances = covariances[:1].expand_as(covariances).clone()
    priors = torch.arange(1, classes + 1, dtype=F64)
    return Ellips.from_parameters(means, covariances, priors / priors.sum())


# ------------------------------------------------------------------ the distribution underneath


@pytest.mark.parametrize("dim", [2, 3, 8, 64])
@pytest.mark.parametrize("shift", [0.0, 1.5])
def test_quadratic_form_agrees_with_simulation(dim: int, shift: float) -> None:
    rng = np.random.default_rng(dim)
    weights, shifts = rng.uniform(0.2, 3, dim), shift * rng.standard_normal(dim)
    draws = (rng.standard_normal((40_000, dim)) + shifts) ** 2 @ weights
    levels = np.array([0.01, 0.2, 0.5, 0.8, 0.99])
    found = quadratic_form_cdf(np.quantile(draws, levels), weights, shifts)
    assert np.abs(found - levels).max() < 5 * 0.5 / math.sqrt(40_000)


@pytest.mark.parametrize(("dim", "tolerance"), [(2, 1e-9), (3, 5e-6), (5, 1e-7), (512, 1e-7)])
def test_quadratic_form_with_nearly_equal_weights_is_the_noncentral_chi_square(dim: int, tolerance: float) -> None:
    shifts = np.random.default_rng(0).standard_normal(dim) * 0.2
    x = np.linspace(0.2, 2.5, 11) * dim
    weights = 1 + np.linspace(-5e-9, 5e-9, dim)
    exact = ncx2.cdf(x, dim, shifts @ shifts)
    np.testing.assert_allclose(quadratic_form_cdf(x, weights, shifts), exact, atol=tolerance)
    np.testing.assert_allclose(quadratic_form_cdf(3 * x, 3 * np.ones(dim), shifts), exact, atol=1e-12)


@pytest.mark.parametrize("shifts", [(0.0, 0.0), (3.0, -1.0), (0.2, 8.0)])
def test_quadratic_form_in_the_plane_agrees_with_adaptive_quadrature(shifts: tuple[float, float]) -> None:
    for weights in ((1.0, 3.0), (0.01, 5.0), (7.0, 0.2)):
        a, c = np.array(weights), np.array(shifts)
        for x in np.array([0.1, 1.0, 3.0]) * float(a @ (1 + c**2)):
            half = math.sqrt(x / a[0])

            def chord(n: float, x: float = x, a: np.ndarray = a, c: np.ndarray = c) -> float:
                length = math.sqrt(max(x - a[0] * (n + c[0]) ** 2, 0) / a[1])
                return float(norm.pdf(n) * (norm.cdf(length - c[1]) - norm.cdf(-length - c[1])))

            low, high = max(-half - c[0], -10.0), min(half - c[0], 10.0)
            expected = quad(chord, low, high, limit=400, epsabs=1e-11)[0] if low < high else 0.0
            assert quadratic_form_cdf(np.array(x), a, c) == pytest.approx(expected, abs=1e-8)


def test_quadratic_form_at_the_ends_and_with_bad_input() -> None:
    for dim in (1, 2, 3):
        weights, shifts = np.arange(1.0, dim + 1), np.linspace(0, 1, dim)
        found = quadratic_form_cdf(np.array([-1.0, 0.0, 1e9]), weights, shifts)
        np.testing.assert_allclose(found, [0.0, 0.0, 1.0], atol=1e-12)
    with pytest.raises(ValueError, match="weights"):
        quadratic_form_cdf(np.ones(1), -weights, shifts)


# ------------------------------------------------------------------ against Monte Carlo, 1e-2


@pytest.mark.parametrize("dim", [1, 2, 3, 5])
def test_volume_agrees_with_monte_carlo(dim: int) -> None:
    ellips = mixture(2, dim, 1.0, seed=dim)
    radius, covariance = 1.7, ellips.covariances[0]
    half = radius * covariance.diagonal().sqrt()
    g = torch.Generator().manual_seed(1)
    points = (2 * torch.rand(400_000, dim, generator=g, dtype=F64) - 1) * half
    inside = (torch.einsum("ni,ij,nj->n", points, ellips.precisions[0], points) <= radius**2).double().mean()
    monte_carlo = float(inside * (2 * half).prod())
    found = math.exp(float(log_volume(np.array(radius), np.array(float(ellips.log_dets[0])), dim)))
    assert found == pytest.approx(monte_carlo, rel=1e-2)


@pytest.mark.parametrize("dim", [2, 4])
@pytest.mark.parametrize("shared", [True, False])
def test_delta_and_gamma_agree_with_monte_carlo(dim: int, shared: bool) -> None:
    ellips = mixture(3, dim, 1.5, seed=dim, shared=shared)
    radii, epsilon = np.array([1.5, 2.0, 2.5]), 0.3
    found = Localizer(ellips).at(radii, epsilon)
    z, labels = ellips.sample(120_000, torch.Generator().manual_seed(2))
    u = z.unsqueeze(1) - ellips.means
    distance = torch.einsum("nki,kij,nkj->nk", u, ellips.precisions, u).sqrt().numpy()
    grown = radii + 2 * epsilon / torch.linalg.eigvalsh(ellips.covariances)[:, 0].sqrt().numpy()
    for i in range(3):
        own = distance[(labels == i).numpy()]
        assert found.delta[i] == pytest.approx((own[:, i] > radii[i]).mean(), abs=1e-2)
        others = [j for j in range(3) if j != i]
        assert found.gamma[i] == pytest.approx((own[:, others] <= grown[others]).mean(0).sum(), abs=1e-2)


def test_shared_covariances_give_the_noncentral_chi_square_of_the_paper() -> None:
    ellips = mixture(3, 6, 1.0, shared=True)
    localizer, radii, epsilon = Localizer(ellips), np.array([2.0, 2.2, 2.4]), 0.1
    precision, scale = ellips.precisions[0], float(torch.linalg.eigvalsh(ellips.covariances[0])[0].sqrt())
    for i in range(3):
        total = 0.0
        for j in range(3):
            gap = ellips.means[i] - ellips.means[j]
            if i != j:
                total += ncx2.cdf((radii[j] + 2 * epsilon / scale) ** 2, 6, float(gap @ precision @ gap))
        assert localizer.gamma(radii, epsilon)[i] == pytest.approx(total, rel=1e-9)


def test_the_classifier_of_the_theorem_keeps_its_promise() -> None:
    """1 − δ − γ is at most the share of points that lie in their own class's ellipsoid."""
    ellips = mixture(3, 2, 6.0, seed=6)
    found = Localizer(ellips).best(0.2)
    z, labels = ellips.sample(50_000, torch.Generator().manual_seed(3))
    u = z.unsqueeze(1) - ellips.means
    inside = torch.einsum("nki,kij,nkj->nk", u, ellips.precisions, u).sqrt() <= torch.from_numpy(found.radii)
    own = inside[torch.arange(len(z)), labels].double().mean()
    assert found.certified_accuracy <= float(own) + 4 * 0.5 / math.sqrt(50_000)
    assert 0.5 < found.certified_accuracy < 1


# ------------------------------------------------------------------ solving


@pytest.mark.parametrize("criterion", ["average", "uniform"])
def test_best_radii_beat_every_other_choice(criterion: str) -> None:
    localizer = Localizer(mixture(3, 2, 2.0, seed=1))
    best = localizer.best(0.25, criterion=criterion)  # type: ignore[arg-type]
    rng = np.random.default_rng(0)
    for _ in range(40):
        radii = best.radii * rng.uniform(0.7, 1.3, 3) if criterion == "average" else np.full(3, rng.uniform(0.5, 4))
        assert localizer.at(radii, 0.25, criterion).error >= best.error - 1e-4  # type: ignore[arg-type]


def test_average_is_never_worse_than_uniform_and_error_grows_with_epsilon() -> None:
    localizer = Localizer(mixture(4, 3, 2.0, seed=2))
    errors = [(localizer.best(e).error, localizer.best(e, criterion="uniform").error) for e in (0.0, 0.2, 0.5, 1.0, 3)]
    assert all(a <= u + 1e-9 for a, u in errors)
    assert all(low[0] <= high[0] + 1e-4 for low, high in pairwise(errors))


def test_largest_epsilon_is_where_gamma_is_used_up() -> None:
    localizer = Localizer(mixture(3, 4, 4.0, seed=3))
    epsilon, per_class = localizer.largest_epsilon(0.05, 0.02)
    radii = np.full(3, radius_of_delta(0.05, 4))
    assert epsilon == per_class.min() > 0
    assert localizer.gamma(radii, epsilon).max() == pytest.approx(0.02, abs=1e-6)
    for i in range(3):
        assert localizer.gamma(radii, per_class[i])[i] == pytest.approx(0.02, abs=1e-6)
    assert localizer.at(radii, epsilon, "uniform").error <= 0.07 + 1e-6


def test_overlapping_classes_have_no_epsilon() -> None:
    epsilon, per_class = Localizer(mixture(3, 2, 0.01)).largest_epsilon(0.05, 0.02)
    assert epsilon == -math.inf
    assert np.isneginf(per_class).all()


def test_a_volume_limit_binds() -> None:
    localizer = Localizer(mixture(3, 3, 4.0, seed=4))
    free = localizer.best(0.2)
    log_c = free.log_c - 1.5
    tight = localizer.best(0.2, log_c)
    assert tight.error > free.error
    assert tight.log_c <= log_c + 1e-9
    uniform = localizer.best(0.2, log_c, "uniform")
    assert uniform.log_c <= log_c + 1e-9
    assert localizer.largest_epsilon(0.05, 0.2, log_c=1.0)[0] <= 1.0


def test_one_class_delta_and_epsilon_are_each_others_inverse() -> None:
    localizer = Localizer(mixture(3, 5, 1.0))
    epsilon = localizer.largest_class_epsilon(0.1, log_c=12.0)
    deltas = [localizer.smallest_delta(float(e), 12.0)[k] for k, e in enumerate(epsilon)]
    np.testing.assert_allclose(deltas, 0.1, rtol=1e-9)
    np.testing.assert_allclose(delta_of_radius(radius_of_delta(0.3, 5), 5), 0.3, rtol=1e-9)


# ------------------------------------------------------------------ high dimension


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_nothing_overflows_in_512_dimensions(scale: float) -> None:
    g = torch.Generator().manual_seed(0)
    means = scale * torch.randn(3, 512, generator=g, dtype=F64)
    variances = scale**2 * (0.5 + torch.rand(3, 512, generator=g, dtype=F64))
    localizer = Localizer(Ellips.from_parameters(means, variances, torch.full((3,), 1 / 3, dtype=F64)), num_radii=64)
    best = localizer.best(0.3 * scale)
    for numbers in (best.radii, best.delta, best.gamma, best.log_volumes):
        assert np.isfinite(numbers).all()
    assert best.certified_accuracy > 0.99
    assert math.isfinite(best.log_c)
    assert math.isfinite(localizer.largest_epsilon(0.01, 0.01)[0])
    half_dim = 256
    expected = half_dim * math.log(math.pi) - math.lgamma(half_dim + 1) + 512 * math.log(best.radii[0])
    assert best.log_volumes[0] == pytest.approx(expected + 0.5 * float(variances[0].log().sum()), rel=1e-9)
    assert localizer.smallest_delta(0.0, best.log_c + 1)[0] < 1


# ------------------------------------------------------------------ the question


def test_the_question_is_answered_with_its_numbers() -> None:
    ellips = mixture(3, 2, 6.0, seed=6)
    yes, no = robust_classifier_exists(ellips, 0.1, 0.9), robust_classifier_exists(ellips, 50.0, 0.9)
    assert yes.exists
    assert not no.exists
    assert yes.localization.certified_accuracy >= 0.9
    assert "exists" in str(yes)
    assert "not shown" in str(no)
    assert set(yes.localization.to_dict()) >= {"radii", "delta", "gamma", "log_c", "certified_accuracy"}


def test_bad_input_is_refused() -> None:
    ellips = mixture(2, 2, 1.0)
    with pytest.raises(NotFittedError):
        Localizer(Ellips(2, 2))
    with pytest.raises(ValueError, match="epsilon"):
        Localizer(ellips).best(-1.0)
    with pytest.raises(ValueError, match="criterion"):
        Localizer(ellips).best(0.1, criterion="both")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="delta"):
        Localizer(ellips).largest_epsilon(0.0, 0.5)
    with pytest.raises(ValueError, match="radii"):
        Localizer(ellips).at(np.ones(3), 0.1)
    with pytest.raises(ValueError, match="num_radii"):
        Localizer(ellips, num_radii=1)
    assert chi2.sf(4, 2) == pytest.approx(delta_of_radius(np.array(2.0), 2))
