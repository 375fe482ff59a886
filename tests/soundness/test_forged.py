from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest
import torch

from ellips.certificates import METHODS, check, checked_scope, confirm
from ellips.certificates.multipliers import find_multipliers
from ellips.input_certifiers import Chain, SmoothedEncoder
from ellips.types import LipschitzBound
from tests.soundness.forged import FORGERIES, Forgery, carried, claim, corrected, honest, sampled, smuggled
from tests.soundness.generators import DEAR, GENERATORS, make_case


def test_there_are_enough_forgeries() -> None:
    assert len(FORGERIES) >= 40


@pytest.mark.parametrize("name", FORGERIES)
def test_forged_certificates_are_refused(name: str) -> None:
    ellips, z, certificate = FORGERIES[name]()
    assert len(z) > 0
    if not bool((certificate.radius >= 0).all()):  # no certificate at all
        with pytest.raises(ValueError, match="`radius`"):
            check(ellips, z, certificate)
        return
    assert not check(ellips, z, certificate).any()


@pytest.mark.parametrize("rivals", ["all", "named"])
def test_numbers_of_other_types_are_refused(rivals: Literal["all", "named"]) -> None:
    ellips, z, certificate = honest()
    # To torch, bytes that index are a mask: row i would be proven against class i.
    for dtype in (torch.uint8, torch.int8, torch.int32, torch.bool, torch.float64):
        for name in ("prediction", "rival"):
            forged = smuggled(Forgery(ellips, z, certificate), **{name: getattr(certificate, name).to(dtype)})
            with pytest.raises(ValueError, match=f"`{name}` to be int64 but got {dtype}"):
                check(*forged, rivals=rivals)
            with pytest.raises(ValueError, match=f"`{name}` to be int64 but got {dtype}"):
                confirm(*forged)
    # The next integer is no float64, and would be rounded down to one.
    far = claim(0, 1, 2.0**53, 1.0)
    above = replace(far, radius=torch.tensor([2**53 + 1]))
    with pytest.raises(ValueError, match=r"`radius` to be floating point but got torch\.int64"):
        check(ellips, z[:1], above, rivals=rivals)
    whole = replace(sampled().certificate, diagnostics={"latent_error": torch.zeros(8).long()})
    with pytest.raises(ValueError, match="`latent_error` to be floating point"):
        check(ellips, z, whole)


@pytest.mark.parametrize("name", [name for name in GENERATORS if name != "vast"])
def test_honest_latent_certificates_pass(name: str) -> None:
    seeds = 2 if name in DEAR else 25
    for seed in range(seeds):
        ellips, z = make_case(name, seed, 12)
        for method in METHODS:
            certificate = ellips.certify(z, method)
            passed = check(ellips, z, certificate)
            # What may fail is the prediction at a tie up to rounding, where another class wins in exact arithmetic.
            claimed = certificate.radius > 0
            assert passed[claimed].all()
            if name not in ("near_ties", "far_points"):
                assert passed.all()


@pytest.mark.parametrize(
    "name", [name for name in GENERATORS if name not in ("near_ties", "many_classes", "broad", "vast")]
)
def test_honest_certificates_in_input_space_pass(name: str) -> None:
    for seed in range(10):
        ellips, z = make_case(name, seed, 12)
        certificate = ellips.certify(z)
        size = torch.ones(len(z), dtype=torch.float64)
        unit = float(ellips.scale)
        for constant, ball, error in (
            (2.0, 0.3 * unit, 0.0),
            (1 / 3, torch.inf, 1e-9),
            (0.0, 1.0, 0.1),
            (torch.inf, 1, 0),
        ):
            bound = LipschitzBound(size * constant, size * ball, "deterministic", "by hand", {})
            assert check(ellips, z, certificate.less(size * error * unit).to_input(bound)).all()


def test_abstentions_of_smoothed_encoders_pass() -> None:
    ellips, z, certificate = carried("probabilistic")
    rows = torch.arange(len(z)) % 2 == 0
    abstaining = replace(
        certificate,
        prediction=certificate.prediction.masked_fill(rows, -1),
        radius=certificate.radius.masked_fill(rows, 0.0),
        latent_radius=certificate.latent_radius.masked_fill(rows, 0.0),
    )
    assert check(ellips, z, abstaining).all()
    assert "sampled means" in checked_scope(abstaining)


