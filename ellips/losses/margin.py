"""Losses on the scores of a linear classifier whose leads are distances: how far shall each class lead?"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_LEAST_SHARE = 0.01  # of the radius, that a class which does not lead is asked for all the same


def offset_cross_entropy(scores: Tensor, labels: Tensor, temperature: float, margin: float) -> Tensor:
    """Return the cross-entropy of scores of which the label's has been lowered by ``margin``.

    Args:
        scores: Shape ``(N, K)``.
        labels: Shape ``(N,)``, int64.
        temperature: Factor of the scores before the softmax; the larger, the more the closest images count.
        margin: By how much the label's score is asked to lead.
    """
    lead = margin * functional.one_hot(labels, scores.shape[1]).to(scores)
    return functional.cross_entropy(temperature * (scores - lead), labels)


def emma(scores: Tensor, labels: Tensor, edges: Tensor, temperature: float, radius: float) -> Tensor:
    """Return the cross-entropy against the worst that each rival could do within a radius of its own (EMMA).

    A rival's score is raised by ``‖w_j − w_y‖ r_j``, what moving by r_j in the direction that favours it most does.
    r_j is the distance at which it would overtake the label, at most ``radius``: images ask for what is nearly theirs,
    so that a hard one does not take part as if it could be held at the whole radius. What is added has no gradient;
    learned directions could lower the loss by coming together
    (Hu, Zou, Wang, Leino and Fredrikson 2023, "Unlocking deterministic robustness certification on ImageNet").

    Args:
        scores: Shape ``(N, K)``.
        labels: Shape ``(N,)``, int64.
        edges: ``‖w_i − w_j‖``, shape ``(K, K)``.
        temperature: Factor of the scores before the softmax.
        radius: The largest r_j, a distance between features.
    """
    ahead = scores - scores.gather(1, labels[:, None])
    with torch.no_grad():
        most = radius * edges[labels]
        raised = (-ahead).clamp(_LEAST_SHARE * most, most)
    return functional.cross_entropy(temperature * (ahead + raised), labels)
