from __future__ import annotations

from dataclasses import replace

import torch

from ellips.certificates import check, confirm
from tests.soundness.claims import run
from tests.soundness.forged import FORGERIES, carried, changed, honest
from tests.soundness.generators import make_case


def test_a_thousand_claims_are_confirmed_or_lowered_and_none_is_above_the_truth() -> None:
    found = run(1000, every=10, first_seed=9000)
    total = found["total"]
    assert total["claims"] >= 1000
    assert total["compared"] >= 20
    assert total["above_the_truth"] == 0
    assert total["not_proven_again"] == 0
    assert found["share_as_they_are"] > 0.98
    assert (
        total["unconfirmed"]
        == found["groups"]["near_ties"]["unconfirmed"] + found["groups"]["far_points"]["unconfirmed"]
    )


def test_what_is_true_is_left_alone() -> None:
    ellips, z, certificate = honest()
    confirmed = confirm(ellips, z, certificate)
    for name, value in certificate.tensors().items():
        assert torch.equal(value, confirmed.tensors()[name])
    assert (confirmed.diagnostics["lowered"] == 0).all()
    assert (confirmed.diagnostics["confirmed"] == 1).all()


def test_what_is_too_large_is_lowered_until_it_is_true() -> None:
    ellips, z, certificate = honest()
    for factor in (1 + 1e-9, 1.001, 1.5, 20.0):
        forged = replace(certificate, radius=certificate.radius * factor)
        confirmed = confirm(ellips, z, forged)
        assert check(ellips, z, confirmed).all()
        assert (confirmed.radius > 0.4 * certificate.radius).all()
        assert (confirmed.radius <= certificate.radius * (1 + 1e-12)).all()
        torch.testing.assert_close(forged.radius * (1 - confirmed.diagnostics["lowered"]), confirmed.radius)


def test_infinite_radii_that_are_none_become_finite() -> None:
    ellips, z, certificate = honest()
    confirmed = confirm(ellips, z, replace(certificate, radius=certificate.radius * torch.inf))
    assert check(ellips, z, confirmed).all()
    assert confirmed.radius.isfinite().all()
    assert (confirmed.diagnostics["lowered"] == 1).all()


def test_a_multiplier_that_proves_nothing_is_replaced() -> None:
    make = changed(honest(), multiplier=torch.nan)
    confirmed = confirm(*make)
    assert check(make.ellips, make.z, confirmed).all()
    assert (confirmed.diagnostics["lowered"] == 0).all()


def test_a_wrong_prediction_ends_with_radius_zero_and_unconfirmed() -> None:
    ellips, z, certificate = FORGERIES["prediction_and_rival_exchanged"]()
    confirmed = confirm(ellips, z, certificate)
    assert (confirmed.radius == 0).all()
    assert (confirmed.diagnostics["confirmed"] == 0).all()
    assert (confirmed.diagnostics["lowered"] == 1).all()


def test_no_forgery_survives_confirmation() -> None:
    for name, make in FORGERIES.items():
        ellips, z, certificate = make()
        if not bool((certificate.radius >= 0).all()) or (certificate.space == "input" and None in (
            certificate.latent_radius, certificate.lipschitz, certificate.ball_radius
        )):  # fmt: skip
            continue
        confirmed = confirm(ellips, z, certificate)
        proven = check(ellips, z, confirmed)
        assert torch.equal(proven, confirmed.diagnostics["confirmed"] == 1), name
        assert (confirmed.radius[~proven] == 0).all(), name
        assert (confirmed.radius <= certificate.radius).all(), name


def test_input_radii_follow_the_latent_ones() -> None:
    make = carried()
    assert (confirm(*make).diagnostics["lowered"] == 0).all()
    latent = make.certificate.latent_radius
    assert latent is not None
    forged = changed(make, latent_radius=latent * 2, radius=make.certificate.radius * 2)
    confirmed = confirm(*forged)
    assert check(make.ellips, make.z, confirmed).all()
    assert confirmed.latent_radius is not None
    assert (confirmed.radius <= make.certificate.radius * (1 + 1e-12)).all()
    assert (confirmed.radius > 0.4 * make.certificate.radius).all()


def test_no_claims_give_no_claims() -> None:
    ellips, z = make_case("usual", 1, 3)
    assert len(confirm(ellips, z[:0], ellips.certify(z[:0]))) == 0
