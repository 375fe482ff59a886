"""Certificates that are false, or that prove nothing: each kind must be refused in every row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ellips import Ellips
from ellips.certificates import Certificate, confirm
from ellips.types import LipschitzBound, Soundness
from tests.ellips.mixtures import random_mixture, random_points
from tests.soundness.generators import make_case


class Forgery(NamedTuple):
    ellips: Ellips
    z: Tensor
    certificate: Certificate


FORGERIES: dict[str, Callable[[], Forgery]] = {}


def forgery(make: Callable[[], Forgery]) -> Callable[[], Forgery]:
    FORGERIES[make.__name__] = make
    return make


def honest(kind: str = "full", classes: int = 4, dim: int = 3, method: Any = "exact", seed: int = 0) -> Forgery:  # noqa: ANN401
    """Certificates of usual size, all true."""
    ellips = random_mixture(kind, classes, dim, seed)
    z = random_points(ellips, 60, seed)
    certificate = ellips.certify(z, method)
    rows = (certificate.radius.isfinite() & (certificate.radius > 1e-2)).nonzero().flatten()[:8]
    assert len(rows) == 8
    return Forgery(ellips, z[rows], certificate[rows])


def changed(make: Forgery, **tensors: Any) -> Forgery:
    """Replace fields; numbers are spread over the rows."""
    like = make.certificate.radius
    spread = {
        name: torch.full_like(getattr(make.certificate, name), value)
        if isinstance(value, int | float) and getattr(make.certificate, name) is not None
        else torch.full_like(like, value)
        if isinstance(value, int | float)
        else value
        for name, value in tensors.items()
    }
    return make._replace(certificate=replace(make.certificate, **spread))


def smuggled(make: Forgery, **tensors: Tensor) -> Forgery:
    """Set fields past the certificate's own checks."""
    copy = replace(make.certificate)
    for name, value in tensors.items():
        object.__setattr__(copy, name, value)
    return make._replace(certificate=copy)


def two(means: list[list[float]], covariances: list[list[float]], priors: list[float], full: bool) -> Ellips:
    variances = torch.tensor(covariances, dtype=torch.float64)
    stored = torch.diag_embed(variances) if full else variances
    return Ellips.from_parameters(torch.tensor(means, dtype=torch.float64), stored, torch.tensor(priors).double())


def claim(prediction: int, rival: int, radius: float, multiplier: float, margin: float = 1.0) -> Certificate:
    row = torch.tensor([radius], dtype=torch.float64)
    classes = torch.tensor([prediction]), torch.tensor([rival])
    return Certificate(classes[0], row, classes[1], 0 * row + margin, torch.full_like(row, multiplier), "exact")


def carried(soundness: Soundness = "deterministic", constant: float = 2.0, ball: float = 10.0) -> Forgery:
    """Certificates in input space, all true."""
    make = honest()
    size = make.certificate.radius
    bound = LipschitzBound(torch.full_like(size, constant), torch.full_like(size, ball), soundness, "by hand", {})
    return make._replace(certificate=make.certificate.to_input(bound))


# ------------------------------------------------------------------ the radius


@forgery
def a_stray_latent_radius_beside_a_huge_one() -> Forgery:
    make = honest()
    return changed(make, radius=1e9, latent_radius=make.certificate.radius)


@forgery
def a_stray_latent_radius_beside_a_larger_one() -> Forgery:
    make = honest()
    return changed(make, radius=make.certificate.radius * 1.01, latent_radius=make.certificate.radius)


@forgery
def a_stray_latent_radius_of_zero() -> Forgery:
    return changed(honest(), radius=5.0, latent_radius=0.0)


@forgery
def one_per_cent_too_much() -> Forgery:
    make = honest()
    return changed(make, radius=make.certificate.radius * 1.01)


@forgery
def a_millionth_too_much() -> Forgery:
    make = honest("diagonal")
    return changed(make, radius=make.certificate.radius * (1 + 1e-6))


@forgery
def a_billionth_too_much() -> Forgery:
    make = honest(dim=8, seed=3)
    return changed(make, radius=make.certificate.radius * (1 + 1e-9))


@forgery
def a_hyperplane_a_trillionth_too_far() -> Forgery:
    make = honest("isotropic", dim=2)
    return changed(make, radius=make.certificate.radius * (1 + 1e-12))


