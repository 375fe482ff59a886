from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ellips import Ellips
from ellips.certificates import Certificate, check, confirm
from ellips.certificates.check import Prover
from ellips.certificates.multipliers import find_multipliers
from ellips.types import LipschitzBound
from tests.soundness.claims import run
from tests.soundness.forged import FORGERIES, carried, changed, honest
from tests.soundness.generators import make_case
from tests.soundness.oracle import exact_winner


def test_a_thousand_claims_are_confirmed_or_lowered_and_none_is_above_the_truth() -> None:
    found = run(1020, every=10, first_seed=9000)
    total = found["total"]
    assert total["claims"] >= 1000
    assert total["compared"] >= 20
    assert total["above_the_truth"] == 0
    assert total["not_proven_again"] == 0
    assert found["share_as_they_are"] > 0.98
    assert total["unconfirmed"] == 0


def test_what_is_true_is_left_alone() -> None:
    ellips, z, certificate = honest()
    confirmed = confirm(ellips, z, certificate)
    for name, value in certificate.tensors().items():
        assert torch.equal(value, confirmed.tensors()[name])
    assert (confirmed.diagnostics["lowered"] == 0).all()
    assert (confirmed.diagnostics["confirmed"] == 1).all()
    nothing = confirm(ellips, z, replace(certificate, radius=0 * certificate.radius))
    assert (nothing.radius == 0).all()
    assert (nothing.diagnostics["lowered"] == 0).all()
    assert (nothing.diagnostics["confirmed"] == 1).all()


def test_the_radius_of_a_rival_that_is_not_the_nearest_is_lowered() -> None:
    ellips, z, certificate = honest(seed=2)
    step = 1 + ((certificate.rival + 1) % 4 == certificate.prediction).long()
    other, far = (certificate.rival + step) % 4, 1.05 * certificate.radius
    found = find_multipliers(ellips, z, certificate.prediction, torch.arange(len(z)), other, far)
    forged = replace(certificate, rival=other, multiplier=found, radius=far)
    assert check(ellips, z, forged, rivals="named").any()  # so the named rival alone would not tell
    confirmed = confirm(ellips, z, forged)
    assert (confirmed.radius <= certificate.radius * (1 + 1e-12)).all()
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


def test_a_wrong_prediction_is_corrected_and_has_radius_zero() -> None:
    ellips, z, certificate = FORGERIES["prediction_and_rival_exchanged"]()
    confirmed = confirm(ellips, z, certificate)
    assert (confirmed.radius == 0).all()
    assert torch.equal(confirmed.prediction, ellips.predict(z))
    assert torch.equal(confirmed.rival, certificate.prediction)
    assert (confirmed.margin == 0).all()
    for name in ("lowered", "corrected", "confirmed"):
        assert (confirmed.diagnostics[name] == 1).all()


@pytest.mark.parametrize("number", [-1, 4])
def test_a_prediction_that_is_no_class_stays_unconfirmed(number: int) -> None:
    make = changed(honest(), prediction=number)
    confirmed = confirm(*make)
    assert (confirmed.prediction == number).all()
    assert (confirmed.radius == 0).all()
    assert (confirmed.diagnostics["confirmed"] == 0).all()


@pytest.mark.parametrize("number", [-1, 4])
def test_a_rival_that_is_no_class_proves_nothing(number: int) -> None:
    confirmed = confirm(*changed(honest(), rival=number))
    assert (confirmed.radius == 0).all()


def test_what_cannot_be_decided_stays_as_it_was_and_unconfirmed() -> None:
    make = FORGERIES["a_classifier_with_a_number_that_is_none"]()
    confirmed = confirm(*make)
    assert torch.equal(confirmed.prediction, make.certificate.prediction)
    assert (confirmed.radius == 0).all()
    for name in ("corrected", "confirmed"):
        assert (confirmed.diagnostics[name] == 0).all()


@pytest.mark.parametrize("name", ["near_ties", "exact_ties"])
def test_predictions_at_ties_are_those_of_exact_arithmetic(name: str) -> None:
    """Of the classes that no other is above, the one of the lowest index; by balls of 4,000 bits, not by the kernel."""
    still, corrected = 0, 0
    for seed in range(60):
        ellips, z = make_case(name, seed, 20)
        confirmed = confirm(ellips, z, ellips.certify(z))
        assert (confirmed.diagnostics["confirmed"] == 1).all()
        rows = (confirmed.radius == 0).nonzero().flatten()[:2].tolist()
        rows += (confirmed.diagnostics["corrected"] == 1).nonzero().flatten().tolist()
        for i in rows:
            assert int(confirmed.prediction[i]) == exact_winner(ellips, z[i])
        still += len(rows)
        corrected += int(confirmed.diagnostics["corrected"].sum())
    assert still > 3
    if name == "near_ties":
        assert corrected > 5


