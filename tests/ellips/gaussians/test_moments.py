from __future__ import annotations

import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ellips import ClassMoments


def _data(n: int, classes: int, dim: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, dim, generator=generator, dtype=torch.float64) * 3 + 100
    return z, torch.randint(classes, (n,), generator=generator)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.integers(1, 6), st.integers(1, 9), st.integers(1, 64), st.integers(0, 999))
def test_shuffled_batches_give_what_one_batch_gives(n: int, classes: int, dim: int, batch: int, seed: int) -> None:
    z, labels = _data(n, classes, dim, seed)
    whole, cut = ClassMoments(classes, dim), ClassMoments(classes, dim)
    whole.update(z, labels)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    for rows in order.split(batch):
        cut.update(z[rows], labels[rows])
    for left, right in zip(cut.compute(), whole.compute(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-10)


def test_agrees_with_the_definition() -> None:
    z, labels = _data(200, 3, 4, 0)
    moments = ClassMoments(3, 4)
    moments.update(z, labels)
    count, mean, scatter = moments.compute()
    diagonal = ClassMoments(3, 4, covariance_type="diagonal")
    diagonal.update(z, labels)
    for k in range(3):
        own = z[labels == k]
        assert int(count[k]) == len(own)
        torch.testing.assert_close(mean[k], own.mean(0))
        torch.testing.assert_close(scatter[k], own.mT.cov() * (len(own) - 1))
        torch.testing.assert_close(diagonal.compute().scatter[k], scatter[k].diagonal())


def test_nothing_is_held_before_the_first_batch_nor_copied_after() -> None:
    moments = ClassMoments(4, 3)
    assert moments.scatter.numel() == 0
    assert moments.held().scatter.shape == (4, 3, 3)
    z, labels = _data(50, 4, 3, 2)
    moments.update(z, labels)
    found = moments.held()
    assert found.scatter.data_ptr() == moments.scatter.data_ptr()
    kept = moments.compute().scatter
    moments.reset()
    assert moments.scatter.numel() == 0
    assert torch.equal(found.scatter, kept)


def test_stays_float64_resets_and_pickles() -> None:
    z, labels = _data(50, 2, 3, 2)
    moments = ClassMoments(2, 3).half().to(torch.bfloat16)
    moments.update(z.float(), labels)
    assert moments.compute().mean.dtype == torch.float64
    again = pickle.loads(pickle.dumps(moments))
    torch.testing.assert_close(again.compute().scatter, moments.compute().scatter, rtol=0, atol=0)
    moments.reset()
    moments.update(z, labels)
    assert int(moments.compute().count.sum()) == 50


def test_a_refused_batch_adds_nothing() -> None:
    moments = ClassMoments(2, 3)
    good = torch.zeros(2, 3), torch.tensor([0, 1])
    moments.update(*good)
    for z, labels, message in (
        (torch.zeros(2, 4), good[1], r"shape \(N, 3\)"),
        (torch.full((2, 3), float("nan")), good[1], "finite"),
        (good[0], torch.tensor([0, 2]), r"lie in \[0, 2\)"),
        (good[0], torch.tensor([0, -1]), r"lie in \[0, 2\)"),
        (good[0], torch.tensor([0.0, 1.0]), "integer tensor"),
        (good[0], torch.tensor([0]), r"shape \(2,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            moments.update(z, labels)
    assert moments.compute().count.tolist() == [1, 1]