@forgery
def rounded_up_to_float32() -> Forgery:
    make = honest(seed=4)
    up = torch.nextafter(make.certificate.radius.float(), torch.tensor(torch.inf)).double()
    return changed(make, radius=up)


@forgery
def rounded_up_to_half_precision() -> Forgery:
    make = honest(seed=5)
    half = make.certificate.radius.half()
    up = torch.where(half.double() > make.certificate.radius, half, torch.nextafter(half, torch.tensor(9.0).half()))
    return changed(make, radius=up)


@forgery
def one_certificate_for_all_rows() -> Forgery:
    make = honest(seed=6)
    row = int(make.certificate.radius.argmax())
    others = torch.tensor([i for i in range(len(make.z)) if make.certificate.radius[i] < make.certificate.radius[row]])
    return Forgery(make.ellips, make.z[others], make.certificate[row : row + 1].map(lambda x: x.expand(len(others))))


@forgery
def infinite_with_its_own_multiplier() -> Forgery:
    return changed(honest(), radius=torch.inf)


@forgery
def infinite_with_an_infinite_multiplier() -> Forgery:
    return changed(honest(), radius=torch.inf, multiplier=torch.inf)


@forgery
def the_largest_number() -> Forgery:
    return changed(honest("spherical"), radius=1.7e308)


@forgery
def negative_and_smuggled() -> Forgery:
    make = honest()
    return smuggled(make, radius=-make.certificate.radius)


@forgery
def not_a_number_and_smuggled() -> Forgery:
    make = honest()
    return smuggled(make, radius=make.certificate.radius * torch.nan)


@forgery
def subnormal_at_a_tie() -> Forgery:
    ellips = two([[-1.0, 0.0], [1.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]], [0.5, 0.5], True)
    return Forgery(ellips, torch.tensor([[0.0, 5.0]]).double(), claim(0, 1, 5e-324, 1e-300, 0.0))


@forgery
def tiny_at_a_tie_of_diagonal_classes() -> Forgery:
    ellips = two([[-1.0, 0.0], [1.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]], [0.5, 0.5], False)
    return Forgery(ellips, torch.tensor([[0.0, 5.0]]).double(), claim(1, 0, 1e-300, 1e-300, 0.0))


@forgery
def a_radius_between_identical_classes() -> Forgery:
    ellips = two([[0.0, 1.0], [0.0, 1.0]], [[1.0, 2.0], [1.0, 2.0]], [0.5, 0.5], True)
    return Forgery(ellips, torch.tensor([[0.3, 5.0]]).double(), claim(0, 1, 1e-6, 1.0, 0.0))


@forgery
def infinite_between_identical_classes() -> Forgery:
    ellips = two([[0.0, 1.0], [0.0, 1.0]], [[1.0, 2.0], [1.0, 2.0]], [0.5, 0.5], False)
    return Forgery(ellips, torch.tensor([[0.3, 5.0]]).double(), claim(0, 1, torch.inf, torch.inf, 0.0))


@forgery
def infinite_for_the_rarer_of_two_alike() -> Forgery:
    ellips = two([[0.0, 1.0], [0.0, 1.0]], [[1.0, 2.0], [1.0, 2.0]], [0.4, 0.6], True)
    return Forgery(ellips, torch.tensor([[0.3, 5.0]]).double(), claim(0, 1, torch.inf, torch.inf, 1.0))


def _barely_reached(full: bool) -> Forgery:
    """λ_min(W) = −1e-13: the boundary is far away, but it is there."""
    ellips = two([[0.0, 0.0], [0.0, 0.0]], [[1.0, 4.0], [1.0, 1.0]], [0.6, 0.4], full)
    ellips.precision_factors[1] *= 1.0
    if full:
        ellips.precision_factors[1, 0, 0] = 1 - 5e-14
    else:
        ellips.precision_factors[1, 0] = 1 - 5e-14
    return Forgery(ellips, torch.zeros(1, 2).double(), claim(0, 1, torch.inf, torch.inf))


@forgery
def infinite_where_the_curvature_is_barely_negative() -> Forgery:
    return _barely_reached(True)


@forgery
def infinite_where_the_curvature_is_barely_negative_and_diagonal() -> Forgery:
    return _barely_reached(False)


