"""The iterative solver, which serves mixtures with too many pairs of classes to decompose."""

from __future__ import annotations

import pytest
import torch

from ellips import Ellips
from ellips.certificates import METHODS, WEYL, by_weyl, check, confirm, worst_case_perturbation
from ellips.certificates.geometries import geometry_of
from ellips.certificates.geometry import Geometry
from ellips.certificates.krylov import KrylovProblems, solve_krylov
from tests.ellips.mixtures import random_mixture, random_points


def _iterative(ellips: Ellips, monkeypatch: pytest.MonkeyPatch) -> Ellips:
    monkeypatch.setattr(Geometry, "affordable", False)
    return Ellips.from_parameters(ellips.means, ellips.covariances, ellips.priors)


@pytest.mark.parametrize("kind", ["isotropic", "shared", "spherical", "full"])
@pytest.mark.parametrize(("classes", "dim"), [(2, 1), (5, 3), (8, 20), (6, 48)])
def test_both_solvers_agree(kind: str, classes: int, dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    decomposed = random_mixture(kind, classes, dim, seed=dim, spread=0.5)
    z = random_points(decomposed, 60, dim)
    expected = decomposed.certify(z)
    ellips = _iterative(decomposed, monkeypatch)
    certificate = ellips.certify(z)
    torch.testing.assert_close(certificate.radius, expected.radius, rtol=1e-8, atol=1e-10)
    assert check(ellips, z, certificate).all()
    theorem, pairwise = (ellips.certify(z, method).radius for method in ("theorem", "pairwise"))
    assert (theorem <= pairwise).all()
    assert (pairwise <= certificate.radius).all()
    assert (pairwise <= decomposed.certify(z, "pairwise").radius * (1 + 1e-9)).all()  # Weyl bounds from below
    assert check(ellips, z, ellips.certify(z, "pairwise")).all()


def test_the_hard_case_is_left_to_the_decomposition(monkeypatch: pytest.MonkeyPatch) -> None:
    covariances = torch.stack([torch.eye(2), torch.diag(torch.tensor([9.0, 1.0]))]).double()
    means = torch.tensor([[0.0, 0.0], [0.0, 1.0]]).double()
    plain = Ellips.from_parameters(means, covariances, torch.tensor([0.5, 0.5]))
    z = torch.tensor([[0.0, -0.3], [0.0, 0.0]]).double()
    expected = plain.certify(z).radius
    torch.testing.assert_close(_iterative(plain, monkeypatch).certify(z).radius, expected, rtol=1e-9, atol=0)


def test_bounds_hold_and_are_tight_for_single_problems() -> None:
    ellips = random_mixture("full", 6, 24, seed=2, spread=0.4)
    z = random_points(ellips, 50, 2)
    geometry = geometry_of(ellips)
    scores, precisions = ellips(z), ellips.precisions
    first = scores.argmax(1)
    second = scores.argsort(1)[:, -2]
    rows = torch.arange(len(z))
    pulls = torch.einsum("kij,nkj->nki", precisions, z.unsqueeze(1) - ellips.means)
    low, high = geometry.precision_range
    problems = KrylovProblems(
        scores[rows, first] - scores[rows, second],
        pulls[rows, second] - pulls[rows, first],
        torch.zeros(len(z)).double(),
        first,
        second,
        (high[first] - low[second]).clamp(min=0),
    )
    t, dual, settled = solve_krylov(geometry, problems, torch.full((len(z),), torch.inf).double())
    w = precisions[second] - precisions[first]
    inverse = torch.linalg.solve(
        torch.eye(24).double() + t.view(-1, 1, 1) * w, problems.half_gradient.unsqueeze(-1)
    ).squeeze(-1)
    value = t * problems.margin - t.square() * (problems.half_gradient * inverse).sum(1)
    assert settled.float().mean() > 0.8
    assert (dual[settled] <= value[settled]).all()
    torch.testing.assert_close(dual[settled], value[settled], rtol=1e-8, atol=0)


def test_many_classes_in_many_dimensions() -> None:
    ellips = random_mixture("full", 120, 64, seed=4, spread=0.3)
    assert not geometry_of(ellips).affordable
    z = random_points(ellips, 64, 4, scale=1.0)
    certificate = ellips.certify(z)
    assert check(ellips, z, certificate).all()
    delta = worst_case_perturbation(ellips, z, certificate)
    assert (ellips.predict(z + delta * (1 + 1e-6)) != certificate.prediction).all()
    assert (ellips.predict(z + delta * (1 - 1e-6)) == certificate.prediction).all()


def test_closed_forms_by_weyl_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = random_mixture("full", 5, 6, seed=1, spread=0.5)
    z = random_points(plain, 8, 1)
    for method in METHODS:
        assert not by_weyl(plain, method)
        assert WEYL not in plain.certify(z, method).diagnostics
    many = _iterative(plain, monkeypatch)
    for method in ("theorem", "pairwise"):
        assert by_weyl(many, method)
        certificate = many.certify(z, method)
        assert (certificate.diagnostics[WEYL] == 1).all()
        assert (certificate.radius < plain.certify(z, method).radius).any()
        assert (confirm(many, z, certificate).diagnostics[WEYL] == 1).all()
    assert not by_weyl(many, "exact")
    assert WEYL not in many.certify(z).diagnostics
