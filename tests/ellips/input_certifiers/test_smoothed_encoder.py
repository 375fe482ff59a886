from __future__ import annotations

import math
import warnings
from dataclasses import replace
from fractions import Fraction

import mpmath
import pytest
import torch
from torch import Tensor, nn

from ellips import Ellips
from ellips.certificates import METHODS, Method, Prover, check
from ellips.input_certifiers import Chain, SmoothedEncoder
from ellips.input_certifiers.smoothed_encoder import mean_error
from tests.ellips.affine import ENCODERS, affine_encoder
from tests.ellips.input_certifiers.chains import Case, case


def linear_map(scale: float = 0.05) -> nn.Sequential:
    torch.manual_seed(0)
    function = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    with torch.no_grad():
        function[1].weight.mul_(scale)
        function[1].bias.zero_()
    return function.eval()


def gaussians(distance: float = 0.4) -> Ellips:
    means = distance * torch.tensor([[1.0, 0, 0], [-1.0, 0, 0]], dtype=torch.float64)
    return Ellips.from_parameters(means, torch.eye(3).expand(2, 3, 3).double() * 0.01, torch.tensor([0.5, 0.5]))


def constant_map(images: Tensor) -> Tensor:
    return torch.tensor([[0.3, 0.0, 0.0]]).expand(len(images), 3) + 0 * images.flatten(1).sum(1, keepdim=True)


@pytest.mark.parametrize("concentration", ["bernstein", "mcdiarmid"])
def test_the_true_mean_lies_in_the_ball(concentration: str) -> None:
    function, images = linear_map(), torch.rand(20, 1, 4, 4)
    source = SmoothedEncoder(sigma=0.5, num_samples=200, alpha=0.1, concentration=concentration)  # type: ignore[arg-type]
    smoothed = source.smooth(function, images)
    truth = function(images).double()  # a linear map of such small values never meets the ball's surface
    assert ((smoothed.mean - truth).norm(dim=1) <= smoothed.error).all()
    assert (smoothed.error < 0.5).all()


def test_the_failure_rate_stays_below_alpha() -> None:
    # Coin flips to the two ends of the ball: the largest variance there is.
    generator = torch.Generator().manual_seed(0)
    flips = 2.0 * torch.randint(0, 2, (500, 400, 1), generator=generator).double() - 1
    for concentration in ("bernstein", "mcdiarmid"):
        failures = sum(float(x.mean().abs()) > mean_error(x, 1.0, 0.2, concentration) for x in flips)  # type: ignore[arg-type]
        assert failures <= 0.2 * 500


@pytest.mark.parametrize("concentration", ["bernstein", "mcdiarmid"])
def test_the_error_holds_what_float64_makes_of_the_mean_and_of_itself(concentration: str) -> None:
    draw = torch.Generator().manual_seed(0)
    for count in (4, 60, 400, 2000):
        x = 2 * torch.rand(count, 1, generator=draw, dtype=torch.float64) - 1
        exact = [Fraction(value) for value in x.flatten().tolist()]
        rounded = abs(Fraction(float(x.mean())) - sum(exact) / count)
        with mpmath.workprec(300):
            if concentration == "mcdiarmid":
                error = (1 + mpmath.sqrt(2 * mpmath.log(1000))) / mpmath.sqrt(count)
            else:
                log, pairs = mpmath.log(4000), count // 2
                halves = [(a - b) ** 2 / 2 for a, b in zip(exact[0::2], exact[1::2], strict=True)]
                mean = sum(halves) / pairs
                spread = sum((half - mean) ** 2 for half in halves) / (pairs - 1)
                power = _real(mean) + mpmath.sqrt(2 * _real(spread) * log / pairs) + 14 * log / (3 * (pairs - 1))
                error = mpmath.sqrt(2 * power * log / count) + 4 * log / count
            found = mpmath.mpf(mean_error(x, 1.0, 0.001, concentration))  # type: ignore[arg-type]
            assert error + _real(rounded) <= found <= (1 + 1e-10) * error


def _real(x: Fraction) -> mpmath.mpf:
    return mpmath.mpf(x.numerator) / x.denominator


