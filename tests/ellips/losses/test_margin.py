from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ellips.losses import emma, offset_cross_entropy


def drawn() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(4, 6, dtype=torch.float64), dim=1)
    return torch.randn(7, 4, dtype=torch.float64), torch.randint(4, (7,)), torch.cdist(directions, directions)


def softmax_loss(logits: list[float], label: int) -> float:
    return math.log(sum(math.exp(value) for value in logits)) - logits[label]


def test_the_offset_is_taken_off_the_labels_score() -> None:
    scores, labels, _ = drawn()
    expected = []
    for row, label in zip(scores.tolist(), labels.tolist(), strict=True):
        row[label] -= 0.4
        expected.append(softmax_loss([3.0 * value for value in row], label))
    assert float(offset_cross_entropy(scores, labels, 3.0, 0.4)) == pytest.approx(sum(expected) / 7, rel=1e-12)


def test_each_rival_is_raised_by_what_it_needs_at_most_by_the_radius() -> None:
    scores, labels, edges = drawn()
    expected = []
    for row, label in zip(scores.tolist(), labels.tolist(), strict=True):
        logits = [0.0] * 4
        for rival in set(range(4)) - {label}:
            lead, most = row[label] - row[rival], 0.5 * float(edges[label, rival])
            logits[rival] = 2.0 * (min(max(lead, 0.01 * most), most) - lead)
        expected.append(softmax_loss(logits, label))
    assert float(emma(scores, labels, edges, 2.0, 0.5)) == pytest.approx(sum(expected) / 7, rel=1e-12)


def test_what_a_rival_is_raised_by_has_no_gradient() -> None:
    scores, labels, edges = drawn()
    scores.requires_grad_()
    edges.requires_grad_()
    emma(scores, labels, edges, 2.0, 0.5).backward()
    lead = scores.detach().gather(1, labels[:, None]) - scores.detach()
    most = 0.5 * edges.detach()[labels]
    logits = 2.0 * (lead.clamp(0.01 * most, most) - lead)
    own = torch.nn.functional.one_hot(labels, 4)
    torch.testing.assert_close(scores.grad, 2.0 * (logits.softmax(1) - own) / 7)
    assert edges.grad is None


def test_a_class_with_the_direction_of_another_does_no_harm() -> None:
    edges = torch.tensor([[0.0, 0.0], [0.0, 0.0]])
    scores = torch.tensor([[1.0, 1.0]], requires_grad=True)
    loss = emma(scores, torch.tensor([0]), edges, 2.0, 0.5)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(math.log(2))
    assert scores.grad is not None
    assert bool(scores.grad.isfinite().all())