def test_a_smoothed_encoder_is_checked_at_its_sampled_means() -> None:
    ellips = honest(dim=3).ellips
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(6, 1, 1, 3, generator=generator)
    smoothing = SmoothedEncoder(sigma=0.3, num_samples=40_000, norm_bound=1.0)
    chain = Chain(lambda x: 4 * (x.flatten(1) - 0.5), ellips)
    latents = chain.latents(images)
    with pytest.warns(UserWarning, match="Projection"):
        certificate = smoothing.certify(chain, images, latents, ellips.certify(latents))
    means = smoothing.smooth(chain.latents, images).mean
    assert check(ellips, means, certificate).all()
    assert (certificate.prediction >= 0).any()


@pytest.mark.parametrize("name", [name for name in GENERATORS if name not in (*DEAR, "vast")])
def test_honest_certificates_less_an_error_pass(name: str) -> None:
    for seed in range(8):
        ellips, z = make_case(name, seed, 12)
        certificate = confirm(ellips, z, ellips.certify(z))
        unit = certificate.radius.nan_to_num(posinf=1.0)
        for share in (0.0, 1e-300, 1e-17, 1e-9, 1 / 3, 0.999999, 1 - 2.0**-52, 1.0, 2.0, torch.inf):
            error = (share * unit).nan_to_num(nan=0.0, posinf=torch.inf)
            bound = LipschitzBound(
                0 * unit + 2.0, 0 * unit + torch.inf, "probabilistic", "by hand", {"latent_error": error}
            )
            carried_on = certificate.less(error).to_input(bound)
            assert check(ellips, z, carried_on).all()
            again = confirm(ellips, z, carried_on)
            assert torch.equal(again.radius, carried_on.radius)


def test_true_certificates_with_errors_and_corrections_pass() -> None:
    for make in (sampled(), sampled("deterministic"), corrected()):
        assert check(*make).all()
        assert (confirm(*make).diagnostics["lowered"] == 0).all()
        assert (confirm(*make).diagnostics["corrected"] == 0).all()


def test_margins_have_nothing_that_could_be_checked() -> None:
    ellips, z, certificate = carried("estimated")
    margin = replace(certificate, method="margin")
    assert checked_scope(margin).startswith("Nothing")
    with pytest.raises(ValueError, match="no latent part"):
        check(ellips, z, margin)
    with pytest.raises(ValueError, match="no latent part"):
        confirm(ellips, z, margin)


def test_flushed_subnormals_are_refused_with_the_cure() -> None:
    ellips, z, certificate = honest()
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormal numbers")
    try:
        with pytest.raises(RuntimeError, match="set_flush_denormal"):
            check(ellips, z, certificate)
    finally:
        torch.set_flush_denormal(False)


def test_a_rival_that_is_not_the_nearest_may_be_named_if_it_is_proven_too() -> None:
    ellips, z, certificate = honest(seed=2)
    step = 1 + ((certificate.rival + 1) % 4 == certificate.prediction).long()
    other = (certificate.rival + step) % 4
    rows = torch.arange(len(z))
    found = find_multipliers(ellips, z, certificate.prediction, rows, other, certificate.radius)
    assert check(ellips, z, replace(certificate, rival=other, multiplier=found)).all()
    assert not check(ellips, z, replace(certificate, rival=other, multiplier=1e-9 * found)).any()
    assert check(ellips, z, certificate, rivals="named").all()


def test_the_scope_is_said() -> None:
    assert checked_scope(honest().certificate) == "The whole claim: the prediction, and the radius against every rival."
    for soundness in ("deterministic", "estimated"):
        said = checked_scope(carried(soundness).certificate)
        assert "not that the constant bounds the encoder" in said
        assert "taken off" not in said
    assert "with the error that was taken off it" in checked_scope(sampled().certificate)