def test_bernstein_is_tighter_where_samples_agree_and_both_shrink_with_the_count() -> None:
    calm = 0.01 * torch.randn(2000, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert mean_error(calm, 1.0, 0.001) < 0.5 * mean_error(calm, 1.0, 0.001, "mcdiarmid")
    assert mean_error(calm, 1.0, 0.001) < mean_error(calm[:200], 1.0, 0.001)
    assert mean_error(calm, 1.0, 0.001) > mean_error(calm, 1.0, 0.01)
    assert math.isclose(mean_error(calm, 2.0, math.exp(-2), "mcdiarmid"), 2 * 3 / math.sqrt(2000))


def test_the_constant_is_that_of_the_smoothed_map() -> None:
    certifier = SmoothedEncoder(sigma=0.5, norm_bound=2.0)
    assert certifier.constant == pytest.approx(4 * math.sqrt(2 / math.pi), rel=1e-14)
    assert certifier.constant > 4 * math.sqrt(2 / math.pi)
    certificate = certifier.certify(*case(Chain(linear_map(), gaussians()), torch.rand(2, 1, 4, 4)))
    assert certificate.lipschitz.tolist() == [certifier.constant] * 2
    assert certificate.soundness == "probabilistic"
    assert certificate.ball_radius.tolist() == [float("inf")] * 2


@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_constant_is_at_least_that_of_an_affine_encoder_that_the_ball_holds(encoder: str) -> None:
    # Noise does not move the mean of an affine map. Images stay in a box of diameter sqrt(48); a ball of that radius
    # times the truth holds all latents up to a shift.
    _, truth = affine_encoder(encoder)
    assert SmoothedEncoder(sigma=0.25, norm_bound=truth * math.sqrt(48)).constant >= truth


def test_no_secant_of_the_smoothed_map_is_steeper_than_the_constant() -> None:
    # A step from one end of the ball to the other: the smoothed step attains the constant at its middle.
    def step(images: Tensor) -> Tensor:
        return images.flatten(1)[:, :1].sign()

    source = SmoothedEncoder(sigma=0.5, num_samples=20000, alpha=0.01, chunk_size=20000)
    images = torch.zeros(2, 1, 1, 1)
    images[1] = 0.1
    smoothed = source.smooth(step, images)
    slope = float((smoothed.mean[1] - smoothed.mean[0]).norm()) / 0.1
    allowance = 2 * float(smoothed.error.max()) / 0.1
    constant = source.constant
    assert slope <= constant + allowance
    truth = math.erf(0.1 / (0.5 * math.sqrt(2))) / 0.1
    assert 0.98 * constant < truth <= constant


def test_the_certificate_subtracts_the_uncertainty() -> None:
    images, source, classifier = torch.rand(3, 1, 4, 4), SmoothedEncoder(num_samples=2000), gaussians()
    certificate = source.certify(*case(Chain(constant_map, classifier), images))
    smoothed = source.smooth(constant_map, images)
    latent = classifier.certify(smoothed.mean)
    expected = (latent.radius - smoothed.error) / source.constant
    torch.testing.assert_close(certificate.radius, expected)
    assert certificate.latent_radius is not None
    assert (certificate.latent_radius < latent.radius).all()
    assert (certificate.soundness, certificate.space) == ("probabilistic", "input")
    assert certificate.prediction.tolist() == [0, 0, 0]
    assert torch.equal(certificate.diagnostics["latent_error"], smoothed.error)


def test_it_abstains_where_the_uncertainty_eats_the_radius() -> None:
    given = case(Chain(constant_map, gaussians()), torch.rand(2, 1, 4, 4))
    assert (given.certificate.radius > 0).all()  # it is the sampling that nothing is left to
    certificate = SmoothedEncoder(num_samples=4).certify(*given)
    assert certificate.prediction.tolist() == [-1, -1]
    assert certificate.radius.tolist() == [0.0, 0.0]


def test_sharing_alpha_over_images_costs_radius() -> None:
    images, alone, shared = (
        torch.rand(2, 1, 4, 4),
        SmoothedEncoder(num_samples=400),
        SmoothedEncoder(num_samples=400, num_images=500),
    )
    assert (shared.smooth(linear_map(), images).error > alone.smooth(linear_map(), images).error).all()


def two_on_a_ray() -> Chain:
    """Latents at 2.5, nearer to the class at 3; projected on the unit ball, nearer to the class at 0.8."""
    means = torch.tensor([[0.8, 0, 0], [3.0, 0, 0]], dtype=torch.float64)
    ellips = Ellips.from_parameters(means, torch.eye(3).expand(2, 3, 3).double() * 0.01, torch.tensor([0.5, 0.5]))
    return Chain(lambda images: constant_map(images) * (2.5 / 0.3), ellips)


def test_projection_that_changes_the_classifier_is_warned_of_once() -> None:
    given = case(two_on_a_ray(), torch.rand(4, 1, 4, 4))
    certifier = SmoothedEncoder(num_samples=4000)
    with pytest.warns(UserWarning, match=r"norm_bound=1 changes .* 4 of the 4 images .*100\.0 %.*latent_norm='ball'"):
        certificate = certifier.certify(*given)
    assert given.certificate.prediction.tolist() == [1] * 4
    assert certificate.prediction.tolist() == [0] * 4
    assert certificate.diagnostics["projected"].tolist() == [1] * 4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        certifier.certify(*given)  # said already
        held = SmoothedEncoder(num_samples=4000, norm_bound=4.0).certify(*given)  # the cure
    assert held.diagnostics["projected"].tolist() == [0] * 4
    with pytest.warns(UserWarning, match="norm_bound=1.5"):
        SmoothedEncoder(num_samples=4, norm_bound=1.5).certify(*given)


def test_the_means_are_handed_back_and_prove_the_certificates() -> None:
    given, certifier = case(Chain(linear_map(), gaussians()), torch.rand(5, 1, 4, 4)), SmoothedEncoder(num_samples=2000)
    certificate, means = certifier.certify_with_latents(*given)
    assert torch.equal(means, certifier.smooth(given.chain.latents, given.images).mean)
    assert check(given.chain.ellips, means, certificate).all()
    for name, value in certifier.certify(*given).tensors().items():
        assert torch.equal(value, certificate.tensors()[name])


def test_a_prover_is_made_once_where_the_chain_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Ellips] = []
    original = Prover.__init__

    def counting(prover: Prover, ellips: Ellips) -> None:
        made.append(ellips)
        original(prover, ellips)

    monkeypatch.setattr(Prover, "__init__", counting)
    given = case(Chain(linear_map(), gaussians()), torch.rand(3, 1, 4, 4))
    shared = Prover(given.chain.ellips)
    certifier = SmoothedEncoder(num_samples=100)
    expected = certifier.certify(*given)
    assert len(made) == 2
    chain = given.chain._replace(prover=shared)
    for _ in range(3):
        found = certifier.certify(chain, *given[1:])
        assert torch.equal(found.radius, expected.radius)
    assert len(made) == 2


