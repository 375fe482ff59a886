from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from ellips import Ellips
from ellips.certificates import METHODS, check, worst_case_perturbation
from ellips.errors import NotFittedError
from tests.ellips.mixtures import KINDS, random_mixture, random_points

cases = st.tuples(
    st.sampled_from(KINDS), st.integers(2, 10), st.integers(1, 32), st.integers(0, 10_000), st.floats(0.01, 4.0)
)
relaxed = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@relaxed
@given(cases)
def test_methods_are_ordered_and_checked(case: tuple[str, int, int, int, float]) -> None:
    kind, classes, dim, seed, spread = case
    ellips = random_mixture(kind, classes, dim, seed, spread)
    z = random_points(ellips, 8, seed)
    certificates = [ellips.certify(z, method) for method in ("theorem", "pairwise", "exact")]
    theorem, pairwise, exact = (certificate.radius for certificate in certificates)
    assert (theorem <= pairwise).all()
    assert (pairwise <= exact).all()
    for certificate in certificates:
        assert (certificate.prediction == ellips.predict(z)).all()
        assert check(ellips, z, certificate).all(), certificate.method


@relaxed
@given(cases)
def test_tampering_is_noticed(case: tuple[str, int, int, int, float]) -> None:
    kind, classes, dim, seed, spread = case
    ellips = random_mixture(kind, classes, dim, seed, spread)
    z = random_points(ellips, 8, seed)
    certificate = ellips.certify(z)
    usual = certificate.radius.isfinite() & (certificate.radius > 1e-3)
    assert check(ellips, z, replace(certificate, radius=certificate.radius * 0.99)).all()  # true, if modest
    assert not check(ellips, z, replace(certificate, radius=certificate.radius * 1.001))[usual].any()
    assert not check(ellips, z, replace(certificate, multiplier=certificate.multiplier * 1.1))[usual].any()
    assert not check(ellips, z, replace(certificate, multiplier=certificate.multiplier * 0)).logical_and(usual).any()
    swapped = replace(certificate, prediction=certificate.rival, rival=certificate.prediction)
    assert not check(ellips, z, swapped)[usual].any()


def test_a_consistent_forgery_naming_a_farther_rival_is_refused() -> None:
    ellips = random_mixture("full", 4, 3, seed=5)
    z = random_points(ellips, 40, 5)
    certificate = ellips.certify(z)
    # Remove the named rival from the mixture, certify against the others, and present that as the certificate.
    for row in range(len(z)):
        rival = int(certificate.rival[row])
        keep = [k for k in range(4) if k != rival]
        others = Ellips.from_parameters(
            ellips.means[keep], ellips.covariances[keep], ellips.priors[keep] / ellips.priors[keep].sum()
        )
        forged = others.certify(z[row : row + 1])
        names = torch.tensor(keep)
        forged = replace(forged, prediction=names[forged.prediction], rival=names[forged.rival])
        if float(forged.radius) > 1.001 * float(certificate.radius[row]):
            assert check(ellips, z[row : row + 1], forged, rivals="named").all()
            assert not check(ellips, z[row : row + 1], forged).any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [1, 2, 7])
def test_the_radius_is_the_distance_to_the_boundary(kind: str, dim: int) -> None:
    ellips = random_mixture(kind, 4, dim, seed=dim)
    z = random_points(ellips, 60, dim)
    certificate = ellips.certify(z)
    delta = worst_case_perturbation(ellips, z, certificate)
    moving = certificate.radius.isfinite() & (certificate.radius > 0)
    assert moving.float().mean() > 0.5
    unit = delta[moving] / delta[moving].norm(dim=1, keepdim=True)
    far = z[moving] + unit * (certificate.radius[moving] * (1 + 1e-6)).unsqueeze(1)
    assert (ellips.predict(far) != certificate.prediction[moving]).all()
    near = z[moving] + unit * (certificate.radius[moving] * (1 - 1e-6)).unsqueeze(1)
    assert (ellips.predict(near) == certificate.prediction[moving]).all()


def _two(means: list[list[float]], covariances: list[Tensor], priors: tuple[float, ...] = (0.5, 0.5)) -> Ellips:
    stacked = torch.stack([c.double() for c in covariances])
    return Ellips.from_parameters(torch.tensor(means).double(), stacked, torch.tensor(priors).double())