@forgery
def infinite_where_means_differ_along_a_flat_direction() -> Forgery:
    ellips = two([[0.0, 0.0], [1e-9, 0.0]], [[1.0, 4.0], [1.0, 1.0]], [0.6, 0.4], False)
    return Forgery(ellips, torch.zeros(1, 2).double(), claim(0, 1, torch.inf, torch.inf))


@forgery
def the_hard_case_a_little_too_far() -> Forgery:
    ellips = two([[0.0, 0.0], [0.0, 1.0]], [[1.0, 1.0], [9.0, 1.0]], [0.5, 0.5], True)
    z = torch.tensor([[0.0, -0.3]]).double()
    make = Forgery(ellips, z, ellips.certify(z))
    return changed(make, radius=make.certificate.radius * (1 + 1e-9))


@forgery
def the_exact_radius_of_the_axis_in_the_hard_case() -> Forgery:
    # What a solver finds that takes b = 0 along the lowest eigenvector for no boundary there.
    ellips = two([[0.0, 0.0], [0.0, 1.0]], [[1.0, 1.0], [9.0, 1.0]], [0.5, 0.5], True)
    z = torch.tensor([[0.0, -0.3]]).double()
    return Forgery(ellips, z, claim(0, 1, 1.9, 1.1))


@forgery
def a_radius_of_a_class_that_stands_there_twice() -> Forgery:
    """Of the prediction there is a twin of the same prior, which no certificate of the other rivals knows."""
    make = honest("diagonal")
    ellips, certificate = make.ellips, make.certificate
    k = certificate.prediction.mode().values
    rows = certificate.prediction == k
    again = Ellips(5, 3, covariance_type="diagonal")
    for name in ("means", "precision_factors", "log_priors"):
        stored = getattr(ellips, name)
        setattr(again, name, torch.cat([stored, stored[k : k + 1]]))
    again.fitted.fill_(True)
    return Forgery(again, make.z[rows], certificate[rows])


@forgery
def the_nearest_of_many_classes_left_out() -> Forgery:
    """Of 1,100 classes all but one were looked at, and that one has the last index."""
    draw = torch.Generator().manual_seed(0)
    means = torch.randn(1100, 4, generator=draw, dtype=torch.float64) * 3
    means[-1] = means[0] + 0.5
    variances = torch.ones(1100, 4, dtype=torch.float64)
    whole = Ellips.from_parameters(means, variances, torch.full((1100,), 1 / 1100, dtype=torch.float64))
    some = Ellips.from_parameters(means[:-1], variances[:-1], torch.full((1099,), 1 / 1099, dtype=torch.float64))
    z = means[:1] - 0.05
    certificate = some.certify(z)
    assert float(certificate.radius) > 1.01 * float(whole.certify(z).radius)
    return Forgery(whole, z, certificate)


def _very_far(full: bool) -> Forgery:
    ellips = two([[0.0, 0.0], [1e-170, 0.0]], [[1.0, 1.0], [1.0, 1.0]], [0.6, 0.4], full)
    return Forgery(ellips, torch.zeros(1, 2).double(), claim(0, 1, torch.inf, torch.inf))


@forgery
def infinite_where_the_square_of_the_half_gradient_is_no_number() -> Forgery:
    return _very_far(True)


@forgery
def infinite_where_the_square_of_the_half_gradient_is_no_number_and_diagonal() -> Forgery:
    return _very_far(False)


# ------------------------------------------------------------------ covariances of low rank


def honest_low_rank(rank: int = 1, seed: int = 0) -> Forgery:
    """Certificates of a mixture of low rank, all true; of rank 0 all boundaries are hyperplanes."""
    draw = torch.Generator().manual_seed(seed)
    means = torch.randn(4, 3, generator=draw, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(4, 3, 3, generator=draw, dtype=torch.float64))[0]
    widths = torch.rand(4, rank, generator=draw, dtype=torch.float64) * 3 - 0.5
    eye, priors = torch.eye(3, dtype=torch.float64), torch.full((4,), 0.25, dtype=torch.float64)
    ellips = Ellips.from_low_rank(means, eye + 0.3, turn[:, :rank], widths, priors)
    z = random_points(ellips, 60, seed)
    certificate = ellips.certify(z)
    rows = (certificate.radius.isfinite() & (certificate.radius > 1e-2)).nonzero().flatten()[:8]
    assert len(rows) == 8
    return Forgery(ellips, z[rows], certificate[rows])


