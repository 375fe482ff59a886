"""Losses on the Gaussian classifier: values against loops, gradients against finite differences."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from ellips import Ellips
from ellips.losses import CertifiedRadius, Objective, ScoreCrossEntropy, signed_radius
from ellips.losses.mixture import Gaussians, batch_mixture
from tests.ellips.mixtures import quadratic_discriminant

Radius = Literal["exact", "pairwise"]
Loss = Literal["exact", "pairwise", "entropy", "sigmoid"]


def make_batch(n: int = 24, dim: int = 3, spread: float = 2.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 3
    centers = spread * torch.randn(3, dim, generator=generator, dtype=torch.float64)
    return centers[labels] + torch.randn(n, dim, generator=generator, dtype=torch.float64), labels


def make_ellips(covariance_type: str = "full") -> Ellips:
    latents, labels = make_batch(90)
    ellips = Ellips(3, 3, covariance_type=covariance_type, shrinkage=0.1)  # type: ignore[arg-type]
    return ellips.fit(latents, labels)


def make_loss(name: Loss, gaussians: Gaussians) -> ScoreCrossEntropy | CertifiedRadius:
    if name == "entropy":
        return ScoreCrossEntropy(gaussians)
    if name == "sigmoid":
        return CertifiedRadius(1.0, "exact", gaussians, width=0.3)
    return CertifiedRadius(1.0, name, gaussians)


def test_cross_entropy_is_that_of_the_posterior() -> None:
    latents, labels = make_batch(60)
    ellips = Ellips(3, 3).fit(latents, labels)
    oracle = quadratic_discriminant(latents, labels)
    expected = -oracle.predict_log_proba(latents.numpy())[np.arange(60), labels.numpy()].mean()
    assert float(ScoreCrossEntropy("fitted")(latents, labels, ellips)) == pytest.approx(expected, rel=1e-6)
    # The batch is the data the oracle was fitted to, so the batch's own Gaussians are the oracle's, too.
    assert float(ScoreCrossEntropy("batch")(latents, labels, ellips)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("covariance_type", ["full", "diagonal"])
def test_the_batchs_gaussians_are_those_of_fit(covariance_type: str) -> None:
    latents, labels = make_batch(40)
    like = Ellips(3, 3, covariance_type=covariance_type, pooling=0.3, shrinkage=0.2)  # type: ignore[arg-type]
    mixture = batch_mixture(latents, labels, like)
    assert not like.is_fitted
    like.fit(latents, labels)
    torch.testing.assert_close(mixture.means, like.means)
    torch.testing.assert_close(mixture.covariances, like.covariances)
    torch.testing.assert_close(mixture.priors, like.priors)


def test_a_class_missing_from_the_batch_is_named() -> None:
    latents, labels = make_batch()
    with pytest.raises(ValueError, match="class 2 had none"):
        CertifiedRadius(0.5)(latents, labels.clamp(max=1), Ellips(3, 3, shrinkage=0.1))


@pytest.mark.parametrize("method", ["exact", "pairwise"])
def test_the_hinge_is_the_mean_shortfall_of_the_radius(method: Radius) -> None:
    latents, labels = make_batch(90, spread=1.2)
    ellips, target = make_ellips(), 0.6
    certificate = ellips.certify(latents, method)
    expected = 0.0
    for i in range(90):
        if int(certificate.prediction[i]) == int(labels[i]):
            expected += max(0.0, target - float(certificate.radius[i]))
            continue
        scores = ellips(latents[i : i + 1])[0]
        rival, label = int(scores.argmax()), int(labels[i])
        slope = [-2 * ellips.precisions[k] @ (latents[i] - ellips.means[k]) for k in (rival, label)]
        expected += target - float((scores[label] - scores[rival]) / (slope[0] - slope[1]).norm())
    wrong = int((certificate.prediction != labels).sum())
    assert 0 < wrong < 45
    value = CertifiedRadius(target, method, "fitted")(latents, labels, ellips)
    assert float(value) == pytest.approx(expected / 90, rel=1e-9)


@pytest.mark.parametrize("method", ["exact", "pairwise"])
def test_with_a_width_the_loss_is_the_share_that_is_not_certified(method: Radius) -> None:
    latents, labels = make_batch(90, spread=1.2)
    ellips, target = make_ellips(), 0.6
    certificate = ellips.certify(latents, method)
    certified = (certificate.prediction == labels) & (certificate.radius >= target)
    share = float((~certified).double().mean())
    assert 0.1 < share < 0.9
    narrow = CertifiedRadius(target, method, "fitted", width=1e-6)
    assert float(narrow(latents, labels, ellips)) == pytest.approx(share, abs=1e-4)
    signed = signed_radius(ellips, latents, labels, method)
    wide = CertifiedRadius(target, method, "fitted", width=0.2)
    expected = torch.sigmoid((target - signed) / 0.2)
    assert float(wide(latents, labels, ellips)) == pytest.approx(float(expected.mean()), abs=5e-5)
    assert int((signed > target + 0.2).sum()) > 5  # which the hinge would leave out


@pytest.mark.parametrize("covariance_type", ["full", "diagonal"])
@pytest.mark.parametrize("gaussians", ["batch", "fitted"])
@pytest.mark.parametrize("loss", ["exact", "pairwise", "entropy", "sigmoid"])
def test_gradients_agree_with_finite_differences(loss: Loss, gaussians: Gaussians, covariance_type: str) -> None:
    latents, labels = make_batch(15, spread=1.2)
    ellips = make_ellips(covariance_type)
    term = make_loss(loss, gaussians)
    assert torch.autograd.gradcheck(
        lambda z: term(z, labels, ellips), (latents.requires_grad_(),), eps=1e-6, atol=2e-5, rtol=1e-4
    )


@pytest.mark.parametrize("loss", ["exact", "pairwise", "entropy", "sigmoid"])
def test_a_trainable_mixture_gets_the_gradient_of_finite_differences(loss: Loss) -> None:
    latents, labels = make_batch(24, spread=1.2)
    ellips = make_ellips().trainable_()
    term = make_loss(loss, "fitted")
    term(latents, labels, ellips).backward()
    for name, parameter in ellips.named_parameters():
        assert parameter.grad is not None
        entries = [(0,) * parameter.ndim, (1,) * parameter.ndim, (2, 1, 0)[: parameter.ndim]]
        for entry in entries:
            values = []
            for shift in (1e-6, -2e-6):
                with torch.no_grad():
                    parameter[entry] += shift
                values.append(float(term(latents, labels, ellips).detach()))
            with torch.no_grad():
                parameter[entry] += 1e-6
            numeric = (values[0] - values[1]) / 2e-6
            assert float(parameter.grad[entry]) == pytest.approx(numeric, rel=1e-3, abs=1e-5), (name, entry)


def test_infinite_radii_neither_count_nor_spoil_the_gradient() -> None:
    # The second class's Gaussian lies around the first's: far out nothing reaches the first any more.
    ellips = Ellips.from_parameters(
        torch.zeros(2, 2), torch.stack([torch.eye(2), 4 * torch.eye(2)]), torch.tensor([0.01, 0.99])
    )
    latents = torch.tensor([[0.1, 0.2], [5.0, 1.0]], dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([1, 1])
    assert bool(ellips.certify(latents.detach()).radius.isinf().any())
    CertifiedRadius(10.0, gaussians="fitted")(latents, labels, ellips).backward()
    assert latents.grad is not None
    assert bool(torch.isfinite(latents.grad).all())


def test_the_signed_radius_meets_itself_at_the_boundary() -> None:
    ellips = make_ellips()
    latents, labels = make_batch(30)
    inside, outside = latents[labels == 0][:1], latents[labels == 1][:1]
    line = torch.linspace(0, 1, 2001, dtype=torch.float64).unsqueeze(1)
    signed = signed_radius(ellips, inside + line * (outside - inside), torch.zeros(2001, dtype=torch.long))
    crossing = int((signed > 0).sum())
    assert 0 < crossing < 2001
    step = float((outside - inside).norm()) / 2000
    assert float((signed[1:] - signed[:-1]).abs().max()) <= 1.5 * step


def test_a_mixture_is_asked_for_and_settings_are_checked() -> None:
    latents, labels = make_batch()
    with pytest.raises(ValueError, match="mixture"):
        ScoreCrossEntropy()(latents, labels)
    wrong = [{"radius": 0.0}, {"radius": 1.0, "method": "theorem"}, {"radius": 1.0, "gaussians": "none"}]
    for options in (*wrong, {"radius": 1.0, "width": 0.0}, {"radius": 1.0, "width": float("nan")}):
        with pytest.raises(ValueError, match="Expected"):
            CertifiedRadius(**options)  # type: ignore[arg-type]
    assert Objective([ScoreCrossEntropy("fitted")]).needs_fitted_mixture
    assert not Objective([ScoreCrossEntropy("batch")]).needs_fitted_mixture
    assert Objective([ScoreCrossEntropy("batch")]).uses_mixture