def test_hyperplane() -> None:
    ellips = _two([[0.0, 0.0], [4.0, 0.0]], [torch.eye(2), torch.eye(2)])
    certificate = ellips.certify(torch.tensor([[0.5, 3.0], [3.0, -1.0]]))
    torch.testing.assert_close(certificate.radius, torch.tensor([1.5, 1.0]).double(), rtol=1e-12, atol=0)
    assert certificate.prediction.tolist() == [0, 1]


def test_boundary_that_is_never_reached_is_infinitely_far() -> None:
    # The second class is everywhere below the first: same place and shape, smaller prior; and a wide, rare one.
    same = _two([[1.0, 2.0], [1.0, 2.0]], [torch.eye(2), torch.eye(2)], (0.7, 0.3))
    z = torch.tensor([[0.0, 0.0], [50.0, -3.0]])
    certificate = same.certify(z)
    assert certificate.radius.isinf().all()
    assert certificate.multiplier.isinf().all()
    assert check(same, z, certificate).all()
    wide = _two([[0.0], [0.2]], [torch.tensor([[4.0]]), torch.tensor([[1.0]])], (0.999, 0.001))
    z = torch.tensor([[0.1], [-7.0]])
    certificate = wide.certify(z)
    assert certificate.radius.isinf().all()
    assert check(wide, z, certificate).all()


def test_hard_case() -> None:
    # On the axis b has no component along the lowest eigenvector of W, and the nearest boundary lies off the axis:
    # m(z+δ) = δᵀWδ + 2bᵀδ + m with W = diag(1/9 − 1, 0), b = 0 at the mean: R² = m / (8/9).
    ellips = _two([[0.0, 0.0], [0.0, 0.0]], [torch.eye(2), torch.diag(torch.tensor([9.0, 1.0]))])
    z = torch.zeros(1, 2)
    certificate = ellips.certify(z)
    margin = torch.tensor(9.0).double().log()
    torch.testing.assert_close(certificate.radius, (margin * 9 / 8).sqrt().view(1), rtol=1e-9, atol=0)
    assert check(ellips, z, certificate).all()
    delta = worst_case_perturbation(ellips, z, certificate)
    torch.testing.assert_close(delta.abs(), torch.tensor([[float(certificate.radius), 0.0]]).double())


def test_hard_case_away_from_the_mean() -> None:
    ellips = _two([[0.0, 0.0], [0.0, 1.0]], [torch.eye(2), torch.diag(torch.tensor([9.0, 1.0]))])
    z = torch.tensor([[0.0, -0.3]])
    certificate = ellips.certify(z)
    delta = worst_case_perturbation(ellips, z, certificate)
    assert check(ellips, z, certificate).all()
    assert delta[0, 0].abs() > 0.1
    grid = torch.linspace(-3, 3, 1201).double()
    plane = torch.cartesian_prod(grid, grid)
    lost = plane[ellips.predict(z + plane) != certificate.prediction]
    assert lost.norm(dim=1).min() == pytest.approx(float(certificate.radius), abs=5e-3)
    assert lost.norm(dim=1).min() >= float(certificate.radius)


def test_ties_have_radius_zero() -> None:
    ellips = _two([[-1.0, 0.0], [1.0, 0.0]], [torch.eye(2), torch.eye(2)])
    z = torch.tensor([[0.0, 5.0]])
    for method in METHODS:
        certificate = ellips.certify(z, method)
        assert float(certificate.radius) == 0
        assert check(ellips, z, certificate).all()


@pytest.mark.parametrize("kind", KINDS)
def test_far_points_keep_sound_radii(kind: str) -> None:
    ellips = random_mixture(kind, 5, 6, seed=3)
    generator = torch.Generator().manual_seed(0)
    z = 1e3 * torch.randn(30, 6, generator=generator, dtype=torch.float64)
    certificate = ellips.certify(z)
    assert check(ellips, z, certificate).all()
    moving = certificate.radius.isfinite()
    unit = torch.nn.functional.normalize(worst_case_perturbation(ellips, z, certificate)[moving], dim=1)
    far = z[moving] + unit * (certificate.radius[moving] * (1 + 1e-6)).unsqueeze(1)
    assert (ellips.predict(far) != certificate.prediction[moving]).all()