@forgery
def a_hyperplane_of_low_rank_a_billionth_too_far() -> Forgery:
    make = honest_low_rank(0)
    return changed(make, radius=make.certificate.radius * (1 + 1e-9))


@forgery
def a_radius_of_low_rank_a_millionth_too_large() -> Forgery:
    make = honest_low_rank(2)
    return changed(make, radius=make.certificate.radius * (1 + 1e-6))


@forgery
def a_radius_of_low_rank_as_if_no_class_had_directions() -> Forgery:
    make = honest_low_rank(1, seed=1)
    plain = Ellips(4, 3, covariance_type="low_rank", rank=1)
    plain.load_state_dict(make.ellips.state_dict() | {"scales": torch.ones(4, 1, dtype=torch.float64)})
    found = plain.certify(make.z)
    rows = found.radius > make.ellips.certify(make.z).radius * 1.01
    return Forgery(make.ellips, make.z[rows], found[rows])


def _tampered(name: str, alter: Callable[[Tensor], Tensor]) -> Forgery:
    """Certificates of a mixture of low rank one of whose tensors is another now, where radii became smaller."""
    make = honest_low_rank(1)
    make.ellips.load_state_dict(make.ellips.state_dict() | {name: alter(getattr(make.ellips, name).clone())})
    rows = make.ellips.certify(make.z).radius < make.certificate.radius * (1 - 1e-9)
    return Forgery(make.ellips, make.z[rows], make.certificate[rows])


@forgery
def directions_of_another_class() -> Forgery:
    return _tampered("directions", lambda q: q.roll(1, 0))


@forgery
def directions_longer_than_one() -> Forgery:
    return _tampered("directions", lambda q: 1.5 * q)


@forgery
def a_common_factor_turned_upside_down() -> Forgery:
    return _tampered("precision_factors", lambda a: a.flip(0, 1).mT)


@forgery
def a_scale_of_zero() -> Forgery:
    make = honest_low_rank(1)
    make.ellips.scales[make.certificate.rival[0]] = 0.0
    rows = make.certificate.rival == make.certificate.rival[0]
    return Forgery(make.ellips, make.z[rows], make.certificate[rows])


# ------------------------------------------------------------------ the multiplier


@forgery
def a_multiplier_that_is_not_a_number() -> Forgery:
    return changed(honest(), multiplier=torch.nan)


@forgery
def an_infinite_multiplier() -> Forgery:
    return changed(honest(), multiplier=torch.inf)


@forgery
def a_negative_multiplier() -> Forgery:
    make = honest()
    return changed(make, multiplier=-make.certificate.multiplier)


@forgery
def a_multiplier_of_zero() -> Forgery:
    return changed(honest(), multiplier=0.0)


@forgery
def a_multiplier_of_minus_zero() -> Forgery:
    return changed(honest(), multiplier=-0.0)


@forgery
def a_subnormal_multiplier() -> Forgery:
    return changed(honest("diagonal"), multiplier=5e-324)


@forgery
def the_largest_multiplier() -> Forgery:
    return changed(honest(), multiplier=1.7e308)


@forgery
def a_multiplier_ten_per_cent_off() -> Forgery:
    make = honest()
    return changed(make, multiplier=make.certificate.multiplier * 1.1)


@forgery
def the_multipliers_of_other_rows() -> Forgery:
    make = honest()
    return changed(make, multiplier=make.certificate.multiplier.roll(1))


