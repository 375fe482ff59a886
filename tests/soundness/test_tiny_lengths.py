"""Classes that are almost at one place: lengths whose squares are no numbers any more must not be taken for none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ellips import Ellips
from ellips.certificates import METHODS, Method, check
from ellips.certificates.geometry import Geometry

KINDS = ("full", "diagonal", "low_rank")
OF_ONE_SHAPE = (*KINDS, "pooled")


def mixture(kind: str, means: list[list[float]], variances: list[float], priors: Tensor) -> Ellips:
    """Classes with means in the plane, of which the last has variances of its own along the first axis."""
    centers = torch.tensor(means, dtype=torch.float64)
    widths = torch.ones_like(centers)
    widths[:, 0] = torch.tensor(variances, dtype=torch.float64)
    if kind == "pooled":
        none = torch.zeros(len(centers), 0, 2, dtype=torch.float64)
        return Ellips.from_low_rank(centers, widths[0].diag(), none, none[..., 0], priors)
    if kind == "low_rank":
        axis = torch.eye(2, dtype=torch.float64)[:1].expand(len(centers), 1, 2)
        return Ellips.from_low_rank(centers, torch.eye(2, dtype=torch.float64), axis, widths[:, :1] - 1, priors)
    return Ellips.from_parameters(centers, widths if kind == "diagonal" else torch.diag_embed(widths), priors)


def two_priors(share: float) -> Tensor:
    return torch.tensor([share, 1 - share], dtype=torch.float64)


@pytest.mark.parametrize("affordable", [True, False])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", OF_ONE_SHAPE)
@pytest.mark.parametrize("apart", [1e-100, 2.0**-480, 1e-150, 1e-170, 5e-324])
def test_a_boundary_that_is_very_far_away_is_there(
    kind: str, method: Method, apart: float, affordable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Geometry, "affordable", affordable)
    ellips = mixture(kind, [[0.0, 0.0], [apart, 0.0]], [1.0, 1.0], two_priors(0.6))
    z = torch.zeros(1, 2, dtype=torch.float64)
    found = ellips.certify(z, method)
    margin = 2 * float(ellips.log_priors[0] - ellips.log_priors[1])
    assert float(found.radius) <= margin / 2 / apart  # infinite where float64 has no such number
    if affordable or method == "exact":  # else by Weyl's inequality
        assert float(found.radius) > min(1e140, 0.1 * margin / apart)
    assert check(ellips, z, found).all()


@pytest.mark.parametrize("kind", KINDS)
def test_along_a_direction_in_which_classes_are_all_but_one_the_boundary_is_there(kind: str) -> None:
    # In the plane's first direction the rival's Gaussian is narrower, in the second they differ by next to nothing.
    ellips = mixture(kind, [[0.0, 0.0], [0.0, 1e-170]], [4.0, 1.0], two_priors(0.99))
    z = torch.zeros(1, 2, dtype=torch.float64)
    assert float(ellips(z)[0, 0]) > float(ellips(z)[0, 1])  # the rival is nowhere above in the first direction
    for method in METHODS:
        found = ellips.certify(z, method)
        assert found.radius.isfinite().all()
        assert check(ellips, z, found).all()


def test_a_curvature_that_is_no_number_is_there() -> None:
    """W is −3e-340 along the second axis, which no number is: the boundary is 1e170 away."""
    ellips = Ellips(2, 2, covariance_type="diagonal")
    ellips.precision_factors.copy_(torch.tensor([[1.0, 2e-170], [1.0, 1e-170]], dtype=torch.float64))
    ellips.log_priors.copy_(two_priors(0.8).log())
    ellips.fitted.fill_(True)
    for method in METHODS:
        found = ellips.certify(torch.zeros(1, 2, dtype=torch.float64), method)
        assert found.prediction == 0
        assert found.radius.isfinite()
        assert found.radius > 0


@pytest.mark.parametrize("kind", OF_ONE_SHAPE)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("unit", [1.0, 0.25])
def test_what_float32_cannot_square_is_no_reason_to_leave_a_rival_out(kind: str, method: Method, unit: float) -> None:
    apart, far = 2e-23, 1e12
    means = [[far, 0.0], [-far, 0.0], [0.0, 0.0], [apart, apart]]
    priors = torch.tensor([1.0, 1.0, 1 + 1e-12, 1 - 1e-12], dtype=torch.float64) / 4
    ellips = mixture(kind, means, [1.0] * 4, priors)
    ellips.means.mul_(unit)
    ellips.precision_factors.div_(unit)
    z = torch.zeros(1, 2, dtype=torch.float64)
    found = ellips.certify(z, method)
    truth = unit * float(ellips.log_priors[2] - ellips.log_priors[3]) / (2**0.5 * apart)
    assert float(found.radius) <= truth * (1 + 1e-9)
    assert check(ellips, z, found).all()


@pytest.mark.parametrize("kind", OF_ONE_SHAPE)
def test_classes_of_one_shape_at_one_place_are_still_never_left(kind: str) -> None:
    ellips = mixture(kind, [[1.0, 2.0], [1.0, 2.0]], [3.0, 3.0], two_priors(0.6))
    z = torch.tensor([[0.0, 7.0], [1.0, 2.0]], dtype=torch.float64)
    found = ellips.certify(z)
    assert found.radius.isinf().all()
    assert check(ellips, z, found).all()


def test_a_radius_whose_square_is_no_number_is_not_infinite() -> None:
    # Log-priors that nobody fits: the margin is 1e13, and the boundary 2^-490 away of being nowhere.
    ellips = mixture("full", [[0.0, 0.0], [2.0**-475, 0.0]], [1.0, 1.0], two_priors(0.6))
    ellips.log_priors[1] = -1e13
    z = torch.zeros(1, 2, dtype=torch.float64)
    for method in METHODS:
        found = ellips.certify(z, method)
        assert float(found.radius) <= 1e13 * 2.0**475


def test_a_rival_whose_squared_distance_is_no_number_is_not_left_out_beside_one_that_is_never_reached() -> None:
    ellips = mixture("full", [[0.0, 0.0], [0.0, 0.0], [2.0**-475, 0.0]], [1.0] * 3, two_priors(0.6).repeat(2)[:3] / 1.6)
    ellips.log_priors[2] = -1e13
    found = ellips.certify(torch.zeros(1, 2, dtype=torch.float64))
    assert float(found.radius) <= 1e13 * 2.0**475
