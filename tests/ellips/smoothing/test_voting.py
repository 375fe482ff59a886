from __future__ import annotations

import pytest
import torch
from scipy.stats import kstest, norm
from torch import Tensor

from ellips.chunks import Chunks
from ellips.smoothing import BLOCK, ImageNoise, VotePlan, count_votes, majority, soft_votes
from ellips.smoothing.voting import Votes, cast_votes


def half_space(images: Tensor) -> Tensor:
    return (images[:, 0, 0, 0] > 0).long()


def shifted(distances: list[float]) -> Tensor:
    """Images at some distances from the half space's boundary, all different."""
    images = torch.randn(len(distances), 1, 2, 3, generator=torch.Generator().manual_seed(0))
    images[:, 0, 0, 0] = torch.tensor(distances)
    return images


def vote(images: Tensor, plan: VotePlan | None = None, chunk_size: int = 500, seed: int = 0, **more: int) -> Votes:
    plan = plan or VotePlan.stopping(0.5, 1000, 0.001, (0.25, 0.5, 0.75))
    return count_votes(
        half_space, images, plan, num_selection=more.get("num_selection", 100), seed=seed, chunk_size=chunk_size
    )


def test_noise_is_the_same_however_it_is_asked_for() -> None:
    image = torch.rand(1, 3, 5)
    whole = torch.empty(3 * BLOCK + 5, 1, 3, 5)
    ImageNoise(image, 0.5, 7, "estimation").fill(whole)
    stream, parts = ImageNoise(image, 0.5, 7, "estimation"), []
    for count in (1, BLOCK - 1, BLOCK, 3, BLOCK + 2):
        parts.append(torch.empty(count, 1, 3, 5))
        stream.fill(parts[-1])
    assert torch.equal(torch.cat(parts), whole)


def test_noise_is_gaussian_and_of_its_own_for_image_seed_and_purpose() -> None:
    image, drawn = torch.zeros(1, 8, 8), []
    for of, seed, purpose in [(image, 0, "a"), (image, 1, "a"), (image, 0, "b"), (image + 1e-6, 0, "a")]:
        out = torch.empty(200, 1, 8, 8)
        ImageNoise(of, 0.3, seed, purpose).fill(out)
        drawn.append(out.flatten().double() / 0.3)
    for values in drawn:
        assert kstest(values, "norm").pvalue > 1e-4
    correlations = torch.corrcoef(torch.stack(drawn)) - torch.eye(4)
    assert correlations.abs().max() < 0.05


@pytest.mark.parametrize("chunk_size", [1, 31, 97, 4096])
def test_the_result_does_not_depend_on_the_batches(chunk_size: int) -> None:
    images = shifted([2.0, 0.6, 0.3, 0.05, -0.2, -1.0, 0.9])
    plan = VotePlan.stopping(0.5, 300, 0.01, (0.25, 0.5))
    together = vote(images, plan)
    for one, other in zip(together, vote(images, plan, chunk_size), strict=True):
        assert torch.equal(one, other)
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    for one, other in zip(together, vote(images[order], plan, chunk_size), strict=True):
        assert torch.equal(one[order], other)
    alone = [vote(image[None], plan, chunk_size) for image in images]
    for i, one in enumerate(together):
        assert torch.equal(one, torch.cat([votes[i] for votes in alone]))


def test_votes_of_many_images_share_batches() -> None:
    sizes: list[int] = []

    def counting(images: Tensor) -> Tensor:
        sizes.append(len(images))
        return half_space(images)

    streams = [ImageNoise(image, 0.5, 0, "x") for image in shifted([1.0, 2.0, 3.0])]
    classes = cast_votes(counting, streams, [40, 0, 25], Chunks(30, 30))
    assert sizes == [30, 30, 5]
    assert [len(found) for found in classes] == [40, 0, 25]


