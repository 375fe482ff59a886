"""Several processes: gathering with gradients and batch statistics of the global batch for losses, and an orderly end.

Every process computes the same loss on the same gathered batch. :func:`gather_with_gradient` adds up, in its backward
pass, what every process's copy of that loss says about the local rows; data-parallel training then averages parameter
gradients over processes, which leaves exactly the gradient that one process would have had on the whole batch.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def world_size() -> int:
    """Return the number of processes of the default group, 1 if there is none."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def close_process_group() -> None:
    """End this process's part in the default group, if it has one: the last thing a program that succeeded does.

    Gloo's worker threads let go of a collective's tensors after the collective has returned, and need the interpreter
    for it. In one that is shutting down they abort the process ("terminate called without an active exception"), so
    that a finished run exits with SIGABRT. Lightning ends NCCL groups at exit but not gloo's. After an error, leave the
    group alone: closing waits for collectives that other processes may never join.
    """
    if dist.is_available() and dist.is_initialized():
        gc.collect()  # models wrapped for data-parallel training hold the group, and often themselves
        # Before torch 2.8 the next call keeps the interpreter while it waits for gloo's threads. One that has yet to
        # let go of a collective's tensors would need it, and neither would go on; a moment is enough for that.
        time.sleep(0.2)
        dist.destroy_process_group()


def broadcast_(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors, in place, with those of the first process; every process must call it."""
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor.detach(), src=0)


class _Gather(torch.autograd.Function):
    """Rows of all processes, padded to the longest; gradients are summed over processes and cut back."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: list[int]) -> Tensor:  # noqa: ANN401 - torch's context object
        ctx.sizes = sizes
        padded = rows.new_zeros(max(sizes), *rows.shape[1:])
        padded[: rows.shape[0]] = rows
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401 - torch's context object
        gradient = grad_outputs[0].contiguous().clone()
        dist.all_reduce(gradient)
        return gradient.split(ctx.sizes)[dist.get_rank()], None


def gather_with_gradient(rows: Tensor) -> Tensor:
    """Return the rows of all processes, in rank order, differentiably.

    Args:
        rows: Shape ``(n_r, ...)``; the number of rows may differ between processes, the rest may not. Every process
            must call it.

    Returns:
        Shape ``(Σ n_r, ...)``. In one process the argument itself.
    """
    if world_size() == 1:
        return rows
    size = torch.tensor([rows.shape[0]], device=rows.device)
    sizes = [torch.empty_like(size) for _ in range(world_size())]
    dist.all_gather(sizes, size)
    gathered: Tensor = _Gather.apply(rows.contiguous(), [int(s) for s in sizes])
    return gathered


class GlobalBatchNorm1d(nn.BatchNorm1d):
    """BatchNorm1d whose training statistics are those of the global batch, on any device.

    torch's SyncBatchNorm refuses CPU tensors, so that a run on several CPU processes could not be compared with one
    process. The state dict is BatchNorm1d's; in one process and in eval mode it is BatchNorm1d. With Lightning's
    ``sync_batchnorm=True`` torch's own takes its place, which needs GPUs.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise ``input`` of shape ``(N, C)``."""
        if not self.training or world_size() == 1 or self.running_mean is None or self.running_var is None:
            return super().forward(input)
        self._check_input_dim(input)
        with torch.autocast(input.device.type, enabled=False):
            wide = input if input.dtype == torch.float64 else input.float()
            count, mean, variance = _global_statistics(wide)
            self._track(count, mean.detach(), variance.detach())
            normalized = (wide - mean) * torch.rsqrt(variance + self.eps)
            if self.weight is not None:
                normalized = normalized * self.weight + self.bias
            return normalized.to(input.dtype)

    def _track(self, count: float, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics, which use the unbiased variance."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        factor = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), factor)
        self.running_var.lerp_((variance * count / max(count - 1, 1)).to(self.running_var.dtype), factor)


def _global_statistics(x: Tensor) -> tuple[float, Tensor, Tensor]:
    """Return count, mean and biased variance over all processes' rows, merging centred sums for stability."""
    mean = x.mean(0)
    rows = torch.stack([mean, (x - mean).square().sum(0), torch.full_like(mean, x.shape[0])])
    means, squares, counts = gather_with_gradient(rows.unsqueeze(0)).unbind(1)
    total = counts.sum(0)
    global_mean = (counts * means).sum(0) / total
    variance = (squares + counts * (means - global_mean).square()).sum(0) / total
    return float(total[0].detach()), global_mean, variance
