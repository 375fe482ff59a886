"""Choosing the regularisation by votes under noise, against a plain loop and another library's bound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from scipy.stats import binomtest, norm
from torch import Tensor

from ellips import ClassMoments, Ellips, EllipsHead
from ellips.gaussians import CovarianceType, Mixture, Regularization
from ellips.gaussians.moments import Moments
from ellips.regularization_search import Candidate, RegularizationSearch
from ellips.vote_search import noise_covariance, select_by_votes, vote_radii
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


NOISY = replace(SEARCH, shrinkage=(0.1,), noise=(0.0, 0.5, 2.0))


def test_the_noise_of_latents_is_what_is_left_without_the_images() -> None:
    latents, _ = make_split(3000, 3, copies=5)
    noise = noise_covariance(latents)
    expected = torch.diag((0.7 * torch.linspace(0.2, 1.5, 8)) ** 2).double()
    torch.testing.assert_close(noise, expected, rtol=0.05, atol=0.02)
    own = np.mean([np.cov(image.T) for image in latents[:50].double().numpy()], axis=0)
    torch.testing.assert_close(noise_covariance(latents[:50]), torch.from_numpy(own))
    with pytest.raises(ValueError, match="at least 2 noisy copies"):
        noise_covariance(latents[:, :1])


@pytest.mark.parametrize("kind", ["full", "diagonal"])
def test_multiples_of_the_noise_are_tried_and_the_best_is_handed_on(kind: CovarianceType) -> None:
    (train, target), (held, labels) = make_split(15, 0, copies=3), make_split(60, 1, COPIES)
    head = EllipsHead(8, 3, latent_dim=None, covariance_type=kind, shrinkage=0.1)
    head.fit(train.flatten(0, 1), target.repeat_interleave(3)).eval()
    moments, noise = head.moments.held(), noise_covariance(held)
    best, candidates = select_by_votes(moments, held, labels, NOISY, covariance_type=kind)
    assert [(c.regularization.pooling, c.noise) for c in candidates] == list(product((0.0, 0.5), (0.0, 0.5, 2.0)))
    assert NOISY.size == len(candidates)
    for candidate in candidates:
        own = candidate.noise * (noise if kind == "full" else noise.diagonal())
        count = moments.count.double().view(-1, *[1] * own.ndim)
        plain = moments._replace(scatter=moments.scatter + count * own)  # added to each class, and so to the common one
        ellips = Ellips(3, 8, covariance_type=kind, **asdict(candidate.regularization)).fit_moments(*plain)
        votes = torch.stack([torch.bincount(ellips.predict(image), minlength=3) for image in held])
        assert candidate.accuracy == pytest.approx(float((votes.argmax(1) == labels).double().mean()))
    assert best.noise > 0
    assert best.added is not None
    torch.testing.assert_close(best.added, best.noise * (noise if kind == "full" else noise.diagonal()))
    head.ellips.regularization = best.regularization
    before = head(held.flatten(0, 1))
    votes = head.finalize(best.added)(held.flatten(0, 1)).argmax(1).view(60, COPIES)
    assert not torch.equal(votes, before.argmax(1).view(60, COPIES))
    assert float((votes.mode(1).values == labels).double().mean()) == pytest.approx(best.accuracy)


def test_noise_where_it_cannot_be_added_is_refused() -> None:
    moments, (held, labels) = train_moments(), make_split(12, 1, COPIES)
    for changed in ({"sigma": None}, {"noise": (-1.0,)}, {"noise": ()}):
        with pytest.raises(ValueError, match="noise"):
            replace(NOISY, **changed)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="full or diagonal covariances for `noise`"):
        select_by_votes(moments, held, labels, NOISY, covariance_type="low_rank", rank=2)
    with pytest.raises(ValueError, match="full or diagonal covariances to add another to"):
        Mixture(3, 8, covariance_type="low_rank", rank=2).fit_collected(moments, torch.eye(8))


def _search_on_a_rank(folder: Path) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    held, labels = make_split(31, 1, COPIES)
    _, candidates = select_by_votes(train_moments(), held[rank::2], labels[rank::2], SEARCH)
    candidates += select_by_votes(train_moments(), held[rank::2], labels[rank::2], NOISY)[1]
    torch.save([_numbers(c) for c in candidates], folder / f"{rank}.pt")


def _numbers(candidate: Candidate) -> list[float]:
    return [candidate.accuracy, candidate.certified_accuracy, candidate.mean_radius]


def test_two_processes_find_what_one_finds(tmp_path: Path) -> None:
    run_together(_search_on_a_rank, tmp_path)
    _, candidates = select_by_votes(train_moments(), *make_split(31, 1, COPIES), SEARCH)
    candidates += select_by_votes(train_moments(), *make_split(31, 1, COPIES), NOISY)[1]
    expected = torch.tensor([_numbers(c) for c in candidates])
    for rank in range(2):
        torch.testing.assert_close(torch.tensor(torch.load(tmp_path / f"{rank}.pt")), expected)
