from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ellips import Ellips
from ellips.certificates import METHODS, WEYL, Method, by_weyl, check, worst_case_perturbation
from ellips.certificates.geometries import geometry_of
from ellips.certificates.geometry import Geometry
from ellips.certificates.screen import screen
from ellips.files import load_certificates, save_certificates
from ellips.gaussians.low_rank import LowRank

SIZES = [(5, 8, 2), (10, 16, 4), (6, 9, 9), (4, 6, 0), (40, 32, 6), (3, 7, 5), (10, 64, 64)]


def both(classes: int, dim: int, rank: int, seed: int = 0) -> tuple[Ellips, Ellips, Tensor]:
    """A mixture of low rank, the same covariances written out, and points."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    root = normal(dim, dim) / dim**0.5
    directions = torch.linalg.qr(normal(classes, dim, dim))[0][:, :rank]
    covariance = root @ root.T + 0.3 * torch.eye(dim)
    widths, priors = (0.7 * normal(classes, rank)).exp() - 1, normal(classes).mul(0.3).softmax(0)
    means = normal(classes, dim)
    ellips = Ellips.from_low_rank(means, covariance, directions, widths, priors)
    full = Ellips.from_parameters(means, ellips.covariances, ellips.priors)
    return ellips, full, 1.2 * ellips.sample(60, torch.Generator().manual_seed(seed + 1))[0]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("method", METHODS)
def test_certificates_are_those_of_the_full_model(size: tuple[int, int, int], method: Method) -> None:
    ellips, full, z = both(*size)
    found, expected = ellips.certify(z, method), full.certify(z, method)
    torch.testing.assert_close(found.radius, expected.radius, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.margin, expected.margin, rtol=1e-9, atol=1e-9)
    assert torch.equal(found.prediction, expected.prediction)
    assert torch.equal(found.rival, expected.rival)
    assert check(ellips, z, found).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rank", [0, 2])
def test_no_points_have_no_certificates(rank: int, method: Method) -> None:
    """A process may have no image of those that are looked at."""
    ellips, _, z = both(5, 8, rank)
    certificate = ellips.certify(z[:0], method)
    assert certificate.radius.shape == certificate.prediction.shape == (0,)
    assert check(ellips, z[:0], certificate).shape == (0,)


@pytest.mark.parametrize("size", SIZES)
def test_many_classes_need_no_decomposition(size: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where not all pairs may be decomposed the radii are the same, and closed forms smaller at most."""
    ellips, full, z = both(*size)
    expected = {method: full.certify(z, method).radius for method in METHODS}
    monkeypatch.setattr(Geometry, "affordable", False)
    for method in METHODS:
        found = ellips.certify(z, method)
        assert check(ellips, z, found).all()
        assert (WEYL in found.diagnostics) == by_weyl(ellips, method) == (method != "exact")
        if method == "exact":
            torch.testing.assert_close(found.radius, expected[method], rtol=1e-9, atol=1e-9)
        else:
            assert (found.radius <= expected[method] * (1 + 1e-9)).all()
            assert (found.radius > 0).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("size", SIZES)
def test_half_gradients_are_bounded_from_above_and_closely(size: tuple[int, int, int], dtype: torch.dtype) -> None:
    ellips, full, z = both(*size)
    found = screen(geometry_of(ellips), z, dtype)
    prediction = full.predict(z)
    for k in range(size[0]):
        rows = prediction != k
        rival = torch.full_like(prediction, k)
        exact = full.half_gradient(z, prediction, rival).norm(dim=1)[rows]
        assert (found.half_gradient_norms[rows, k] >= exact * (1 - 1e-12)).all()
        loose = 1e-9 if dtype == torch.float64 else 0.02
        assert (found.half_gradient_norms[rows, k] <= exact * (1 + loose) + loose).all()


@pytest.mark.parametrize("size", SIZES)
def test_bounds_on_concavity_hold(size: tuple[int, int, int]) -> None:
    ellips, _, _ = both(*size)
    geometry, precisions = geometry_of(ellips), ellips.precisions
    for k in range(size[0]):
        lowest = torch.linalg.eigvalsh(precisions - precisions[k])[:, 0]
        needed = (-lowest).clamp(min=0) - 1e-12 * precisions.abs().max()
        assert (geometry.concavity[k] >= needed).all()
        assert (geometry.concavity_bounds()[k] >= needed).all()
        assert (geometry.concavity[k] <= needed + 1e-8 * precisions.abs().max()).all()


def test_points_next_to_the_boundary_and_nearest_points() -> None:
    ellips, _, z = both(10, 16, 4)
    certificate = ellips.certify(z)
    delta = worst_case_perturbation(ellips, z, certificate)
    torch.testing.assert_close(delta.norm(dim=1), certificate.radius, rtol=1e-6, atol=1e-9)
    assert (ellips.predict(z + delta * (1 - 1e-6)) == certificate.prediction).all()
    assert (ellips.predict(z + delta * (1 + 1e-5)) != certificate.prediction).all()


@pytest.mark.parametrize("affordable", [True, False])
@pytest.mark.parametrize("method", ["exact", "pairwise"])
def test_gradients_of_radii_are_right(method: Method, affordable: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """To latents, and to means, common factor, scales and priors, against differences."""
    monkeypatch.setattr(Geometry, "affordable", affordable)
    ellips, _, z = both(4, 6, 2, seed=3)
    ellips.trainable_()
    z = z[:5].clone().requires_grad_()
    ellips.certify(z, method).radius.sum().backward()
    for tensor in (z, *ellips.parameters()):
        assert tensor.grad is not None
        generator = torch.Generator().manual_seed(0)
        step = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        step = step.tril() if tensor is ellips.precision_factors else step
        values = []
        with torch.no_grad():
            for sign in (1, -1):
                tensor.add_(sign * 1e-6 * step)
                values.append(float(ellips.certify(z, method).radius.sum()))
                tensor.sub_(sign * 1e-6 * step)
        slope = (values[0] - values[1]) / 2e-6
        assert float((tensor.grad * step).sum()) == pytest.approx(slope, rel=1e-4, abs=1e-6)


def test_files_of_certificates_hold_the_mixture(tmp_path: object) -> None:
    ellips, _, z = both(5, 8, 3)
    certificate = ellips.certify(z)
    saved = load_certificates(save_certificates(f"{tmp_path}/proofs.safetensors", certificate, z, ellips))
    assert isinstance(saved.ellips.structure, LowRank)
    assert saved.digest == ellips.digest()
    assert check(saved.ellips, saved.z, saved.certificate).all()


def test_one_shape_gives_hyperplanes() -> None:
    """Classes that are alike but for their means: W = 0, and every method gives the same."""
    ellips, _, z = both(4, 6, 2)
    ellips.directions[:], ellips.scales[:] = ellips.directions[0].clone(), ellips.scales[0].clone()
    radius = {method: ellips.certify(z, method).radius for method in METHODS}
    torch.testing.assert_close(radius["exact"], radius["pairwise"], rtol=1e-9, atol=1e-9)
    assert check(ellips, z, ellips.certify(z)).all()