def _inadmissible(full: bool) -> Forgery:
    """Condition 1e13; at a t beyond −1/λ_min the dual function is huge, and bounds nothing."""
    ellips = two([[0.0, 0.0], [0.5, 0.0]], [[1.0, 1e-13], [2.0, 4e-13]], [0.5, 0.5], full)
    z = torch.tensor([[0.01, 1e-8]]).double()
    p, prediction = ellips.precisions, int(ellips.predict(z))
    rival = 1 - prediction
    w = p[rival] - p[prediction]
    b = p[rival] @ (z[0] - ellips.means[rival]) - p[prediction] @ (z[0] - ellips.means[prediction])
    margin = float(ellips(z)[0, prediction] - ellips(z)[0, rival])
    lowest = float(torch.linalg.eigvalsh(w)[0])
    for factor in (1.0001, 1.1, 2.0, 1e3, 1e6):
        t = -factor / lowest
        dual = t * margin - t * t * float(b @ torch.linalg.solve(torch.eye(2).double() + t * w, b))
        if dual > 4 * float(ellips.certify(z).radius) ** 2:
            return Forgery(ellips, z, claim(prediction, rival, dual**0.5, t, margin))
    raise AssertionError("no such multiplier")


@forgery
def an_inadmissible_multiplier_at_condition_1e13() -> Forgery:
    return _inadmissible(True)


@forgery
def an_inadmissible_multiplier_at_condition_1e13_and_diagonal() -> Forgery:
    return _inadmissible(False)


# ------------------------------------------------------------------ the classes


def _wrong(radius: float) -> Forgery:
    make = honest()
    prediction, rival = make.certificate.prediction, make.certificate.rival
    return changed(make, prediction=rival, rival=prediction, radius=radius)


@forgery
def the_wrong_class_with_radius_zero() -> Forgery:
    return _wrong(0.0)


@forgery
def the_wrong_class_with_a_radius_of_minus_zero() -> Forgery:
    return _wrong(-0.0)


@forgery
def the_wrong_class_with_a_subnormal_radius() -> Forgery:
    return _wrong(5e-324)


@forgery
def prediction_and_rival_exchanged() -> Forgery:
    make = honest("diagonal")
    return changed(make, prediction=make.certificate.rival, rival=make.certificate.prediction)


@forgery
def the_loser_of_a_tie_by_one_unit_in_the_last_place() -> Forgery:
    ellips = two([[-1.0, 0.0], [1.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]], [0.5, 0.5], True)
    return Forgery(ellips, torch.tensor([[-5e-324, 5.0]], dtype=torch.float64), claim(1, 0, 0.0, 0.0, 0.0))


@forgery
def the_loser_by_a_prior_one_unit_smaller() -> Forgery:
    ellips = two([[0.0, 1.0], [0.0, 1.0]], [[1.0, 2.0], [1.0, 2.0]], [0.5, 0.5], False)
    ellips.log_priors[0] = torch.nextafter(ellips.log_priors[0], torch.tensor(-torch.inf).double())
    return Forgery(ellips, torch.tensor([[7.0, 5.0]]).double(), claim(0, 1, 0.0, 0.0, 0.0))


@forgery
def a_farther_rival() -> Forgery:
    make = honest(classes=6, dim=3, seed=2)
    ellips, z, certificate = make
    rows = []
    for i in range(len(z)):
        rival = int(certificate.rival[i])
        keep = torch.tensor([k for k in range(6) if k != rival])
        others = Ellips.from_parameters(
            ellips.means[keep], ellips.covariances[keep], ellips.priors[keep] / ellips.priors[keep].sum()
        )
        found = others.certify(z[i : i + 1])
        rows.append(replace(found, prediction=keep[found.prediction], rival=keep[found.rival]))
    forged = Certificate.cat(rows)
    farther = forged.radius > certificate.radius * (1 + 1e-9)
    return Forgery(ellips, z[farther], forged[farther])


@forgery
def a_prediction_beyond_the_last_class() -> Forgery:
    return changed(honest(), prediction=4)


@forgery
def a_prediction_that_counts_from_the_end() -> Forgery:
    make = honest()
    return changed(make, prediction=make.certificate.prediction - 4)


@forgery
def a_prediction_of_minus_one_with_a_radius() -> Forgery:
    return changed(honest(), prediction=-1)


@forgery
def an_abstention_in_latent_space() -> Forgery:
    return changed(honest(), prediction=-1, radius=0.0)


@forgery
def a_rival_that_is_the_prediction() -> Forgery:
    make = honest()
    return changed(make, rival=make.certificate.prediction)


@forgery
def a_rival_that_counts_from_the_end() -> Forgery:
    make = honest()
    return changed(make, rival=make.certificate.rival - 4)


@forgery
def a_rival_beyond_the_last_class() -> Forgery:
    return changed(honest(), rival=4)


