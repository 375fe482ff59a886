"""The ball arithmetic that claims in many dimensions are held against is held against 120 digits itself."""

from __future__ import annotations

import pytest
from mpmath import mp, mpf

from ellips.certificates import confirm
from tests.ellips.mixtures import random_mixture, random_points
from tests.soundness.enclosures import enclosed_distance
from tests.soundness.generators import make_case
from tests.soundness.oracle import nearest_distance


def number(ball: object) -> mpf:
    return mpf(ball.mid().str(70, radius=False))  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["usual", "conditioned", "low_dimension", "flat", "unreached"])
def test_the_distance_to_many_digits_lies_inside(name: str) -> None:
    enclosed = 0
    for seed in range(25):
        ellips, z = make_case(name, seed, 1)
        if ellips.dim > 8 or ellips.num_classes > 10:
            continue
        prediction = int(ellips.predict(z))
        found = enclosed_distance(ellips, z[0], prediction)
        truth = nearest_distance(ellips, z[0], prediction)
        if found is None:
            continue
        enclosed += 1
        with mp.workdps(60):
            slack = truth * mpf(10) ** -50  # of writing numbers down
            assert number(found.low) - slack <= truth <= number(found.high) + slack
            assert number(found.high) - number(found.low) < truth * mpf(10) ** -25
    assert enclosed >= 3


def test_radii_in_many_dimensions_and_among_many_classes_are_just_below() -> None:
    for classes, dim in ((3, 96), (60, 24)):
        ellips = random_mixture("full", classes, dim)
        z = random_points(ellips, 1)
        confirmed = confirm(ellips, z, ellips.certify(z))
        found = enclosed_distance(ellips, z[0], int(confirmed.prediction))
        assert found is not None
        assert found.low > float(confirmed.radius)
        assert found.high < float(confirmed.radius) * (1 + 1e-9)


def test_a_class_that_is_not_the_prediction_has_no_distance() -> None:
    ellips = random_mixture("full", 3, 12)
    z = random_points(ellips, 1)
    wrong = (int(ellips.predict(z)) + 1) % 3
    assert enclosed_distance(ellips, z[0], wrong) is None
