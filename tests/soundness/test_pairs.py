"""Pairs of classes: errors of their spectra in many dimensions, and what is solved at a time."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from ellips import Ellips
from ellips.certificates import pairs as pairs_module
from ellips.certificates.geometries import geometry_of
from ellips.certificates.pairs import FactoredPairs
from tests.soundness.generators import Draw
from tests.soundness.rationals import dot, exact, gamma, gram, length, matrix, number, two_classes


@pytest.mark.parametrize("kind", ["full", "diagonal"])
def test_what_is_added_to_each_pull_is_within_the_slack(kind: str) -> None:
    """Closed forms add as much to ‖b‖ as the solvers' ‖β‖ may exceed it, and never come out above the exact radius."""
    near = 0
    for seed in range(120):
        draw = Draw(seed)
        ellips, z = two_classes(draw, draw.integer(1, 6), kind)
        if seed % 3 == 0:
            z = ellips.means.mean(0, keepdim=True)
        geometry = geometry_of(ellips)
        x, pulls = z - geometry.center, []
        for k in range(2):
            away = [p - q for p, q in zip(exact(z[0]), exact(ellips.means[k]), strict=True)]
            pulls.append([dot(row, away) for row in gram(matrix(ellips.factors[k]))])
        b = length([p - q for p, q in zip(*pulls, strict=True)])
        for own, rival in ((0, 1), (1, 0)):
            pair = torch.tensor([own]), torch.tensor([rival])
            problems, _ = geometry.pairs.problems(x, torch.tensor([0]), torch.ones(1).double(), *pair)
            beta = length([Fraction(v) for v in problems.coefficients[0].sqrt().tolist()])
            slack = number(geometry.pairs.coefficient_slack(x.norm(dim=1), *pair)[0])
            assert b <= beta * (1 + Fraction(1, 2**50))
            assert 0 <= slack
            assert beta <= (b + slack) * (1 + Fraction(1, 2**48)) + Fraction(1, 2**470)
            near += beta > b + slack / 16 > b
    assert near > 20


@pytest.mark.parametrize("kind", ["any", "one direction", "round"])
@pytest.mark.parametrize("far", [0, 1, 2])
@pytest.mark.parametrize("dim", [1, 2, 3, 5, 16, 100, 256])
def test_in_many_dimensions_errors_are_what_theory_asks_for(dim: int, far: int, kind: str) -> None:
    """The most that sums of so many terms may be off, in float64; one of three classes is far away."""
    draw, ellips = Draw(dim), Ellips(3, dim)
    ellips.precision_factors.copy_(draw.normal(3, dim, dim).tril() / dim**0.5)
    ellips.precision_factors[far] *= 4
    ellips.means.copy_(draw.normal(3, dim))
    if kind == "one direction":  # of which all norms are, and along which the means lie
        ellips.precision_factors[:, :-1] *= 1e-6
        ellips.means[:] = ellips.precision_factors[far, -1] * torch.tensor([1.0, 2.0, -1.0])[:, None]
    elif kind == "round":  # all eigenvalues of W are one
        ellips.precision_factors *= 1e-6
        ellips.precision_factors[far] = 2 * torch.eye(dim)
    ellips.means[far] *= 32
    ellips.fitted.fill_(True)
    geometry, less = geometry_of(ellips), 1 - 1e-9
    for low, high in ((0, 1), (0, 2), (1, 2)):
        pair = torch.tensor([low]), torch.tensor([high])
        found = geometry.pairs._decompose(*pair)
        a, b = (ellips.factors[k] for k in (high, low))
        curvature = a.mT @ a - b.mT @ b
        values, vectors = torch.linalg.eigh(curvature)
        largest, power = float(values.abs().amax()), float(geometry.factor_norms[[low, high]].square().sum())
        lacking = float((vectors.mT @ vectors - torch.eye(dim).double()).norm()) + float(gamma(dim)) * dim
        residual = float((curvature - (vectors * values) @ vectors.mT).norm())
        # AᵀA twice, and QΛQᵀ, each entry a sum of so many terms; Q is off by what its columns lack, twice.
        asked = residual + float(gamma(dim + 1)) * (power + dim**0.5 * largest) + 2 * lacking * largest
        error, gain, shift = (float(v[0]) for v in (found.error, found.gain_error, found.shift_error))
        assert error >= less * asked
        assert gain >= less * (error + lacking * largest + float(gamma(dim + 1)) * float(values.norm()))
        sizes = geometry.factor_norms.square() * geometry.mean_norms
        pulls = [ellips.factors[k].mT @ (ellips.factors[k] @ geometry.offsets_from_center[k]) for k in (low, high)]
        turned = float(gamma(dim + 1)) * dim**0.5 * float((pulls[1] - pulls[0]).norm())
        assert shift >= less * (float(gamma(2 * dim + 3)) * float(sizes[[low, high]].sum()) + turned)
        slack = float(geometry.pairs.coefficient_slack(torch.tensor(3.0).double(), *pair))
        assert slack >= less * dim**0.5 * (3 * gain + shift)


@pytest.mark.parametrize("most", [1, 2, 3, 5, 10, 100])
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_every_problem_is_in_one_portion_of_no_more_pairs_than_are_kept(
    most: int, classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    geometry = geometry_of(two_classes(Draw(0), 2, "full")[0])
    monkeypatch.setattr(type(geometry), "num_classes", classes)
    monkeypatch.setattr(pairs_module, "_KEPT_ELEMENTS", 4 * most)
    factors, draw = torch.eye(2).double().expand(classes, 2, 2), Draw(most)
    pairs = FactoredPairs(geometry, factors)
    prediction = torch.tensor([draw.integer(0, classes - 1) for _ in range(60)])
    rival = (prediction + torch.tensor([draw.integer(1, classes - 1) for _ in range(60)])) % classes
    portions = pairs.portions(prediction, rival)
    assert torch.cat(portions).sort()[0].tolist() == list(range(60))
    for rows in portions:
        found = {frozenset(pair) for pair in zip(prediction[rows].tolist(), rival[rows].tolist(), strict=True)}
        assert len(found) <= most or classes * (classes - 1) // 2 <= most
    assert (len(portions) == 1) == (classes * (classes - 1) // 2 <= most)