# ------------------------------------------------------------------ the point and the classifier


@forgery
def rows_exchanged() -> Forgery:
    make = honest()
    order = make.certificate.radius.argsort()
    lowest, highest = order[:4], order[4:]
    return Forgery(make.ellips, make.z[lowest], make.certificate[highest])


@forgery
def points_moved() -> Forgery:
    make = honest()
    b = make.ellips.half_gradient(make.z, make.certificate.prediction, make.certificate.rival)
    return make._replace(
        z=make.z - 0.1 * make.certificate.radius.unsqueeze(1) * torch.nn.functional.normalize(b, dim=1)
    )


@forgery
def of_another_classifier() -> Forgery:
    make = honest()
    other = random_mixture("full", 4, 3, seed=1)
    rows = other.certify(make.z).radius < make.certificate.radius * 0.99
    return Forgery(other, make.z[rows], make.certificate[rows])


def _altered(alter: Callable[[Ellips], None]) -> Forgery:
    """Certificates from before the classifier was changed, where the change made the radius smaller."""
    make = honest()
    fresh = Ellips(4, 3)
    fresh.load_state_dict(make.ellips.state_dict())
    alter(make.ellips)
    alter(fresh)
    rows = fresh.certify(make.z).radius < make.certificate.radius * (1 - 1e-9)
    assert bool(rows.any())
    return Forgery(make.ellips, make.z[rows], make.certificate[rows])


@forgery
def classes_in_another_order() -> Forgery:
    make = honest()
    for name in ("means", "precision_factors", "log_priors"):
        getattr(make.ellips, name).copy_(getattr(make.ellips, name).roll(1, 0).clone())
    return make


@forgery
def a_classifier_rounded_to_float32() -> Forgery:
    def alter(ellips: Ellips) -> None:
        for name in ("means", "precision_factors", "log_priors"):
            getattr(ellips, name).copy_(getattr(ellips, name).float().clone())

    return _altered(alter)


@forgery
def means_moved_through_data() -> Forgery:
    return _altered(lambda ellips: ellips.means.data.add_(0.1 * torch.arange(12).view(4, 3)))


@forgery
def factors_changed_through_numpy() -> Forgery:
    def alter(ellips: Ellips) -> None:
        ellips.precision_factors.numpy()[:] *= 1.01

    return _altered(alter)


@forgery
def priors_changed_through_data() -> Forgery:
    return _altered(lambda ellips: ellips.log_priors.data.copy_(torch.tensor([0.0, -1.0, -2.0, -0.5]).double()))


@forgery
def a_classifier_with_a_number_that_is_none() -> Forgery:
    make = honest()
    make.ellips.means[3, 1] = torch.nan
    return make


@forgery
def a_classifier_with_an_infinite_factor() -> Forgery:
    make = honest("diagonal")
    make.ellips.precision_factors[2, 1] = torch.inf
    return make


@forgery
def a_classifier_with_an_infinitely_likely_class() -> Forgery:
    make = honest(seed=5)
    make.ellips.log_priors[make.certificate.prediction] = torch.inf
    return changed(make, radius=torch.inf, multiplier=torch.inf)


@forgery
def a_singular_factor() -> Forgery:
    make = honest()
    make.ellips.precision_factors[make.certificate.rival[0], 2, 2] = 0.0
    rows = make.certificate.rival == make.certificate.rival[0]
    return Forgery(make.ellips, make.z[rows], make.certificate[rows])


@forgery
def points_at_1e200() -> Forgery:
    make = honest()
    return changed(make._replace(z=make.z * 1e200), radius=1.0)


@forgery
def points_at_1e160_and_infinite() -> Forgery:
    make = honest("diagonal")
    return changed(make._replace(z=make.z * 1e160), radius=torch.inf, multiplier=torch.inf)


# ------------------------------------------------------------------ other methods


@forgery
def a_pairwise_radius_too_large() -> Forgery:
    make = honest(method="pairwise")
    return changed(make, radius=make.ellips.certify(make.z).radius * (1 + 1e-7))


@forgery
def a_theorem_radius_with_its_multiplier_too_large() -> Forgery:
    make = honest(method="theorem")
    return changed(make, radius=make.certificate.radius * 3)


# ------------------------------------------------------------------ input space


