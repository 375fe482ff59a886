"""Counts, means and scatters per class, collected batch by batch and over processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics import Metric

from ellips.distributed import world_size
from ellips.precision import keep_dtype
from ellips.validation import at_least, one_of, validate_labels, validate_latents

_REDUCED_ELEMENTS = 2**22  # of the scatters that go through the network at a time: 32 MB


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
    float64, so the result does not depend on how the data were cut into batches, beyond rounding. Over processes they
    are merged the same way, in place and by parts: for K full covariances K d² numbers are held in each process, never
    a copy, and none before the first batch.

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
        # No copies of the states while they are merged, and none of the result kept.
        super().__init__(sync_on_compute=False, compute_with_cache=False)
        at_least(1, num_classes=num_classes, dim=dim)
        one_of(("full", "diagonal"), covariance_type=covariance_type)
        self.num_classes, self.dim = num_classes, dim
        self.diagonal = covariance_type == "diagonal"
        self._merged = False  # whether the states are those of all processes
        empty = torch.zeros(0, dtype=torch.float64)
        self.add_state("count", torch.zeros(num_classes, dtype=torch.int64), dist_reduce_fx=None)
        self.add_state("mean", torch.zeros(num_classes, dim, dtype=torch.float64), dist_reduce_fx=None)
        self.add_state("scatter", empty, dist_reduce_fx=None)

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
        self._make_local()
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
        """Return a copy of the moments of everything seen, by all processes; every process must call it."""
        return Moments(*(value.clone() for value in self.held()))

    def held(self) -> Moments:
        """Return what :meth:`compute` copies, for moments that there is no room for twice.

        They change with the next :meth:`update`, :meth:`held` or :meth:`compute`; a :meth:`reset` leaves them alone.
        """
        self._allocate()
        moments = Moments(self.count, self.mean, self.scatter)
        if world_size() > 1 and not _everywhere(self._merged, self.count.device):
            self._make_local()
            merge_processes_(moments)
            self._merged = True
        return moments

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self._merged = False

    def _allocate(self) -> None:
        """Make room for the scatters when they are first needed: a head that is only used has none."""
        if not self.scatter.numel():
            shape = (self.num_classes, self.dim) if self.diagonal else (self.num_classes, self.dim, self.dim)
            with torch.inference_mode(False):
                self.scatter = self.scatter.new_zeros(shape)

    def _make_local(self) -> None:
        """Go on from what all processes hold together: it stays with the first one, the others start anew."""
        self._allocate()
        if self._merged and world_size() > 1 and dist.get_rank() > 0:
            for state in (self.count, self.mean, self.scatter):
                state.zero_()
        self._merged = False

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> ClassMoments:
        """Move to another device but stay in float64."""
        super()._apply(keep_dtype(fn), exclude_state)
        return self


def merge_processes_(moments: Moments) -> None:
    """Turn each process's moments into those of all of them, in place; every process must call it.

    The scatter about the common mean μ is Σ_r (S_r + n_r (μ_r − μ)(μ_r − μ)ᵀ), of parts r with n_r samples, mean μ_r
    and scatter S_r about it (Chan, Golub and LeVeque 1983): a sum, so that a part of the classes at a time can go
    through the network and nothing is gathered. No term is negative, so nothing cancels.

    Args:
        moments: What this process has seen; the shapes are the same in all.
    """
    count, mean, scatter = moments
    own, away = count.double(), mean.clone()
    dist.all_reduce(count)
    mean *= (own / count.clamp(min=1)).unsqueeze(-1)
    dist.all_reduce(mean)
    away -= mean
    away *= own.sqrt().unsqueeze(-1)
    rows = max(1, _REDUCED_ELEMENTS // scatter[0].numel())
    for part, delta in zip(scatter.split(rows), away.split(rows), strict=True):
        part += _outer(delta, scatter.ndim == 2)
        dist.all_reduce(part)


def _everywhere(flag: bool, device: torch.device) -> bool:
    """Whether something holds in every process."""
    holds = torch.tensor([int(flag)], device=device)
    dist.all_reduce(holds, dist.ReduceOp.MIN)
    return bool(holds)


def _outer(delta: Tensor, diagonal: bool) -> Tensor:
    return delta.square() if diagonal else delta.unsqueeze(-1) * delta.unsqueeze(-2)
