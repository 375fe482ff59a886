"""Counts, means and scatters per class, collected batch by batch and over processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from ellips.precision import keep_dtype
from ellips.validation import at_least, one_of, validate_labels, validate_latents


class Moments(NamedTuple):
    """Per-class moments, float64.

    Attributes:
        count: Shape ``(K,)``, int64.
        mean: Shape ``(K, d)``; zero for a class without samples.
        scatter: Shape ``(K, d, d)``, Σ (z−mean)(z−mean)ᵀ; shape ``(K, d)``, its diagonal, for diagonal covariances.
    """

    count: Tensor  # type: ignore[assignment]  # hides tuple.count, which nobody needs here
    mean: Tensor
    scatter: Tensor


class ClassMoments(Metric):
    """Streaming per-class count, mean and scatter.

    Batches are centred before they are squared and merged by the pairwise update of Chan, Golub and LeVeque (1983), in
    float64, so the result does not depend on how the data were cut into batches, beyond rounding. Over processes the
    states are gathered and merged the same way.

    Args:
        num_classes: K.
        dim: Width d of the latents.
        covariance_type: ``"full"`` keeps ``(K, d, d)`` scatters, ``"diagonal"`` only their diagonals.

    Raises:
        ValueError: From :meth:`update`, for latents that are not finite or of another width, and labels out of range.
    """

    passes = 1  # over the data; ClassSketch takes more
    full_state_update = False
    higher_is_better = None
    is_differentiable = False

    count: Tensor
    mean: Tensor
    scatter: Tensor

    def __init__(self, num_classes: int, dim: int, covariance_type: Literal["full", "diagonal"] = "full") -> None:
        super().__init__()
        at_least(1, num_classes=num_classes, dim=dim)
        one_of(("full", "diagonal"), covariance_type=covariance_type)
        self.num_classes, self.dim = num_classes, dim
        self.diagonal = covariance_type == "diagonal"
        shape = (num_classes, dim) if self.diagonal else (num_classes, dim, dim)
        # Gathered, not summed: means do not add up.
        self.add_state("count", torch.zeros(num_classes, dtype=torch.int64), dist_reduce_fx=None)
        self.add_state("mean", torch.zeros(num_classes, dim, dtype=torch.float64), dist_reduce_fx=None)
        self.add_state("scatter", torch.zeros(shape, dtype=torch.float64), dist_reduce_fx=None)

    def update(self, z: Tensor, labels: Tensor) -> None:
        """Add a batch.

        Args:
            z: Latents, shape ``(N, d)``, any floating-point type.
            labels: Shape ``(N,)``, integers in ``[0, K)``.

        Raises:
            ValueError: If either is of another shape or kind, not finite or out of range; nothing is added then.
        """
        validate_latents(z, self.dim)
        validate_labels(labels, self.num_classes, len(z))
        order = labels.argsort()
        counts = torch.bincount(labels, minlength=self.num_classes)
        start = 0
        for k, n in enumerate(counts.tolist()):
            if n:
                self._add(k, z[order[start : start + n]].detach().double())
                start += n

    def _add(self, k: int, x: Tensor) -> None:
        """Merge the rows ``x`` of class ``k``."""
        mean = x.mean(0)
        x = x - mean
        scatter = x.square().sum(0) if self.diagonal else x.mT @ x
        new, old = len(x), self.count[k].double()  # stays on the device: reading it would wait for the GPU
        delta = mean - self.mean[k]
        self.mean[k] += delta * (new / (old + new))
        self.scatter[k] += scatter + _outer(delta, self.diagonal) * (old * new / (old + new))
        self.count[k] += new

    def end_pass(self) -> None:
        """End a pass over the data: nothing is to be done for the next, for there is none."""

    def compute(self) -> Moments:
        """Return the moments of everything seen, by all processes."""
        if self.count.ndim == 1:
            return Moments(self.count.clone(), self.mean.clone(), self.scatter.clone())
        return merge(*(Moments(*parts) for parts in zip(self.count, self.mean, self.scatter, strict=True)))

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> ClassMoments:
        """Move to another device but stay in float64."""
        super()._apply(keep_dtype(fn), exclude_state)
        return self


def merge(*parts: Moments) -> Moments:
    """Return the moments of the union of disjoint samples (Chan, Golub and LeVeque 1983).

    Args:
        *parts: At least one :class:`Moments`, all of the same shapes.

    Raises:
        ValueError: If none is given.
    """
    if not parts:
        raise ValueError("Expected at least one set of moments but got none.")
    total = parts[0]
    for part in parts[1:]:
        count = total.count + part.count
        share = (part.count.double() / count.clamp(min=1)).unsqueeze(-1)
        delta = part.mean - total.mean
        weight = (total.count.double().unsqueeze(-1) * share).view(-1, *[1] * (total.scatter.ndim - 1))
        spread = weight * _outer(delta, total.scatter.ndim == 2)
        total = Moments(count, total.mean + delta * share, total.scatter + part.scatter + spread)
    return total


def _outer(delta: Tensor, diagonal: bool) -> Tensor:
    return delta.square() if diagonal else delta.unsqueeze(-1) * delta.unsqueeze(-2)