@forgery
def an_input_radius_a_billionth_too_large() -> Forgery:
    make = carried()
    return changed(make, radius=make.certificate.radius * (1 + 1e-9))


@forgery
def an_input_radius_one_unit_too_large() -> Forgery:
    make = carried(constant=1.0)
    latent = make.certificate.latent_radius
    assert latent is not None
    return changed(make, radius=torch.nextafter(latent, torch.full_like(latent, torch.inf)))


@forgery
def an_input_radius_beyond_its_ball() -> Forgery:
    make = carried(ball=1e-3)
    return changed(make, radius=2e-3)


@forgery
def a_latent_radius_enlarged_with_the_input_radius() -> Forgery:
    make = carried()
    latent = make.certificate.latent_radius
    assert latent is not None
    return changed(make, radius=make.certificate.radius * 1.001, latent_radius=latent * 1.001)


@forgery
def nothing_left_of_the_latent_radius_but_a_constant_of_zero() -> Forgery:
    return changed(carried(), lipschitz=0.0, latent_radius=0.0, radius=0.1)


@forgery
def an_input_radius_of_one_from_hardly_any_latent_one() -> Forgery:
    return changed(carried(), latent_radius=1e-9, radius=1.0)


@forgery
def an_infinite_constant() -> Forgery:
    return changed(carried(), lipschitz=torch.inf)


@forgery
def a_constant_that_is_not_a_number() -> Forgery:
    return changed(carried(), lipschitz=torch.nan)


@forgery
def a_negative_constant() -> Forgery:
    return changed(carried(), lipschitz=-1.0)


@forgery
def a_ball_that_is_not_a_number() -> Forgery:
    return changed(carried(), ball_radius=torch.nan)


@forgery
def no_latent_radius_in_input_space() -> Forgery:
    return changed(carried(), latent_radius=None)


@forgery
def no_constant_in_input_space() -> Forgery:
    return changed(carried(), lipschitz=None)


@forgery
def an_infinite_input_radius_from_a_finite_latent_one() -> Forgery:
    return changed(carried(ball=torch.inf), radius=torch.inf)


@forgery
def a_constant_of_zero_beside_a_latent_radius_that_is_none() -> Forgery:
    make = carried(ball=torch.inf)
    latent = make.certificate.latent_radius
    assert latent is not None
    return changed(make, lipschitz=0.0, latent_radius=1.001 * latent, radius=torch.inf)


@forgery
def a_subnormal_constant_and_an_infinite_radius() -> Forgery:
    return changed(carried(ball=torch.inf), lipschitz=5e-324, radius=torch.inf)


@forgery
def a_product_that_is_no_number_any_more() -> Forgery:
    """Radius and constant are so small that float64 makes 0 of their product, and the latent radius is 0."""
    return changed(carried(), lipschitz=1e-200, radius=1e-200, latent_radius=0.0)


@forgery
def an_abstention_with_a_latent_radius() -> Forgery:
    return changed(carried("probabilistic"), prediction=-1, radius=0.0)


@forgery
def an_abstention_with_a_radius() -> Forgery:
    return changed(carried("probabilistic"), prediction=-1, radius=0.1, latent_radius=0.0)


@forgery
def an_abstention_of_a_deterministic_certificate() -> Forgery:
    return changed(carried("deterministic"), prediction=-1, radius=0.0, latent_radius=0.0)


# ------------------------------------------------------------------ errors of the latents


def sampled(soundness: Soundness = "probabilistic") -> Forgery:
    """Certificates in input space of latents that are known up to a tenth of their radii, all true."""
    make = honest()
    radius = make.certificate.radius
    size, error = torch.ones_like(radius), 0.1 * radius
    bound = LipschitzBound(2 * size, 100 * size, soundness, "by hand", {"latent_error": error})
    return make._replace(certificate=make.certificate.less(error).to_input(bound))


def with_error(make: Forgery, error: Tensor | float) -> Forgery:
    given = torch.as_tensor(error, dtype=torch.float64).expand_as(make.certificate.radius)
    return make._replace(certificate=replace(make.certificate, diagnostics={"latent_error": given.clone()}))


def _error(make: Forgery) -> Tensor:
    error = make.certificate.latent_error
    assert error is not None
    return error


