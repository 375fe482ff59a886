"""Choosing the regularisation by votes under noise, against a plain loop and another library's bound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from scipy.stats import binomtest, norm
from torch import Tensor

from ellips import ClassMoments, Ellips
from ellips.gaussians import Regularization
from ellips.gaussians.moments import Moments
from ellips.regularization_search import Candidate, RegularizationSearch
from ellips.vote_search import select_by_votes, vote_radii
from tests.processes import run_together

COPIES = 30


def make_split(n: int, seed: int, copies: int = 1, dim: int = 8) -> tuple[Tensor, Tensor]:
    """Latents ``(n, copies, d)``: images spread around their class, copies spread around their image."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    scale = torch.linspace(0.2, 1.5, dim)
    images = 2 * torch.eye(3, dim)[labels] + 0.7 * scale * torch.randn(n, dim, generator=generator)
    return images[:, None] + 0.7 * scale * torch.randn(n, copies, dim, generator=generator), labels


def train_moments() -> Moments:
    latents, labels = make_split(15, 0, copies=3)
    moments = ClassMoments(3, 8)
    moments.update(latents.flatten(0, 1), labels.repeat_interleave(3))
    return moments.compute()


def make_search(
    radius: float, pooling: Sequence[float], shrinkage: Sequence[float], alpha: float = 0.001
) -> RegularizationSearch:
    return RegularizationSearch(radius, pooling, shrinkage, sigma=0.5, alpha=alpha)


SEARCH = make_search(0.4, (0.0, 0.5), (0.0, 0.1, 0.5))


def test_radii_are_those_of_the_clopper_pearson_bound() -> None:
    radii = vote_radii(20, 0.25, 0.01)
    for won in range(21):
        share = binomtest(won, 20, alternative="greater").proportion_ci(0.99, "exact").low
        assert float(radii[won]) == pytest.approx(max(0.0, 0.25 * norm.ppf(share)), abs=1e-12)
    assert radii[20] > radii[19] > radii[12] == 0


def test_chooses_the_grid_point_whose_votes_certify_most() -> None:
    moments, (held, labels) = train_moments(), make_split(60, 1, COPIES)
    labels[::10] = (labels[::10] + 1) % 3  # votes that are sure and wrong certify nothing
    best, candidates = select_by_votes(moments, held, labels, SEARCH)
    assert [c.regularization for c in candidates] == [Regularization(p, s) for p in (0.0, 0.5) for s in (0.0, 0.1, 0.5)]
    for candidate in candidates:
        ellips = Ellips(3, 8, **asdict(candidate.regularization)).fit_moments(*moments)
        radii = []
        for image, label in zip(held, labels.tolist(), strict=True):
            won = np.bincount(ellips(image).argmax(1).numpy(), minlength=3)
            share = binomtest(int(won.max()), COPIES, alternative="greater").proportion_ci(0.999, "exact").low
            radii.append(max(0.0, 0.5 * norm.ppf(share)) if won.argmax() == label else -1.0)
        assert candidate.accuracy == pytest.approx(np.mean([r >= 0 for r in radii]))
        assert candidate.certified_accuracy == pytest.approx(np.mean([r >= 0.4 for r in radii]))
        assert candidate.mean_radius == pytest.approx(np.mean(np.maximum(radii, 0)))
    assert best == max(candidates, key=lambda c: (c.certified_accuracy, c.mean_radius))
    assert best.certified_accuracy > candidates[0].certified_accuracy
    assert best.accuracy < 0.95


def test_ties_go_to_the_mean_radius() -> None:
    moments, (held, labels) = train_moments(), make_split(12, 1, COPIES)
    search = make_search(0.05, (0.0, 0.2, 0.5, 1.0), (0.03, 0.1, 0.2, 0.3, 0.5))
    best, candidates = select_by_votes(moments, held, labels, search)
    tied = [c for c in candidates if c.certified_accuracy == best.certified_accuracy]
    assert len({c.mean_radius for c in tied}) > 1
    assert best.mean_radius == max(c.mean_radius for c in tied)


def test_singular_candidates_are_stepped_over_and_nothing_else_is() -> None:
    (train, target), (held, labels) = make_split(12, 0), make_split(30, 1, COPIES)
    moments = ClassMoments(3, 8)
    moments.update(train.flatten(0, 1), target)
    best, candidates = select_by_votes(moments.compute(), held, labels, make_search(0.1, (0.0,), (0.0, 0.5)))
    assert np.isnan(candidates[0].accuracy)
    assert best == candidates[1]
    with pytest.raises(ValueError, match="positive definite"):
        select_by_votes(moments.compute(), held, labels, make_search(0.1, (0.0,), (0.0,)))


def test_a_radius_that_no_vote_could_reach_is_refused() -> None:
    moments, (held, labels) = train_moments(), make_split(12, 1, 8)
    with pytest.raises(ValueError, match=r"at most 0 .*raise the number of copies"):
        select_by_votes(moments, held, labels, SEARCH)
    _, candidates = select_by_votes(moments, held, labels, make_search(0.3, (0.5,), (0.5,), alpha=0.1))
    assert candidates[0].certified_accuracy > 0


@pytest.mark.parametrize(("latents", "labels"), [((12, 8), 12), ((12, 30, 7), 12), ((12, 30, 8), 11), ((0, 30, 8), 0)])
def test_latents_that_do_not_fit_are_refused(latents: tuple[int, ...], labels: int) -> None:
    with pytest.raises(ValueError, match="Expected"):
        select_by_votes(train_moments(), torch.zeros(latents), torch.zeros(labels, dtype=torch.int64), SEARCH)


def test_a_search_without_noise_is_refused() -> None:
    held, labels = make_split(12, 1, COPIES)
    with pytest.raises(ValueError, match="`sigma`"):
        select_by_votes(train_moments(), held, labels, RegularizationSearch(0.4))


def _search_on_a_rank(folder: Path) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    held, labels = make_split(31, 1, COPIES)
    _, candidates = select_by_votes(train_moments(), held[rank::2], labels[rank::2], SEARCH)
    torch.save([_numbers(c) for c in candidates], folder / f"{rank}.pt")


def _numbers(candidate: Candidate) -> list[float]:
    return [candidate.accuracy, candidate.certified_accuracy, candidate.mean_radius]


def test_two_processes_find_what_one_finds(tmp_path: Path) -> None:
    run_together(_search_on_a_rank, tmp_path)
    _, candidates = select_by_votes(train_moments(), *make_split(31, 1, COPIES), SEARCH)
    expected = torch.tensor([_numbers(c) for c in candidates])
    for rank in range(2):
        torch.testing.assert_close(torch.tensor(torch.load(tmp_path / f"{rank}.pt")), expected)