def test_easy_images_take_few_draws_and_hard_ones_many() -> None:
    votes = vote(shifted([5.0, *[0.27] * 5, 0.1]), VotePlan.stopping(0.5, 10_000, 0.001, (0.25, 0.5, 0.75)))
    assert votes.draws[0] < 200
    assert votes.radius[0] == 0.75
    beyond = votes.draws[1:-1].median()  # a little beyond a target; one may be unlucky, and be given up
    assert beyond > 1000
    assert 0.2 < votes.radius[1:-1].median() < 0.27
    assert votes.draws[-1] < beyond  # none is in reach
    assert votes.radius[-1] < 0.1


def test_the_radius_approaches_the_distance_of_a_linear_classifier_as_draws_grow() -> None:
    distance = torch.tensor([0.4, 0.7]).double()
    gaps = []
    for draws in (100, 1000, 10_000, 100_000):
        votes = vote(shifted(distance.tolist()), VotePlan.fixed(0.5, draws, 0.001), 20_000)
        gaps.append((distance - votes.radius) / distance)
        assert (gaps[-1] > 0).all()
    assert (gaps[-1] < 0.02).all()
    assert (torch.stack(gaps).diff(dim=0) < 0).all()


def test_selection_ends_when_no_other_class_can_win_and_selects_the_same() -> None:
    votes = vote(shifted([5.0, 0.02]), num_selection=100)
    assert votes.selection.tolist() == [51, 100]
    single = vote(shifted([5.0, -5.0]), num_selection=1)
    assert single.selection.tolist() == [1, 1]
    assert single.prediction.tolist() == [1, 0]


def test_abstentions_have_no_radius_and_name_a_rival() -> None:
    votes = vote(shifted([0.0, 3.0]))
    assert votes.prediction.tolist() == [-1, 1]
    assert votes.radius[0] == 0
    assert votes.rival[0] in (0, 1)
    assert votes.rival[1] == -1  # no vote for any other class
    assert vote(shifted([])).radius.shape == (0,)


def test_a_class_that_was_selected_and_never_voted_for_has_no_votes() -> None:
    """Such as one that a single draw selects."""
    calls = iter([5, 0, 0])
    votes = count_votes(
        lambda x: torch.full((len(x),), next(calls)),
        shifted([0.1]),
        VotePlan.fixed(0.5, 1, 0.4),
        num_selection=1,
        seed=0,
    )
    assert votes.votes.tolist() == [0]
    assert votes.prediction.tolist() == [-1]


def test_a_majority_is_returned_where_it_is_told_apart() -> None:
    found = majority(half_space, shifted([1.0, -1.0, 0.0]), 0.5, copies=500, seed=0, level=1e-4)
    assert found.tolist() == [1, 0, -1]
    assert majority(half_space, shifted([]), 0.5, copies=500, seed=0, level=1e-4).tolist() == []


def test_soft_votes_are_of_copies_with_the_noise_that_votes_have() -> None:
    images, seen = shifted([0.1, -0.1]), []
    soft_votes(lambda x: seen.append(x) or torch.zeros(len(x), 2), images, 0.5, 2000, 0)  # type: ignore[func-returns-value]
    noise = seen[0].view(2, 2000, 6) - images.view(2, 1, 6)
    assert noise.std(1) == pytest.approx(0.5, rel=0.1)
    assert noise.mean(1) == pytest.approx(0, abs=0.05)


def test_soft_votes_are_probabilities_that_can_be_climbed() -> None:
    images = shifted([0.1, -0.1]).requires_grad_()
    scores = soft_votes(lambda x: torch.stack([-x[:, 0, 0, 0], x[:, 0, 0, 0]], 1), images, 0.5, 64, 0)
    torch.testing.assert_close(scores.sum(1), torch.ones(2))
    scores[:, 1].sum().backward()
    assert images.grad is not None
    assert (images.grad[:, 0, 0, 0] > 0).all()
    assert float(scores[0, 1].detach()) == pytest.approx(float(norm.cdf(0.1)), abs=0.2)
