"""How far the solvers' ‖β‖ may exceed ‖b‖: closed forms add as much, and never come out above the exact radius."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from ellips.certificates.geometries import geometry_of
from tests.soundness.generators import Draw
from tests.soundness.rationals import dot, exact, gram, length, matrix, number, two_classes


@pytest.mark.parametrize("kind", ["full", "diagonal"])
def test_what_is_added_to_each_pull_is_within_the_slack(kind: str) -> None:
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