@pytest.mark.parametrize("power", [4, 8, 12])
@pytest.mark.parametrize("diagonal", [True, False])
def test_ill_conditioned_covariances_stay_sound(power: int, diagonal: bool) -> None:
    dim, generator = 6, torch.Generator().manual_seed(power)
    spectrum = torch.logspace(-power, 0, dim, dtype=torch.float64)
    spectra = torch.stack([spectrum[torch.randperm(dim, generator=generator)] for _ in range(3)])
    means = torch.randn(3, dim, generator=generator, dtype=torch.float64)
    covariances = torch.diag_embed(spectra)
    if not diagonal:
        turn = torch.linalg.qr(torch.randn(3, dim, dim, generator=generator, dtype=torch.float64))[0]
        covariances = turn @ covariances @ turn.mT
        covariances = (covariances + covariances.mT) / 2
    ellips = Ellips.from_parameters(means, spectra if diagonal else covariances, torch.full((3,), 1 / 3))
    z = means + 0.1 * torch.randn(3, dim, generator=generator, dtype=torch.float64) * spectra.sqrt()
    certificate = ellips.certify(z)
    assert (certificate.radius >= ellips.certify(z, "pairwise").radius).all()
    noise = torch.randn(2000, 3, dim, generator=generator, dtype=torch.float64)
    noise = torch.nn.functional.normalize(noise, dim=2) * (certificate.radius * (1 - 1e-6)).unsqueeze(1)
    lost = ellips.predict((z + noise).flatten(0, 1)).view(2000, 3) != certificate.prediction
    assert not lost[:, certificate.radius.isfinite()].any()


def test_radii_do_not_depend_on_the_chunk_size() -> None:
    ellips = random_mixture("full", 6, 9, seed=1)
    z = random_points(ellips, 50, 1)
    whole, cut = ellips.certify(z), ellips.certify(z, chunk_size=7)
    torch.testing.assert_close(cut.radius, whole.radius, rtol=1e-12, atol=0)
    assert (cut.rival == whole.rival).all()


@pytest.mark.parametrize("kind", ["full", "diagonal"])
def test_no_latents_give_no_certificates(kind: str) -> None:
    ellips = random_mixture(kind, 3, 5)
    for method in METHODS:
        certificate = ellips.certify(torch.zeros(0, 5), method)
        assert len(certificate) == 0
        assert check(ellips, torch.zeros(0, 5), certificate).shape == (0,)
    many = random_mixture("full", 120, 64)
    assert len(many.certify(torch.zeros(0, 64))) == 0


def test_float32_latents_give_float64_certificates() -> None:
    ellips = random_mixture("full", 3, 5)
    z = random_points(ellips, 10).float()
    certificate = ellips.certify(z)
    assert certificate.radius.dtype == torch.float64
    torch.testing.assert_close(certificate.radius, ellips.certify(z.double()).radius, rtol=0, atol=0)


def test_the_cache_follows_the_mixture() -> None:
    ellips = random_mixture("full", 3, 4, seed=1)
    z = random_points(ellips, 20, 1)
    before = ellips.certify(z).radius
    other = random_mixture("full", 3, 4, seed=2)
    ellips.load_state_dict(other.state_dict())
    torch.testing.assert_close(ellips.certify(z).radius, other.certify(z).radius, rtol=0, atol=0)
    assert not torch.equal(before, ellips.certify(z).radius)
    ellips.means.add_(1.0)
    other.means.add_(1.0)
    torch.testing.assert_close(ellips.certify(z).radius, other.certify(z).radius, rtol=0, atol=0)


def test_bad_arguments_are_named() -> None:
    ellips = random_mixture("full", 3, 4)
    z = random_points(ellips, 5)
    with pytest.raises(ValueError, match="`method` to be one of"):
        ellips.certify(z, "best")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`chunk_size` to be at least 1"):
        ellips.certify(z, chunk_size=0)
    with pytest.raises(ValueError, match=r"shape \(N, 4\)"):
        ellips.certify(z[:, :3])
    with pytest.raises(ValueError, match="first in row 2"):
        ellips.certify(z.index_fill(0, torch.tensor([2]), float("nan")))
    with pytest.raises(NotFittedError, match="Expected a fitted mixture"):
        Ellips(3, 4).certify(z)
    with pytest.raises(ValueError, match="5 certificates"):
        check(ellips, z, ellips.certify(z)[:3])
