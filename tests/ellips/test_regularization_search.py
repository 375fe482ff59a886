"""Choosing the regularisation for the certificate."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
import torch
from torch import Tensor

from ellips import ClassMoments, Ellips
from ellips.gaussians import Regularization
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
    grid = [Regularization(p, s) for p in (0.0, 0.5) for s in (0.0, 0.1, 0.5)]
    assert [candidate.regularization for candidate in candidates] == grid
    for candidate in candidates:
        ellips = Ellips(3, 8, **asdict(candidate.regularization)).fit(train, target)
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


@pytest.mark.parametrize(
    "options", [{"radius": -1.0}, {"sigma": 0.0}, {"alpha": 1.0}, {"pooling": ()}, {"shrinkage": (0.5, 1.5)}]
)
def test_a_grid_out_of_range_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        RegularizationSearch(**{"radius": 0.5, **options})  # type: ignore[arg-type]
