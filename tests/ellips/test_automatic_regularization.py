"""Choosing the regularisation without a grid to type."""

from __future__ import annotations

import math
from dataclasses import asdict

import pytest
import torch
from torch import Tensor

from ellips import ClassMoments, Ellips, automatic_regularization
from ellips.automatic_regularization import POOLING, SHRINKAGE, choose_automatically, one_of_every
from ellips.certificates import check
from ellips.gaussians import Regularization
from ellips.gaussians.moments import Moments
from ellips.regularization_search import Candidate

DIM = 32


def split(sizes: list[int], seed: int, dim: int = DIM, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    centers = 0.6 * torch.randn(len(sizes), dim, generator=torch.Generator().manual_seed(99))
    spread = torch.linspace(0.3, 2.0, dim)
    return scale * (centers[labels] + spread * torch.randn(len(labels), dim, generator=generator)), labels


def moments_of(latents: Tensor, labels: Tensor) -> Moments:
    moments = ClassMoments(int(labels.max()) + 1, latents.shape[1])
    moments.update(latents.double(), labels)
    return moments.compute()


def choose(sizes: list[int], *, dim: int = DIM, scale: float = 1.0) -> tuple[Candidate, list[Candidate]]:
    held, labels = split([40] * len(sizes), 1, dim, scale)
    moments = moments_of(*split(sizes, 0, dim, scale))
    return choose_automatically(Ellips(len(sizes), dim), moments, held.double(), labels, torch.arange(len(labels)))


def test_the_largest_radius_among_the_most_accurate_wins_on_both_lines_through_it() -> None:
    best, tried = choose([25, 40, 60])
    held, labels = split([40] * 3, 1)
    train, target = split([25, 40, 60], 0)
    for candidate in tried:
        ellips = Ellips(3, DIM, **asdict(candidate.regularization)).fit(train.double(), target)
        found = ellips.certify(held.double(), "exact")
        correct = found.prediction == labels
        assert candidate.accuracy == pytest.approx(float(correct.double().mean()))
        relative = (found.radius / ellips.scale).clamp(max=1) * correct
        assert candidate.relative_radius == pytest.approx(float(relative.mean()), rel=1e-9)
    top = max(candidate.accuracy for candidate in tried)
    share = (120 * top + 1) / 122
    accurate = [c for c in tried if c.accuracy >= top - math.sqrt(share * (1 - share) / 120)]
    assert len({c.relative_radius for c in accurate}) > 1
    assert best.relative_radius == max(candidate.relative_radius for candidate in accurate)
    assert best.accuracy < top or len(accurate) < len(tried)
    seen = {candidate.regularization for candidate in tried}
    assert len(seen) == len(tried)
    assert seen >= {Regularization(p, best.regularization.shrinkage) for p in POOLING}
    assert seen >= {Regularization(best.regularization.pooling, s) for s in SHRINKAGE}


@pytest.mark.parametrize("scale", [2.0**-20, 2.0**12, 1000.0, 0.003])
def test_the_choice_does_not_depend_on_the_scale_of_the_latents(scale: float) -> None:
    (one, tried), (other, scaled) = choose([25, 40, 60]), choose([25, 40, 60], scale=scale)
    assert other.regularization == one.regularization
    for before, after in zip(tried, scaled, strict=True):
        assert after.regularization == before.regularization
        assert (after.accuracy, after.relative_radius) == pytest.approx((before.accuracy, before.relative_radius))
    assert other.mean_radius == pytest.approx(scale * one.mean_radius)


@pytest.mark.parametrize("few", [1, 2])
def test_a_class_of_one_or_two_images_gets_a_covariance_that_certifies(few: int) -> None:
    best, tried = choose([few, 40, 60])
    assert best.accuracy > 0.5
    assert any(math.isnan(candidate.accuracy) for candidate in tried) == (few == 1)  # no covariance of its own
    train, target = split([few, 40, 60], 0)
    ellips = Ellips(3, DIM, **asdict(best.regularization)).fit(train.double(), target)
    held = split([10] * 3, 2)[0].double()
    certificate = ellips.certify(held)
    assert bool(torch.isfinite(certificate.radius).all())
    assert bool((certificate.radius > 0).any())
    assert bool(check(ellips, held, certificate).all())


@pytest.mark.parametrize(
    ("few", "setting", "message"),
    [
        (1, Regularization(0.0, 0.1), "at least 2 samples .* class 0 has 1; raise `shrinkage` or `pooling`"),
        (2, Regularization(), "at least 33 samples .* class 0 has 2; raise `shrinkage` or `pooling`"),
    ],
)
def test_without_it_such_a_class_is_named_with_the_cure(few: int, setting: Regularization, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Ellips(3, DIM, **asdict(setting)).fit(*split([few, 40, 60], 0))


def test_what_no_setting_cures_is_named() -> None:
    held, labels = split([10] * 3, 1)
    moments = moments_of(*split([10, 0, 10], 0))
    with pytest.raises(ValueError, match="class 1 had none"):
        choose_automatically(Ellips(3, DIM), moments, held.double(), labels, torch.arange(30))
    with pytest.raises(ValueError, match=r"held-out latents .* got none"):
        choose_automatically(Ellips(3, DIM), moments, held[:0].double(), labels[:0], torch.arange(0))


def test_of_many_images_one_of_every_n_is_looked_at_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(automatic_regularization, "MAX_IMAGES", 50)
    held, labels = split([40] * 3, 1)
    moments, index, order = moments_of(*split([30] * 3, 0)), torch.arange(120), torch.randperm(120)
    _, tried = choose_automatically(Ellips(3, DIM), moments, held[order].double(), labels[order], index[order])
    monkeypatch.undo()
    rows = one_of_every(3, index).nonzero().squeeze(1)
    assert torch.equal(rows // 3, torch.arange(40))
    _, expected = choose_automatically(Ellips(3, DIM), moments, held[rows].double(), labels[rows], torch.arange(40))
    assert [c.accuracy for c in tried] == pytest.approx([c.accuracy for c in expected], nan_ok=True)
    assert {c.accuracy for c in tried} != {1.0}


def test_of_many_classes_fewer_images_are_certified_and_all_predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(automatic_regularization, "MAX_RIVALS", 3 * 25)
    held, labels = split([40] * 3, 1)
    moments, index, order = moments_of(*split([30] * 3, 0)), torch.arange(120), torch.randperm(120)
    ellips = Ellips(3, DIM)
    _, tried = choose_automatically(ellips, moments, held[order].double(), labels[order], index[order])
    for candidate in tried:
        ellips.regularization = candidate.regularization
        certificate = ellips.fit_moments(*moments).certify(held.double())
        right = certificate.prediction == labels
        assert candidate.accuracy == pytest.approx(float(right.double().mean()))
        radius = (certificate.radius * right)[one_of_every(5, index)]
        assert len(radius) == 24
        assert candidate.mean_radius == pytest.approx(float(radius.mean()))
        assert candidate.relative_radius == pytest.approx(float((radius / ellips.scale).clamp(max=1).mean()))


@pytest.mark.parametrize("n", [1, 2, 10, 50])
@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_processes_that_take_turns_look_at_as_many(n: int, processes: int) -> None:
    taken = one_of_every(n, torch.arange(200 * n))
    assert int(taken.sum()) == 200
    assert taken[0]
    shares = [int(taken[rank::processes].sum()) for rank in range(processes)]
    assert max(shares) - min(shares) <= 0.1 * sum(shares)