def test_latents_outside_the_ball_are_projected() -> None:
    smoothed = SmoothedEncoder(num_samples=100, norm_bound=0.5).smooth(linear_map(100.0), torch.rand(2, 1, 4, 4))
    assert (smoothed.mean.norm(dim=1) <= 0.5).all()


def test_samples_do_not_depend_on_batch_or_chunk() -> None:
    images = torch.rand(3, 1, 4, 4)
    whole = SmoothedEncoder(num_samples=100).smooth(linear_map(), images)
    single = SmoothedEncoder(num_samples=100).smooth(linear_map(), images[2:])
    # The first image goes in small chunks, whose float32 products round otherwise on some processors: 4e-11.
    torch.testing.assert_close(whole.mean[2:], single.mean, rtol=0, atol=1e-9)
    assert not torch.equal(SmoothedEncoder(num_samples=100, seed=1).smooth(linear_map(), images).mean, whole.mean)


def test_no_images_give_an_empty_certificate() -> None:
    given = case(Chain(linear_map(), gaussians()), torch.empty(0, 1, 4, 4))
    assert len(SmoothedEncoder().certify(*given)) == 0


def test_the_smoothed_classifier_need_not_agree_with_the_one_it_is_made_of() -> None:
    """A spike at the image itself is all that the encoder sees there, and nothing that its neighbourhood does."""

    def spike(images: Tensor) -> Tensor:
        at_center = (images == 0.5).flatten(1).all(1, keepdim=True)
        return torch.where(at_center, -0.3, 0.3) * torch.tensor([[1.0, 0.0, 0.0]])

    given = case(Chain(spike, gaussians()), torch.full((1, 1, 4, 4), 0.5))
    certificate = SmoothedEncoder(num_samples=2000).certify(*given)
    assert given.certificate.prediction.tolist() == [1]
    assert certificate.prediction.tolist() == [0]
    assert SmoothedEncoder(num_samples=2000).target(given.chain).predict(given.images.double()).tolist() == [0]


@pytest.mark.parametrize("method", METHODS)
def test_the_latent_method_is_that_of_the_certificate_given(method: Method) -> None:
    images, certifier = torch.rand(3, 1, 4, 4), SmoothedEncoder(num_samples=2000)
    chain = Chain(constant_map, skewed())
    certificate = certifier.certify(*case(chain, images, method))
    smoothed = certifier.smooth(constant_map, images)
    expected = (chain.ellips.certify(smoothed.mean, method).radius - smoothed.error) / certifier.constant
    assert certificate.method == method
    torch.testing.assert_close(certificate.radius, expected)
    with pytest.raises(ValueError, match="`method` to be one of"):
        certifier.certify(*given_as(case(chain, images), "margin"))


def skewed() -> Ellips:
    """Gaussians of different covariances, so that the methods do not agree."""
    means = torch.tensor([[0.4, 0, 0], [-0.4, 0, 0]], dtype=torch.float64)
    covariances = torch.stack([torch.eye(3), torch.diag(torch.tensor([1.0, 3.0, 5.0]))]).double() * 0.01
    return Ellips.from_parameters(means, covariances, torch.tensor([0.5, 0.5]))


def given_as(given: Case, method: str) -> Case:
    return given._replace(certificate=replace(given.certificate, method=method))


@pytest.mark.parametrize(
    "setting",
    [
        {"sigma": 0.0},
        {"norm_bound": float("inf")},
        {"alpha": 0.0},
        {"alpha": 1.0},
        {"num_samples": 5},
        {"num_samples": 2},
        {"num_images": 0},
        {"chunk_size": 0},
        {"concentration": "hoeffding"},
    ],
)
def test_settings_out_of_range_are_refused(setting: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        SmoothedEncoder(**setting)  # type: ignore[arg-type]


def test_a_run_over_more_images_than_share_alpha_is_refused() -> None:
    SmoothedEncoder(num_images=1).validate_run(10_000)
    SmoothedEncoder(num_images=500).validate_run(500)
    with pytest.raises(ValueError, match=r"num_images=500 images to share alpha=0\.001 but got 501"):
        SmoothedEncoder(num_images=500).validate_run(501)
