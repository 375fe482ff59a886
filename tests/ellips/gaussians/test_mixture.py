from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal
from torch import Tensor

from ellips import Ellips
from ellips.certificates import check
from ellips.errors import NotFittedError
from tests.ellips.mixtures import KINDS, quadratic_discriminant, random_mixture, random_points


def _labelled(classes: int = 4, dim: int = 6, n: int = 400, seed: int = 0) -> tuple[Tensor, Tensor]:
    return random_mixture("full", classes, dim, seed).sample(n, torch.Generator().manual_seed(seed))


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 8), st.integers(1, 12), st.integers(0, 1000))
def test_agrees_with_scikit_learn(classes: int, dim: int, seed: int) -> None:
    z, labels = random_mixture("full", classes, dim, seed).sample(classes * 60, torch.Generator().manual_seed(seed))
    if torch.bincount(labels, minlength=classes).min() < dim + 2:
        labels = torch.arange(len(z)) % classes
    ellips = Ellips(classes, dim).fit(z, labels)
    oracle = quadratic_discriminant(z, labels)
    assert (ellips.predict(z).numpy() == oracle.predict(z.numpy())).all()
    # scikit-learn's scores are half of ours up to a constant, which is log det and prior only: none is left out.
    expected = 2 * torch.from_numpy(oracle._decision_function(z.numpy()))
    torch.testing.assert_close(ellips(z), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_densities_agree_with_scipy(kind: str) -> None:
    ellips = random_mixture(kind, 3, 4)
    z = random_points(ellips, 20)
    logs = torch.stack(
        [
            torch.from_numpy(multivariate_normal(mean.numpy(), covariance.numpy()).logpdf(z.numpy()))
            for mean, covariance in zip(ellips.means, ellips.covariances, strict=True)
        ],
        dim=1,
    )
    torch.testing.assert_close(ellips.class_log_prob(z), logs, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ellips.log_prob(z), (logs + ellips.priors.log()).logsumexp(1), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_samples_have_the_moments_of_the_mixture(kind: str) -> None:
    ellips = random_mixture(kind, 3, 3)
    z, labels = ellips.sample(60_000, torch.Generator().manual_seed(0))
    shares = torch.bincount(labels, minlength=3) / len(z)
    torch.testing.assert_close(shares.double(), ellips.priors, rtol=0, atol=0.01)
    for k in range(3):
        own = z[labels == k]
        scale = ellips.covariances[k].diagonal().max()
        assert (own.mean(0) - ellips.means[k]).abs().max() < 0.05 * scale.sqrt()
        assert (own.mT.cov() - ellips.covariances[k]).abs().max() < 0.06 * scale


def test_parameters_come_back() -> None:
    ellips = random_mixture("full", 3, 5)
    again = Ellips.from_parameters(ellips.means, ellips.covariances, ellips.priors)
    torch.testing.assert_close(again.precisions, ellips.precisions)
    torch.testing.assert_close(again.precisions @ again.covariances, torch.eye(5).double().expand(3, 5, 5))
    torch.testing.assert_close(again.log_dets, torch.logdet(ellips.covariances))
    assert float(again.priors.sum()) == pytest.approx(1)


def test_regularisation_has_tied_and_spherical_covariances_as_ends() -> None:
    z, labels = _labelled()
    tied = Ellips(4, 6, pooling=1.0).fit(z, labels).covariances
    torch.testing.assert_close(tied, tied[:1].expand_as(tied))
    within = sum(
        (z[labels == k] - z[labels == k].mean(0)).T @ (z[labels == k] - z[labels == k].mean(0)) for k in range(4)
    )
    torch.testing.assert_close(tied[0], within / len(z))
    spherical = Ellips(4, 6, shrinkage=1.0).fit(z, labels).covariances
    for k in range(4):
        variance = z[labels == k].var(0, correction=0).mean()
        torch.testing.assert_close(spherical[k], variance * torch.eye(6).double())
    half = Ellips(4, 6, pooling=0.5, shrinkage=0.25).fit(z, labels).covariances
    plain = Ellips(4, 6).fit(z, labels).covariances
    mixed = 0.5 * plain + 0.5 * tied
    trace = mixed.diagonal(dim1=1, dim2=2).mean(1).view(-1, 1, 1)
    torch.testing.assert_close(half, 0.75 * mixed + 0.25 * trace * torch.eye(6).double())


def test_diagonal_covariances_keep_the_diagonal() -> None:
    z, labels = _labelled()
    full, diagonal = Ellips(4, 6).fit(z, labels), Ellips(4, 6, covariance_type="diagonal").fit(z, labels)
    torch.testing.assert_close(
        diagonal.covariances, torch.diag_embed(full.covariances.diagonal(dim1=1, dim2=2)), rtol=1e-10, atol=1e-12
    )


def test_data_far_from_the_origin_cost_no_digits() -> None:
    z, labels = _labelled()
    near, far = Ellips(4, 6).fit(z, labels), Ellips(4, 6).fit(z + 1e6, labels)
    torch.testing.assert_close(far(z + 1e6), near(z), rtol=1e-6, atol=1e-6)


def test_state_survives_checkpoint_copy_pickle_and_casts(tmp_path: object) -> None:
    ellips = random_mixture("full", 3, 4)
    z = random_points(ellips, 10)
    radius = ellips.certify(z).radius
    fresh = Ellips(3, 4)
    fresh.load_state_dict(ellips.state_dict())
    for other in (fresh, copy.deepcopy(ellips), pickle.loads(pickle.dumps(ellips)), copy.deepcopy(ellips).half()):
        assert other.is_fitted
        assert other.means.dtype == torch.float64
        assert torch.equal(other(z), ellips(z))
        assert torch.equal(other.certify(z).radius, radius)
        assert other.digest() == ellips.digest()
    assert Ellips(3, 4).to(torch.bfloat16).means.dtype == torch.float64


def test_digest_tells_mixtures_apart() -> None:
    ellips = random_mixture("full", 3, 4)
    before = ellips.digest()
    ellips.means[0, 0] += 1e-12
    assert ellips.digest() != before


def test_autocast_does_not_touch_the_scores() -> None:
    ellips = random_mixture("full", 3, 4)
    z = random_points(ellips, 10)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ellips(z), Ellips.forward(ellips, z))
        scores = ellips(z)
    assert torch.equal(scores, ellips(z))


@pytest.mark.parametrize("kind", KINDS)
def test_the_formulas_of_the_certificates_are_derivatives_of_the_scores(kind: str) -> None:
    ellips = random_mixture(kind, 4, 5)
    z = random_points(ellips, 12).requires_grad_()
    prediction, rival = torch.arange(12) * 7 % 4, (torch.arange(12) * 7 + 1) % 4  # in no order

    def score(k: Tensor) -> Tensor:
        return ellips(z).gather(1, k.unsqueeze(1)).sum()

    for k in (prediction, rival):
        torch.testing.assert_close(-2 * ellips.pull(z, k), torch.autograd.grad(score(k), z)[0])
    half = ellips.half_gradient(z, prediction, rival)
    torch.testing.assert_close(2 * half, torch.autograd.grad(score(prediction) - score(rival), z)[0])
    rows = [torch.autograd.grad(half[:, i].sum(), z, retain_graph=True)[0] for i in range(5)]
    torch.testing.assert_close(ellips.curvature(prediction, rival), torch.stack(rows, dim=1))
    assert ellips.pull(z[:0], prediction[:0]).shape == (0, 5)


def test_scores_have_gradients_to_latents_and_to_a_trainable_mixture() -> None:
    ellips = random_mixture("full", 3, 4)
    names = set(ellips.state_dict())
    plain = ellips(random_points(ellips, 5))
    ellips.trainable_()
    assert set(ellips.state_dict()) == names
    assert {name for name, _ in ellips.named_parameters()} == {"means", "precision_factors", "log_priors"}
    torch.testing.assert_close(ellips(random_points(ellips, 5)), plain)
    z = random_points(ellips, 5).requires_grad_()

    def scores(z: Tensor, means: Tensor, factors: Tensor, log_priors: Tensor) -> Tensor:
        values = {"means": means, "precision_factors": factors, "log_priors": log_priors}
        return torch.func.functional_call(ellips, values, (z,))

    assert torch.autograd.gradcheck(scores, (z, ellips.means, ellips.precision_factors, ellips.log_priors))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"means": torch.zeros(3)}, r"`means` to have shape \(K, d\)"),
        ({"covariances": torch.eye(3).expand(2, 3, 3)}, r"`covariances` to have shape \(2, 2, 2\) or \(2, 2\)"),
        ({"priors": torch.tensor([0.4, 0.4])}, "sum to 1"),
        ({"priors": torch.tensor([1.0, 0.0])}, "positive"),
        ({"means": torch.tensor([[0.0, float("inf")], [0.0, 0.0]])}, "`means` to be finite"),
        (
            {"covariances": torch.stack([torch.eye(2), torch.ones(2, 2)])},
            "covariance of class 1 to be positive definite",
        ),
        (
            {"covariances": torch.tensor([[[1.0, 0.5], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]]])},
            "class 0 to be symmetric",
        ),
        ({"covariances": torch.tensor([[1.0, -1.0], [1.0, 1.0]])}, "class 0 to be positive definite"),
    ],
)
def test_bad_parameters_are_named(change: dict[str, Tensor], message: str) -> None:
    good = {"means": torch.zeros(2, 2), "covariances": torch.eye(2).expand(2, 2, 2), "priors": torch.tensor([0.5, 0.5])}
    with pytest.raises(ValueError, match=message):
        Ellips.from_parameters(**{**good, **change})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 1}, "`num_classes` to be at least 2 but got 1"),
        ({"dim": 0}, "`dim` to be at least 1"),
        ({"covariance_type": "tied"}, "'full', 'diagonal'"),
        ({"pooling": 1.5}, r"`pooling` to be in \[0, 1\] but got 1.5"),
        ({"shrinkage": -0.1}, "`shrinkage`"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Ellips(**{"num_classes": 3, "dim": 2, **arguments})  # type: ignore[arg-type]


def test_fit_names_the_class_and_the_cure() -> None:
    z, labels = _labelled()
    with pytest.raises(ValueError, match="class 4 had none"):
        Ellips(5, 6).fit(z, labels)
    few = torch.cat([torch.where(labels == 2)[0][:5], torch.where(labels != 2)[0]])
    with pytest.raises(ValueError, match=r"at least 7 samples .* class 2 has 5; raise `shrinkage`"):
        Ellips(4, 6).fit(z[few], labels[few])
    assert Ellips(4, 6, shrinkage=0.1).fit(z[few], labels[few]).is_fitted
    flat = z.clone()
    flat[labels == 1, 3] = 0.5
    with pytest.raises(ValueError, match=r"covariance of class 1 to be positive definite .* raise `shrinkage`"):
        Ellips(4, 6).fit(flat, labels)
    with pytest.raises(ValueError, match=r"lie in \[0, 4\) but got values from 0 to 4"):
        Ellips(4, 6).fit(z, labels.masked_fill(labels == 3, 4))
    with pytest.raises(ValueError, match="NaN or infinite"):
        Ellips(4, 6).fit(z.index_fill(0, torch.tensor([7]), float("inf")), labels)


def test_unfitted_is_an_error_not_a_number() -> None:
    for use in (lambda e: e(torch.zeros(2, 3)), lambda e: e.sample(2), lambda e: e.digest()):
        with pytest.raises(NotFittedError, match="Expected a fitted mixture"):
            use(Ellips(2, 3))
    assert not Ellips(2, 3).is_fitted


@pytest.mark.parametrize("kind", ["full", "diagonal"])
def test_numbers_that_are_assigned_become_float64(kind: str) -> None:
    """With ``assign=True`` torch takes tensors as they are, and means in float32 would be subtracted in float32."""
    ellips = random_mixture(kind, 4, 4)
    narrow = {k: v.float() if v.is_floating_point() else v for k, v in ellips.state_dict().items()}
    fresh = Ellips(4, 4, covariance_type=ellips.covariance_type).trainable_()
    for mixture in (fresh, Ellips(4, 4, covariance_type=ellips.covariance_type)):
        mixture.load_state_dict(narrow, assign=True)
        assert {tensor.dtype for tensor in mixture.stored} == {torch.float64}
        assert torch.equal(mixture.means, ellips.means.float().double())
        z = random_points(ellips, 5)
        assert check(mixture, z, mixture.certify(z)).all()
    assert isinstance(fresh.means, torch.nn.Parameter)
