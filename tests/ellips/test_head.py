"""EllipsHead without Lightning: fitting, what it refuses, and that it travels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ellips import Ellips
from ellips.errors import NotFittedError
from ellips.head import EllipsHead
from ellips.projector import PowerTransform, normalize_latents


def make_data(n: int = 600, width: int = 12, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % classes
    centers = 4 * torch.randn(classes, width, generator=generator)
    return centers[labels] + torch.randn(n, width, generator=generator), labels


def make_head(**options: object) -> EllipsHead:
    torch.manual_seed(0)
    return EllipsHead(12, 3, latent_dim=4, hidden_dim=16, **options)  # type: ignore[arg-type]


def test_fit_from_tensors_is_the_gaussian_fit_of_the_eval_mode_latents() -> None:
    features, labels = make_data()
    head = make_head(shrinkage=0.1).train()
    assert head.fit(features, labels, batch_size=100) is head
    assert head.training
    assert head.projector.training
    head.eval()
    expected = Ellips(3, 4, shrinkage=0.1).fit(head.latents(features), labels)
    torch.testing.assert_close(head.ellips.means, expected.means, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(head.ellips.covariances, expected.covariances, rtol=1e-9, atol=1e-10)
    scores = head(features)
    assert scores.dtype == torch.float64
    assert scores.shape == (600, 3)
    assert float((scores.argmax(1) == labels).float().mean()) > 0.7


def test_batch_by_batch_in_any_order_gives_what_one_call_gives() -> None:
    features, labels = make_data()
    whole, parts = make_head().fit(features, labels), make_head()
    parts.reset()
    order = torch.randperm(600, generator=torch.Generator().manual_seed(1))
    for rows in order.split([1, 99, 200, 300]):
        parts.update(features[rows], labels[rows])
    parts.finalize()
    # The projector runs in float32, whose rounding depends on how many rows it is given at once.
    torch.testing.assert_close(parts.ellips.means, whole.ellips.means, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(parts.ellips.covariances, whole.ellips.covariances, rtol=1e-4, atol=1e-6)


def test_fitting_moves_no_batchnorm_statistics_and_makes_no_graph() -> None:
    features, labels = make_data()
    head = make_head().train()
    before = {k: v.clone() for k, v in head.projector.state_dict().items()}
    head.fit(features, labels)
    assert all(torch.equal(v, before[k]) for k, v in head.projector.state_dict().items())
    assert not head.ellips.means.requires_grad


def test_without_a_projector_latents_are_the_features() -> None:
    features, labels = make_data()
    head = EllipsHead(12, 3, latent_dim=None).fit(features.double(), labels)
    assert torch.equal(head.latents(features), features)
    assert not list(head.parameters())
    reference = Ellips(3, 12).fit(features.double(), labels)
    torch.testing.assert_close(head(features.double()), reference(features.double()))


def test_a_hidden_width_of_zero_makes_the_projector_linear() -> None:
    head = EllipsHead(12, 3, latent_dim=4, hidden_dim=0).double()
    x, y = torch.randn(2, 5, 12, dtype=torch.float64)
    midpoint = head.latents((x + y) / 2)
    torch.testing.assert_close(midpoint, (head.latents(x) + head.latents(y)) / 2)


def test_latents_on_the_ball_are_a_contraction_and_on_the_sphere_of_length_one() -> None:
    x, y = 2 * torch.randn(2, 200, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    before = (x - y).norm(dim=1)
    after = (normalize_latents(x, "ball") - normalize_latents(y, "ball")).norm(dim=1)
    assert bool((after <= before * (1 + 1e-12)).all())
    assert float(normalize_latents(x, "ball").norm(dim=1).max()) <= 1 + 1e-12
    inside = 0.1 * normalize_latents(x, "sphere")
    assert torch.equal(normalize_latents(inside, "ball"), inside)
    torch.testing.assert_close(normalize_latents(x, "sphere").norm(dim=1), torch.ones(200, dtype=torch.float64))
    assert bool(torch.isfinite(normalize_latents(torch.zeros(1, 5), "sphere")).all())
    with pytest.raises(ValueError, match="latent_norm"):
        normalize_latents(x, "cube")  # type: ignore[arg-type]


@pytest.mark.parametrize("latent_dim", [4, None])
def test_features_are_raised_to_their_power_first(latent_dim: int | None) -> None:
    features, labels = make_data()
    torch.manual_seed(0)
    head = EllipsHead(12, 3, latent_dim=latent_dim, hidden_dim=0, feature_power=0.5)
    torch.manual_seed(0)
    plain = EllipsHead(12, 3, latent_dim=latent_dim, hidden_dim=0)
    roots = features.sign() * features.abs().sqrt()
    torch.testing.assert_close(head.fit(features, labels).eval()(features), plain.fit(roots, labels).eval()(roots))
    copy = EllipsHead(**head.config).eval()
    copy.load_state_dict(head.state_dict())
    assert torch.equal(copy(features), head(features))


def test_powers_of_skewed_features_are_less_skewed_and_have_a_gradient_at_zero() -> None:
    features = torch.randn(4000, 4, generator=torch.Generator().manual_seed(0)).square().sum(1)  # chi-squared
    roots = PowerTransform(0.5)(features)
    skewness = [float(((x - x.mean()) / x.std()).pow(3).mean()) for x in (features, roots)]
    assert skewness[1] < 0.6 < 1.2 < skewness[0]
    some = torch.tensor([-4.0, 0.0, 9.0], requires_grad=True)
    out = PowerTransform(0.5)(some)
    assert out.tolist() == [-2.0, 0.0, 3.0]
    assert torch.autograd.grad(out.sum(), some)[0].tolist() == pytest.approx([0.25, 0.0, 1 / 6])


def test_eval_mode_latents_do_not_depend_on_autocast() -> None:
    features, labels = make_data()
    head = make_head().fit(features, labels).eval()
    plain = head(features)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(head(features), plain)
        assert head.train().latents(features).dtype == torch.float32


def test_gradients_reach_the_features() -> None:
    features, labels = make_data()
    head = make_head().fit(features, labels).eval()
    probe = features[:4].clone().requires_grad_()
    head(probe).sum().backward()
    assert probe.grad is not None
    assert float(probe.grad.abs().sum()) > 0


@pytest.mark.parametrize("latent_norm", ["none", "ball"])
def test_state_dict_carries_the_mixture(latent_norm: str) -> None:
    features, labels = make_data()
    head = make_head(latent_norm=latent_norm, shrinkage=0.2).fit(features, labels).eval()
    other = EllipsHead(**head.config).eval()
    other.load_state_dict(head.state_dict())
    assert torch.equal(other(features), head(features))
    assert other.ellips.digest() == head.ellips.digest()


def test_wrong_features_and_labels_are_refused() -> None:
    features, labels = make_data()
    head = make_head()
    with pytest.raises(NotFittedError, match="fitted"):
        head(features)
    with pytest.raises(ValueError, match=r"features.*\(N, 12\).*\(600, 11\)"):
        head.fit(features[:, 1:], labels)
    for bad in (float("nan"), float("inf")):
        spoiled = features.clone()
        spoiled[7, 3] = bad
        with pytest.raises(ValueError, match=r"features.*finite.*row 7"):
            head.fit(spoiled, labels)
        with pytest.raises(ValueError, match="finite"):
            head.latents(spoiled)
    for wrong in (labels + 1, labels - 1):
        with pytest.raises(ValueError, match=r"labels.*\[0, 3\)"):
            head.fit(features, wrong)
    with pytest.raises(ValueError, match="integer"):
        head.fit(features, labels.float())
    with pytest.raises(ValueError, match=r"\(600,\)"):
        head.fit(features, labels[:-1])


def test_a_class_without_samples_is_named() -> None:
    features, labels = make_data()
    with pytest.raises(ValueError, match="class 2 had none"):
        make_head().fit(features, labels.clamp(max=1))
    with pytest.raises(ValueError, match="class"):
        make_head().finalize()


def test_a_refused_batch_leaves_the_moments_alone() -> None:
    features, labels = make_data()
    head = make_head()
    head.update(features, labels)
    before = head.moments.compute()
    with pytest.raises(ValueError, match="labels"):
        head.update(features, labels + 5)
    assert all(torch.equal(a, b) for a, b in zip(before, head.moments.compute(), strict=True))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"in_features": 0}, "in_features"),
        ({"latent_dim": 0}, "latent_dim"),
        ({"hidden_dim": -1}, "hidden_dim"),
        ({"latent_norm": "cube"}, "latent_norm"),
        ({"latent_dim": None, "latent_norm": "ball"}, "projector"),
        ({"feature_power": 0.0}, "exponent of features above 0"),
        ({"feature_power": 2.0}, "exponent of features above 0"),
        ({"shrinkage": 2.0}, "shrinkage"),
        ({"num_classes": 1}, "num_classes"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        EllipsHead(**{"in_features": 5, "num_classes": 3, **options})  # type: ignore[arg-type]


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="'head'"):
        EllipsHead.from_checkpoint(tmp_path / "other.ckpt")
    with pytest.raises(FileNotFoundError):
        EllipsHead.from_checkpoint(tmp_path / "missing.ckpt")
