"""From the latent to the image by a Lipschitz constant."""

from __future__ import annotations

import torch
from torch import nn

from ellips import Ellips
from ellips.input_certifiers import ByConstant, Chain, MarginClever, as_certifier
from ellips.lipschitz import Clever, JacobianNorm, KnownConstant
from tests.ellips.input_certifiers.chains import FEW, case, relu_chain


def test_the_radius_is_that_of_the_latent_over_the_constant_and_at_most_the_ball() -> None:
    given = case(relu_chain(), torch.rand(6, 1, 6, 6), "pairwise")
    ball = float((given.certificate.radius / 2).median())
    found = ByConstant(KnownConstant(2.0, ball_radius=ball, soundness="estimated")).certify(*given)
    torch.testing.assert_close(found.radius, (given.certificate.radius / 2).clamp_max(ball), rtol=1e-12, atol=0)
    assert (found.radius <= given.certificate.radius / 2).all()
    assert (found.space, found.method, found.soundness) == ("input", "pairwise", "estimated")
    assert torch.equal(found.prediction, given.certificate.prediction)
    assert torch.equal(found.latent_radius, given.certificate.radius)


def test_a_radius_that_is_claimed_is_that_of_the_network_in_exact_arithmetic() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 64), nn.Linear(64, 4)).eval()
    for layer in (network[1], network[2]):
        layer.weight.data *= 1e3  # what float32 rounds is then seen in the latents
    images = torch.rand(40, 1, 4, 4)
    with torch.no_grad():
        latents, truth = network(images), nn.Sequential(*network).double()(images.double())
        network.float()
        ellips = Ellips(3, 4).fit(latents, torch.arange(40) % 3)
        latent = ellips.certify(latents)
    error = (truth - latents).norm(dim=1)
    assert error.max() > 1e-2
    chain = Chain(network, ellips)
    for soundness in ("deterministic", "probabilistic"):
        found = ByConstant(KnownConstant(2.0, soundness=soundness)).certify(chain, images, latents, latent)
        torch.testing.assert_close(found.diagnostics["latent_error"], error, rtol=1e-5, atol=0)
        assert (found.latent_radius <= (latent.radius - error).clamp_min(0)).all()
        assert (found.latent_radius >= (latent.radius - error * (1 + 1e-5)) * (1 - 1e-12)).all()
    estimated = ByConstant(KnownConstant(2.0, soundness="estimated")).certify(chain, images, latents, latent)
    torch.testing.assert_close(estimated.latent_radius, latent.radius)


def test_the_error_is_measured_of_the_very_latents_that_were_certified() -> None:
    given = case(relu_chain(), torch.rand(3, 1, 6, 6))
    moved = given._replace(latents=given.latents + 0.01)  # as if the encoder had rounded that much
    error = ByConstant(KnownConstant(2.0)).certify(*moved).diagnostics["latent_error"]
    torch.testing.assert_close(error, torch.full((3,), 0.01 * 5**0.5).double(), rtol=1e-4, atol=0)


def test_a_certificate_by_clever_carries_its_kind_also_in_inference_mode() -> None:
    chain = relu_chain()
    with torch.inference_mode():
        given = case(chain, torch.rand(2, 1, 6, 6))
        certificate = ByConstant(Clever(**FEW)).certify(*given)
    assert certificate.soundness == "estimated"
    assert certificate.space == "input"
    assert "Clever" in str(certificate.source)


def test_a_source_stands_for_the_certifier_that_divides_by_it() -> None:
    assert as_certifier(JacobianNorm()) == ByConstant(JacobianNorm())
    for certifier in (ByConstant(JacobianNorm()), MarginClever()):
        assert as_certifier(certifier) is certifier