def test_a_level_score_goes_to_the_lowest_index() -> None:
    """Three classes alike to the last bit: whichever is claimed, the first one is the prediction."""
    one = torch.tensor([[0.1, -0.7]]).double()
    ellips = Ellips.from_parameters(one.expand(3, 2), torch.full((3, 2), 0.3), torch.full((3,), 1 / 3))
    z = torch.tensor([[0.4, 0.2]] * 3).double()
    zero = torch.zeros(3).double()
    given = Certificate(torch.tensor([0, 1, 2]), zero, torch.tensor([1, 2, 0]), zero, zero, "exact")
    confirmed = confirm(ellips, z, given)
    assert confirmed.prediction.tolist() == [0, 0, 0]
    assert confirmed.rival.tolist() == [1, 1, 2]
    assert confirmed.diagnostics["corrected"].tolist() == [0, 1, 1]
    assert check(ellips, z, given).all()  # nor is any class above those


def test_a_tie_that_cannot_be_decided_has_no_winner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[Prover.__module__], "margin_sign", lambda *_: None)
    ellips, z = make_case("exact_ties", 0, 20)
    level = ~check(ellips, z, ellips.certify(z))
    assert level.any()
    assert torch.equal(Prover(ellips).winners(z) == -1, level)


def test_margins_that_multipliers_are_proven_with_are_below_the_true_ones() -> None:
    ellips, z = make_case("near_ties", 0, 20)
    certificate = ellips.certify(z)
    low = Prover(ellips).named_margins(z, certificate.prediction, certificate.rival)
    close = certificate.margin < 1e-12 * (1 + ellips(z).abs().amax(1))
    assert close.any()
    assert (low[close] < certificate.margin[close]).all()


def test_whatever_is_proven_is_proven_with_lower_bounds_of_margins(monkeypatch: pytest.MonkeyPatch) -> None:
    ellips, z = make_case("near_ties", 0, 20)
    prover, proven = Prover(ellips), []
    far, unreached = prover._far_rivals(), prover.unreached
    certificate = replace(ellips.certify(z), radius=1e-30 * ellips.scale * torch.ones(len(z)))
    certificate = replace(certificate, multiplier=certificate.multiplier.float())
    _, scores, errors = prover._kernel.whiten(z)

    def lower(z_of: Tensor, prediction: Tensor) -> Tensor:
        rows = (z_of.unsqueeze(1) == z).all(2).long().argmax(1)
        return prover._kernel.margins(scores[rows], errors[rows], prediction)[0]

    def prove(z: Tensor, y: Tensor, prediction: Tensor, margin: Tensor, radius: Tensor) -> Tensor:
        other = torch.arange(ellips.num_classes) != prediction.unsqueeze(1)
        assert torch.equal(margin[other], lower(z, prediction)[other])
        return torch.zeros_like(margin, dtype=torch.bool)  # all of them are looked at one by one

    def one_by_one(z: Tensor, prediction: Tensor, rival: Tensor, margin: Tensor, *rest: Tensor) -> Tensor:
        assert torch.equal(margin, lower(z, prediction).gather(1, rival.unsqueeze(1)).squeeze(1))
        assert all(x.dtype == torch.float64 for x in (z, margin, *rest))  # squares in float32 would be wrong
        proven.append(unreached(z, prediction, rival, margin, *rest))
        return proven[-1]

    monkeypatch.setattr(far, "prove", prove)
    monkeypatch.setattr(prover, "unreached", one_by_one)
    prover.check(z, certificate)
    assert len(proven) == 2  # the named ones, and all others


def test_a_corrected_prediction_is_carried_to_the_image() -> None:
    for seed in range(100):
        ellips, z = make_case("near_ties", seed, 20)
        latent = confirm(ellips, z, ellips.certify(z))
        rows = latent.diagnostics["corrected"] == 1
        if not bool(rows.any()):
            continue
        size = torch.ones(len(z)).double()
        for constant in (2.0, 0.0, torch.inf):
            bound = LipschitzBound(constant * size, size, "deterministic", "by hand", {})
            for carried_on in (latent.to_input(bound), latent.less(1e-9 * size).to_input(bound)):
                assert torch.equal(carried_on.prediction, latent.prediction)
                assert (carried_on.radius[rows] == 0).all()
                assert check(ellips, z, carried_on).all()
        before = ellips.certify(z).to_input(LipschitzBound(2 * size, size, "estimated", "by hand", {}))
        after = confirm(ellips, z, before)
        assert torch.equal(after.prediction, latent.prediction)
        assert (after.diagnostics["confirmed"] == 1).all()
        return
    pytest.fail("no prediction was corrected")


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


@pytest.mark.parametrize("missing", ["latent_radius", "lipschitz", "ball_radius"])
def test_claims_on_the_image_need_what_they_follow_from(missing: str) -> None:
    ellips, z, certificate = carried("deterministic")
    with pytest.raises(ValueError, match="to have a latent radius, a constant and a ball"):
        confirm(ellips, z, replace(certificate, **{missing: None}))


def test_no_claims_give_no_claims() -> None:
    ellips, z = make_case("usual", 1, 3)
    assert len(confirm(ellips, z[:0], ellips.certify(z[:0]))) == 0
