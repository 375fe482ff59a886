"""Losses on soft votes: values against loops, gradients against finite differences, and what they are for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Tensor

from ellips import Ellips
from ellips.losses import Objective, ScoreCrossEntropy, VoteCrossEntropy, VoteRadius

COPIES = 4


def make_batch(images: int = 15, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(images) % 3
    centers = spread * torch.randn(3, 3, generator=generator, dtype=torch.float64)
    around = centers[labels] + 0.6 * torch.randn(images, 3, generator=generator, dtype=torch.float64)
    copies = around[:, None] + 0.6 * torch.randn(images, COPIES, 3, generator=generator, dtype=torch.float64)
    return copies.flatten(0, 1), labels.repeat_interleave(COPIES)


def make_ellips() -> Ellips:
    return Ellips(3, 3, shrinkage=0.1).fit(*make_batch(60))


def mean_posteriors(ellips: Ellips, latents: Tensor, temperature: float) -> np.ndarray:  # type: ignore[type-arg]
    result = []
    for image in latents.view(-1, COPIES, 3):
        copies = [np.exp(row - row.max()) for row in (0.5 * ellips(image) / temperature).numpy()]
        result.append(np.mean([row / row.sum() for row in copies], axis=0))
    return np.array(result)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_values_are_those_of_a_loop(temperature: float) -> None:
    (latents, labels), ellips, target = make_batch(), make_ellips(), 1.5
    entropy, hinge, right = [], [], 0
    for votes, label in zip(mean_posteriors(ellips, latents, temperature), labels[::COPIES].tolist(), strict=True):
        entropy.append(-np.log(votes[label]))
        second, top = np.sort(votes)[-2:]
        right += int(votes.argmax() == label)
        radius = 0.5 * (norm.ppf(top) - norm.ppf(second))
        hinge.append(max(0.0, target - radius) if votes.argmax() == label else 0.0)
    assert 5 < right < 15
    assert 0 < sum(value == 0 for value in hinge) < 15
    settings = {"copies": COPIES, "gaussians": "fitted", "temperature": temperature}
    assert float(VoteCrossEntropy(**settings)(latents, labels, ellips)) == pytest.approx(np.mean(entropy), rel=1e-9)  # type: ignore[arg-type]
    assert float(VoteRadius(target, **settings)(latents, labels, ellips)) == pytest.approx(np.mean(hinge), rel=1e-9)  # type: ignore[arg-type]


def test_the_batchs_own_gaussians_are_those_of_a_fit() -> None:
    latents, labels = make_batch()
    ellips = Ellips(3, 3, shrinkage=0.2)
    batch = VoteCrossEntropy(COPIES)(latents, labels, ellips)
    assert not ellips.is_fitted
    fitted = VoteCrossEntropy(COPIES, "fitted")(latents, labels, ellips.fit(latents, labels))
    assert float(batch) == pytest.approx(float(fitted), rel=1e-9)


@pytest.mark.parametrize("gaussians", ["batch", "fitted"])
@pytest.mark.parametrize("kind", ["entropy", "radius"])
def test_gradients_agree_with_finite_differences(kind: str, gaussians: str) -> None:
    (latents, labels), ellips = make_batch(9), make_ellips()
    term = (
        VoteCrossEntropy(COPIES, gaussians)  # type: ignore[arg-type]
        if kind == "entropy"
        else VoteRadius(2.0, COPIES, gaussians)  # type: ignore[arg-type]
    )
    assert torch.autograd.gradcheck(
        lambda z: term(z, labels, ellips), (latents.requires_grad_(),), eps=1e-6, atol=2e-5, rtol=1e-4
    )


def test_unanimous_votes_give_no_infinity() -> None:
    ellips = Ellips.from_parameters(50 * torch.eye(3), torch.eye(3).expand(3, 3, 3), torch.full((3,), 1 / 3))
    labels = torch.tensor([0, 1]).repeat_interleave(COPIES)
    latents = (50 * torch.eye(3, dtype=torch.float64)[labels]).requires_grad_()
    for term in (VoteCrossEntropy(COPIES, "fitted"), VoteRadius(2.0, COPIES, "fitted")):
        for target in (labels, labels.flip(0)):  # all right, all wrong
            value = term(latents, target, ellips)
            (gradient,) = torch.autograd.grad(value, latents)
            assert bool(torch.isfinite(value))
            assert bool(torch.isfinite(gradient).all())
    assert float(VoteRadius(2.0, COPIES, "fitted")(latents, labels, ellips).detach()) == 0


def test_descending_the_hinge_raises_the_share_of_votes() -> None:
    (latents, labels), ellips = make_batch(30), make_ellips()
    term, before = VoteRadius(2.0, COPIES, "fitted"), mean_posteriors(ellips, latents, 1.0)
    moved = latents.clone().requires_grad_()
    for _ in range(20):
        (gradient,) = torch.autograd.grad(term(moved, labels, ellips), moved)
        moved = (moved - 0.5 * gradient).detach().requires_grad_()
    after = mean_posteriors(ellips, moved.detach(), 1.0)
    truth = labels[::COPIES].numpy()
    right = before.argmax(1) == truth
    assert (after.argmax(1) == truth)[right].all()
    assert after.max(1)[right].mean() > before.max(1)[right].mean()


def test_a_batch_that_is_not_in_groups_is_refused() -> None:
    (latents, labels), ellips = make_batch(), make_ellips()
    for rows in (torch.randperm(60, generator=torch.Generator().manual_seed(0)), torch.arange(58)):
        with pytest.raises(ValueError, match=r"4 noisy copies .*batch_by_image"):
            VoteCrossEntropy(COPIES)(latents[rows], labels[rows], ellips)
    objective = Objective([ScoreCrossEntropy(), VoteCrossEntropy(COPIES)])
    image = torch.arange(15).repeat_interleave(COPIES)
    objective.validate_index(image)
    Objective([ScoreCrossEntropy()]).validate_index(image.flip(0)[:7])
    # Labels alone would not show that these rows are of different images.
    for index in (torch.arange(60), image[:58], image.roll(1)):
        with pytest.raises(ValueError, match=r"every 4 rows .*set copies to 4"):
            objective.validate_index(index)


@pytest.mark.parametrize("options", [{"copies": 1}, {"temperature": 0.0}, {"radius": -1.0}, {"gaussians": "none"}])
def test_settings_out_of_range_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        VoteRadius(**{"radius": 1.0, "copies": 4, **options})  # type: ignore[arg-type]