@forgery
def an_error_that_was_not_taken_off() -> Forgery:
    make = sampled()
    radius = honest().certificate.radius
    return changed(make, latent_radius=radius, radius=radius * (0.5 - 1e-12))


@forgery
def an_error_taken_off_by_half() -> Forgery:
    make = sampled("deterministic")
    return with_error(make, 2 * _error(make))


@forgery
def an_error_a_billionth_too_small() -> Forgery:
    make = sampled()
    return with_error(make, _error(make) * (1 + 1e-8))


def _three_apart(latent_radius: float, error: float) -> Forgery:
    """The boundary of two classes is 1.5 from the mean of either."""
    ellips = two([[0.0, 0.0], [3.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]], [0.5, 0.5], False)
    one = torch.ones(1, dtype=torch.float64)
    bound = LipschitzBound(one, 10 * one, "deterministic", "by hand", {})
    z = torch.zeros(1, 2, dtype=torch.float64)
    certificate = ellips.certify(z).to_input(bound)
    return with_error(changed(Forgery(ellips, z, certificate), radius=1e-3, latent_radius=latent_radius), error)


@forgery
def a_latent_radius_of_one_less_an_error() -> Forgery:
    return _three_apart(1.0, 0.6)


@forgery
def a_latent_radius_less_an_error_of_one() -> Forgery:
    return _three_apart(0.6, 1.0)


@forgery
def a_negative_error() -> Forgery:
    return with_error(changed(sampled(), latent_radius=honest().certificate.radius * 1.5), -1.0)


@forgery
def a_negative_error_of_a_true_radius() -> Forgery:
    return with_error(sampled(), -1e-300)


@forgery
def an_error_that_is_not_a_number() -> Forgery:
    return with_error(sampled(), torch.nan)


@forgery
def an_infinite_error() -> Forgery:
    return with_error(sampled(), torch.inf)


@forgery
def a_mean_that_was_drawn_elsewhere() -> Forgery:
    """The mean moved by a twentieth of its radius towards the rival, which the radius does not allow for."""
    make = sampled()
    b = make.ellips.half_gradient(make.z, make.certificate.prediction, make.certificate.rival)
    step = 0.05 * honest().certificate.radius.unsqueeze(1) * torch.nn.functional.normalize(b, dim=1)
    return make._replace(z=make.z - step)


@forgery
def an_abstention_with_a_latent_radius_less_an_error() -> Forgery:
    return changed(sampled(), prediction=-1, radius=0.0)


# ------------------------------------------------------------------ corrected predictions


def corrected() -> Forgery:
    """Ties up to rounding where the kernel took another class than float64; all true."""
    for seed in range(100):
        ellips, z = make_case("near_ties", seed, 20)
        certificate = confirm(ellips, z, ellips.certify(z))
        rows = certificate.diagnostics["corrected"] == 1
        if bool(rows.any()):
            return Forgery(ellips, z[rows], certificate[rows])
    raise AssertionError("no prediction was corrected")


@forgery
def a_correction_undone() -> Forgery:
    make = corrected()
    return changed(make, prediction=make.certificate.rival, rival=make.certificate.prediction)


@forgery
def a_corrected_prediction_with_a_radius() -> Forgery:
    make = corrected()
    return changed(make, radius=float(make.ellips.scale) * 1e-3, multiplier=1.0)


@forgery
def a_corrected_prediction_never_reached() -> Forgery:
    return changed(corrected(), radius=torch.inf, multiplier=torch.inf)


@forgery
def a_correction_undone_on_the_image() -> Forgery:
    make = corrected()
    size = torch.ones_like(make.certificate.radius)
    bound = LipschitzBound(size, size, "deterministic", "by hand", {})
    undone = changed(make, prediction=make.certificate.rival, rival=make.certificate.prediction)
    return undone._replace(certificate=undone.certificate.to_input(bound))


@forgery
def a_correction_undone_beside_an_error() -> Forgery:
    make = a_correction_undone_on_the_image()
    return with_error(make, 0.1)


@forgery
def the_wrong_class_with_an_input_radius_of_zero() -> Forgery:
    make = carried()
    return changed(
        make, prediction=make.certificate.rival, rival=make.certificate.prediction, radius=0.0, latent_radius=0.0
    )
