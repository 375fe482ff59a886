"""Classes that float32 decides are those of float64, wherever a point lies and whatever the mixture is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ellips import Ellips
from ellips.certificates import decisions
from ellips.certificates.decisions import _NarrowScores
from ellips.certificates.geometries import geometry_of
from ellips.certificates.geometry import FactoredGeometry
from ellips.errors import NotFittedError
from ellips.gaussians import CovarianceType
from ellips.gaussians.structures import TILE_ROWS
from tests.ellips.mixtures import random_mixture, random_points

DIM = 70  # no multiple of the blocks


def conditioned(condition: float, seed: int = 0, classes: int = 3, dim: int = DIM, away: float = 0.0) -> Ellips:
    """Classes whose covariances have such a condition number, each turned its own way, so far from the origin."""
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(classes, dim, dim, dtype=torch.float64, generator=generator))[0]
    spectra = torch.logspace(0, -torch.tensor(condition).log10().item(), dim, dtype=torch.float64)
    covariances = (turn * spectra) @ turn.mT
    means = torch.randn(classes, dim, dtype=torch.float64, generator=generator) + away
    return Ellips.from_parameters(means, (covariances + covariances.mT) / 2, torch.full((classes,), 1 / classes))


def normal(points: int) -> Tensor:
    return torch.randn(points, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(points))


def near_boundary(ellips: Ellips, z: Tensor, steps: int) -> Tensor:
    """Points between neighbours of different classes, after so many bisections."""
    classes = ellips.predict(z)
    other = z.roll(1, 0)
    differ = classes != ellips.predict(other)
    inside, outside, classes = z[differ], other[differ], classes[differ]
    for _ in range(steps):
        middle = (inside + outside) / 2
        same = (ellips.predict(middle) == classes).unsqueeze(1)
        inside, outside = torch.where(same, middle, inside), torch.where(same, outside, middle)
    return torch.cat([inside, outside])


def narrow(ellips: Ellips, rows: int = TILE_ROWS) -> _NarrowScores:
    geometry = geometry_of(ellips)
    assert isinstance(geometry, FactoredGeometry)
    return _NarrowScores(geometry, rows)


@pytest.mark.parametrize("kind", ["isotropic", "shared", "spherical", "full"])
def test_float32_decides_most_points_and_just_as_float64(kind: str) -> None:
    ellips = random_mixture(kind, 20, DIM)  # more than are scored at a time
    z = random_points(ellips, 600)
    classes, clear = narrow(ellips).decide(z)
    assert clear.double().mean() > 0.95
    assert torch.equal(classes[clear], ellips.predict(z[clear]))
    assert decisions(ellips) != ellips.predict
    assert torch.equal(decisions(ellips)(z), ellips.predict(z))
    assert torch.equal(decisions(ellips)(z.float()), ellips.predict(z.float()))


@pytest.mark.parametrize("rows", [1024, 100, 2**20])
def test_how_many_points_and_classes_are_scored_at_a_time_changes_no_class(rows: int) -> None:
    ellips = random_mixture("full", 20, DIM)
    z = random_points(ellips, 600)
    scores = narrow(ellips, rows)
    assert len(scores._tiles) != len(narrow(ellips)._tiles)
    classes, clear = scores.decide(z)
    assert clear.double().mean() > 0.95
    assert torch.equal(classes[clear], ellips.predict(z[clear]))


@pytest.mark.parametrize("condition", [1.0, 1e4, 1e8, 1e12])
@pytest.mark.parametrize("away", [0.0, 1e4])
def test_scores_of_float32_are_off_by_no_more_than_their_bounds(condition: float, away: float) -> None:
    ellips = conditioned(condition, away=away)
    z = torch.cat([random_points(ellips, 50), ellips.means, 1e3 * normal(20) + away])
    scores = narrow(ellips)
    x = z - scores._geometry.center
    squares = scores._squares(x.float()).double()
    off = (squares - (scores._geometry.offsets - ellips(z))).abs()
    assert off.max() > 0
    assert (off <= scores._errors(squares, x.norm(dim=1, keepdim=True))).all()


@pytest.mark.parametrize("near", [1e-9, 1e-3, 1.0, 1e3])
@pytest.mark.parametrize("spread", [1e-3, 1.0])
@pytest.mark.parametrize("scale", [1e-24, 1.0, 1e24])
def test_bounds_are_what_theory_asks_for(near: float, spread: float, scale: float) -> None:
    unit, near = conditioned(1e2), near * scale
    ellips = Ellips.from_parameters(spread * scale * unit.means, scale**2 * unit.covariances, unit.priors)
    scores = narrow(ellips)
    geometry = scores._geometry
    # Where one class is near the centre of all, and where it is not.
    x = geometry.offsets_from_center[:1] + near * normal(40)
    away = [geometry.factors[k] @ (x - mean).mT for k, mean in enumerate(geometry.offsets_from_center)]
    squares = torch.stack([y.square().sum(0) for y in away], dim=1)
    u = 2.0**-24
    lengths = x.norm(dim=1, keepdim=True)
    lost = 2.0**-126 * DIM**0.5 * (DIM + lengths + geometry.factor_norms * DIM**0.5)
    slip = u * geometry.factor_norms * ((DIM + 3) * lengths + (DIM + 2) * geometry.mean_norms) + lost
    float64 = 2.0**-50 * DIM * (geometry.factor_norms * (lengths + geometry.mean_norms)).square()
    float64 = float64 + 2.0**-52 * (DIM + 4) * geometry.offset_sizes
    needed = (2 * squares.sqrt() + slip) * slip + u * (DIM + 1) * squares + 2.0**-126 * DIM + float64
    assert (scores._errors(squares, lengths) >= needed).all()


def test_factors_below_the_range_of_float32_lose_no_decision() -> None:
    unit = conditioned(10.0, seed=3)  # all determinants are equal: means this near to each other have boundaries
    ellips = Ellips.from_parameters(1e38 / 4 * unit.means, 1e82 * unit.covariances, unit.priors)
    z = near_boundary(ellips, ellips.means.repeat(20, 1) + 1e37 * normal(60), 6)
    classes, clear = narrow(ellips).decide(z)
    assert (classes != ellips.predict(z)).any()
    assert not (clear & (classes != ellips.predict(z))).any()
    assert torch.equal(decisions(ellips)(z), ellips.predict(z))


@pytest.mark.parametrize("condition", [1.0, 1e6, 1e10])
def test_near_a_boundary_where_float32_errs_float64_decides(condition: float) -> None:
    ellips = conditioned(condition, seed=1)
    for steps in (10, 25, 40):
        z = near_boundary(ellips, random_points(ellips, 100), steps)
        classes, clear = narrow(ellips).decide(z)
        expected = ellips.predict(z)
        assert torch.equal(classes[clear], expected[clear])
        assert torch.equal(decisions(ellips)(z), expected)
    assert not clear.any()
    assert (classes != expected).any()  # so that it is the bound which keeps them apart


def test_equal_classes_are_the_lowest_as_for_float64() -> None:
    one = conditioned(10.0, classes=2)
    means = one.means[[0, 0, 1]]
    ellips = Ellips.from_parameters(means, one.covariances[[0, 0, 1]], torch.tensor([0.3, 0.3, 0.4]))
    z = torch.cat([random_points(ellips, 50), means])
    assert torch.equal(decisions(ellips)(z), ellips.predict(z))
    assert not (ellips.predict(z) == 1).any()
    assert (ellips.predict(z) == 0).any()


@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e18, 1e30])
def test_numbers_that_float32_cannot_hold_are_left_to_float64(scale: float) -> None:
    unit = random_mixture("full", 3, DIM)
    ellips = Ellips.from_parameters(scale * unit.means, scale**2 * unit.covariances, unit.priors)
    z = scale * random_points(unit, 40)
    assert torch.equal(decisions(ellips)(z), ellips.predict(z))
    far = torch.cat([1e30 * z, 1e-30 * z, 0 * z])
    assert torch.equal(decisions(ellips)(far), ellips.predict(far))


def test_no_setting_around_them_makes_products_of_fewer_digits() -> None:
    ellips = conditioned(1e3, seed=2)
    z = near_boundary(ellips, random_points(ellips, 100), 8)
    expected = ellips.predict(z)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(decisions(ellips)(z), expected)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(("kind", "dim", "rank"), [("diagonal", DIM, None), ("low_rank", DIM, 2), ("full", 20, None)])
def test_what_float32_would_not_spare_is_predicted_as_it_is(kind: CovarianceType, dim: int, rank: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(90) % 3
    z = torch.randn(90, dim, generator=generator, dtype=torch.float64) + labels[:, None]
    ellips = Ellips(3, dim, covariance_type=kind, rank=rank, shrinkage=0.1).fit(z, labels)
    assert decisions(ellips) == ellips.predict


def test_a_mixture_that_scores_in_its_own_way_decides_so() -> None:
    class Reversed(Ellips):
        def forward(self, z: Tensor) -> Tensor:
            return -super().forward(z)

    plain = random_mixture("full", 3, DIM)
    own = Reversed(3, DIM)
    own.load_state_dict(plain.state_dict())
    z = random_points(plain, 50)
    assert torch.equal(decisions(own)(z), own.predict(z))
    assert not (decisions(own)(z) == plain.predict(z)).any()
    plain.forward = lambda z: -Ellips.forward(plain, z)  # type: ignore[method-assign]  # as a user may
    assert torch.equal(decisions(plain)(z), own.predict(z))


def test_latents_are_refused_as_predict_refuses_them() -> None:
    with pytest.raises(NotFittedError):
        decisions(Ellips(3, DIM))
    decide = decisions(conditioned(10.0))
    with pytest.raises(ValueError, match=f"width {DIM}|{DIM}"):
        decide(torch.zeros(2, DIM + 1))
    with pytest.raises(ValueError, match="finite"):
        decide(torch.full((2, DIM), torch.nan))
    assert decide(torch.zeros(0, DIM)).shape == (0,)
