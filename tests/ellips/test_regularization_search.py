"""Choosing the regularisation for the certificate, and scikit-learn's shrinkage."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.covariance import OAS, LedoitWolf
from torch import Tensor

from ellips import ClassMoments, Ellips
from ellips.gaussians.shrinkage import fit_shrunk
from ellips.regularization_search import RegularizationSearch, select_regularization


def make_split(n: int, seed: int, dim: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    centers = 2 * torch.eye(3, dim)
    scale = torch.linspace(0.2, 1.5, dim)
    return centers[labels] + scale * torch.randn(n, dim, generator=generator), labels


def test_chooses_the_grid_point_of_highest_certified_accuracy() -> None:
    (train, target), (held, labels) = make_split(45, 0), make_split(300, 1)
    moments = ClassMoments(3, 8)
    moments.update(train, target)
    search = RegularizationSearch(0.3, pooling=(0.0, 0.5), shrinkage=(0.0, 0.1, 0.5), method="exact")
    best, candidates = select_regularization(moments.compute(), held, labels, search)
    assert [(c.pooling, c.shrinkage) for c in candidates] == [(p, s) for p in (0.0, 0.5) for s in (0.0, 0.1, 0.5)]
    for candidate in candidates:
        ellips = Ellips(3, 8, pooling=candidate.pooling, shrinkage=candidate.shrinkage).fit(train, target)
        certificate = ellips.certify(held, "exact")
        correct = certificate.prediction == labels
        assert candidate.accuracy == pytest.approx(float(correct.double().mean()))
        held_share = float((correct & (certificate.radius >= 0.3)).double().mean())
        assert candidate.certified_accuracy == pytest.approx(held_share)
    assert best.certified_accuracy == max(c.certified_accuracy for c in candidates)
    assert best.certified_accuracy > candidates[0].certified_accuracy


def test_a_radius_per_image_is_used_in_place_of_one_for_all() -> None:
    (train, target), (held, labels) = make_split(60, 0), make_split(90, 1)
    moments = ClassMoments(3, 8)
    moments.update(train, target)
    search = RegularizationSearch(0.3, pooling=(0.2,), shrinkage=(0.2,))
    (one, _), (same, _), (none, _) = (
        select_regularization(moments.compute(), held, labels, search, radius=radius)
        for radius in (None, torch.full((90,), 0.3, dtype=torch.float64), torch.full((90,), torch.inf))
    )
    assert one == same
    assert none.certified_accuracy == 0


def test_singular_candidates_are_stepped_over_and_nothing_else_is() -> None:
    (train, target), (held, labels) = make_split(12, 0), make_split(30, 1)
    moments = ClassMoments(3, 8)
    moments.update(train, target)
    search = RegularizationSearch(0.1, pooling=(0.0,), shrinkage=(0.0, 0.5))
    best, candidates = select_regularization(moments.compute(), held, labels, search)
    assert np.isnan(candidates[0].accuracy)
    assert best == candidates[1]
    with pytest.raises(ValueError, match="positive definite"):
        select_regularization(moments.compute(), held, labels, RegularizationSearch(0.1, (0.0,), (0.0,)))
    with pytest.raises(ValueError, match="none"):
        select_regularization(moments.compute(), held[:0], labels[:0], search)
    with pytest.raises(ValueError, match="radius"):
        select_regularization(moments.compute(), held, labels, search, radius=torch.zeros(3))


@pytest.mark.parametrize("options", [{"radius": -1.0}, {"pooling": ()}, {"shrinkage": (0.5, 1.5)}])
def test_a_grid_out_of_range_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        RegularizationSearch(**{"radius": 0.5, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("covariance_type", ["full", "diagonal"])
@pytest.mark.parametrize(("name", "oracle"), [("ledoit_wolf", LedoitWolf), ("oas", OAS)])
def test_scikit_learns_estimators_are_fitted_per_class(name: str, oracle: type, covariance_type: str) -> None:
    # 5 samples per class in 8 dimensions: the sample covariance is singular, the estimate is not.
    latents, labels = make_split(15, 0)
    ellips = Ellips(3, 8, covariance_type=covariance_type)  # type: ignore[arg-type]
    assert fit_shrunk(ellips, latents, labels, name) is ellips  # type: ignore[arg-type]
    for k in range(3):
        expected = oracle().fit(latents[labels == k].double().numpy()).covariance_
        if covariance_type == "diagonal":
            expected = np.diag(np.diag(expected))
        np.testing.assert_allclose(ellips.covariances[k].numpy(), expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(ellips.priors, torch.full((3,), 1 / 3, dtype=torch.float64))


def test_shrinkage_formulas_refuse_what_they_cannot_use() -> None:
    latents, labels = make_split(15, 0)
    with pytest.raises(ValueError, match="estimator"):
        fit_shrunk(Ellips(3, 8), latents, labels, "mcd")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="class 3"):
        fit_shrunk(Ellips(4, 8), latents, labels, "oas")
