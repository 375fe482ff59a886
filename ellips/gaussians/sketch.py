"""Moments of class covariances of low rank: a randomised sketch that is collected batch by batch and over processes.

Scatters of all classes take K d² numbers (1,000 classes of 1,024 dimensions: 8 GB). Covariances of low rank need their
leading differences from the common one only, which a random range finder gives (Halko, Martinsson and Tropp, SIAM
Review 2011, algorithm 4.1) with K d (r + p) numbers, in three passes over the data:

1. counts, means and the common scatter;
2. the scatters' products with random directions of the whitened space: their range holds the leading directions;
3. the scatters themselves within that range (Rayleigh and Ritz), so that the variances found there are the sample's.

A few more random directions take no part in the range and measure what it misses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ellips.distributed import broadcast_, world_size
from ellips.gaussians.covariance import precision_factor
from ellips.gaussians.moments import ClassMoments
from ellips.gaussians.regularization import Regularization
from ellips.precision import keep_dtype
from ellips.validation import at_least, validate_labels, validate_latents

_FULL_ELEMENTS = 2**24  # of the scatters of all classes, up to which they are kept and nothing is sketched: 128 MB
_OVERSAMPLING = 10  # p: directions beyond the rank
_PROBES = 4  # directions that measure what the sketch misses
_FLOOR = 1e-6  # of the mean variance: what the metric of the sketch is shrunk at least, so that it exists
_BATCH_ELEMENTS = 2**20
_NONE = Regularization()


class SketchedMoments(NamedTuple):
    """What covariances of low rank are made of, float64.

    Attributes:
        count: Shape ``(K,)``, int64.
        mean: Shape ``(K, d)``.
        scatter: Σ (z−mean)(z−mean)ᵀ over all classes, each about its own mean, shape ``(d, d)``.
        square: Σ ‖z−mean‖² per class, shape ``(K,)``.
        functionals: F_k, shape ``(K, d, l)``: what is looked at of the class.
        core: F_kᵀ(scatter of class k)F_k, shape ``(K, l, l)``.
        missed: Estimated share of the squared difference from the common covariance that lies outside of what is looked
            at, in whitened coordinates, per class, shape ``(K,)``. It bounds what the sketch can have lost against an
            exact decomposition.
    """

    count: Tensor  # type: ignore[assignment]  # hides tuple.count, which nobody needs here
    mean: Tensor
    scatter: Tensor
    square: Tensor
    functionals: Tensor
    core: Tensor
    missed: Tensor


class ClassSketch(nn.Module):
    """Collects :class:`SketchedMoments` in three passes over the same data; see this module's description.

    :meth:`update` takes batches; :meth:`end_pass` ends a pass and must be called by every process. The random
    directions are the same in every process and at every fit.

    Args:
        num_classes: K.
        dim: Width d of the latents.
        rank: Directions per class that the sketch is for.
        regularization: That of the fit: its shrinkage shapes the metric in which directions lead.

    Raises:
        ValueError: If an argument is out of its range; from :meth:`update` for unfit latents and labels.
    """

    passes = 3

    def __init__(self, num_classes: int, dim: int, rank: int, regularization: Regularization = _NONE) -> None:
        super().__init__()
        at_least(1, num_classes=num_classes, dim=dim)
        self.num_classes, self.dim = num_classes, dim
        self.width = min(dim, rank + _OVERSAMPLING)
        self.regularization = regularization
        # Not buffers: they are no part of a checkpoint, and every process has its own.
        self._held: dict[str, Tensor] = {}
        self.reset()

    def reset(self) -> None:
        """Forget everything collected; the next batch is the first pass's."""
        device = next((tensor.device for tensor in self._held.values()), torch.device("cpu"))
        self._ended = 0
        self._first = ClassMoments(self.num_classes, self.dim, "diagonal").to(device)
        self._held = {"scatter": torch.zeros(self.dim, self.dim, dtype=torch.float64, device=device)}

    def update(self, z: Tensor, labels: Tensor) -> None:
        """Add a batch to the present pass.

        Args:
            z: Latents, shape ``(N, d)``, any floating-point type.
            labels: Shape ``(N,)``, integers in ``[0, K)``.

        Raises:
            ValueError: If either is of another shape or kind, not finite or out of range, or no pass is left.
        """
        validate_latents(z, self.dim)
        validate_labels(labels, self.num_classes, len(z))
        z = z.detach().double()
        if self._ended == 0:
            self._add_scatter(z, labels)
        elif self._ended == 1:
            self._add_classes("sketch", z, labels, lambda x, k: x.mT @ (x @ self._held["test"]))
        elif self._ended == 2:
            self._add_classes("core", z, labels, lambda x, k: _gram(x @ self._held["functionals"][k]))
        else:
            raise ValueError("Expected at most three passes over the data but got a batch of a fourth; reset first.")

    def _add_scatter(self, z: Tensor, labels: Tensor) -> None:
        """Add the batch's scatter about its class means, and that of these means about the earlier ones."""
        count, mean = self._first.count.double(), self._first.mean.clone()
        self._first.update(z, labels)
        own = torch.zeros_like(mean).index_add_(0, labels, z)
        new = torch.bincount(labels, minlength=self.num_classes).double()
        own /= new.clamp(min=1).unsqueeze(1)
        x, shift = z - own[labels], own - mean
        weight = count * new / (count + new).clamp(min=1)
        self._held["scatter"] += x.mT @ x + (shift.mT * weight) @ shift

    def _add_classes(self, name: str, z: Tensor, labels: Tensor, product: Callable[[Tensor, int], Tensor]) -> None:
        order, start = labels.argsort(), 0
        for k, n in enumerate(torch.bincount(labels, minlength=self.num_classes).tolist()):
            if n:
                rows = order[start : start + n]
                self._held[name][k] += product(z[rows] - self._held["mean"][k], k)
                start += n

    @torch.no_grad()
    def end_pass(self) -> None:
        """End a pass: add up what all processes collected, and prepare the next."""
        end = (self._end_first, self._end_second, self._end_third)
        if self._ended < len(end):
            end[self._ended]()
        self._ended += 1

    def _end_first(self) -> None:
        held, local = self._held, self._first
        own_count, own_mean = local.count.double().clone(), local.mean.clone()
        merged = local.compute()
        shift = own_mean - merged.mean
        held["scatter"] += (shift.mT * own_count) @ shift
        _add_up(held["scatter"])
        held |= {"count": merged.count, "mean": merged.mean, "square": merged.scatter.sum(1)}
        generator = torch.Generator().manual_seed(0)
        columns = self.width + (_PROBES if self.width < self.dim else 0)
        test = torch.randn(self.dim, columns, generator=generator, dtype=torch.float64).to(held["mean"].device)
        # Random in the whitened space: leading directions there are to lead here.
        held["test"] = self._metric().mT @ test
        broadcast_([held["test"]])  # sums over processes need the same directions in each, to the last bit
        held["sketch"] = held["mean"].new_zeros(self.num_classes, self.dim, columns)

    def _metric(self) -> Tensor:
        """Return the precision factor of the common covariance, shrunk as the fit will, or a little."""
        within = self._held["scatter"] / self._held["count"].sum()
        shrinkage = max(self.regularization.shrinkage, _FLOOR)
        eye = torch.eye(self.dim, dtype=within.dtype, device=within.device)
        common = (1 - shrinkage) * within + shrinkage * within.trace().clamp(min=1e-300) / self.dim * eye
        return precision_factor(common.unsqueeze(0))[0]

    def _end_second(self) -> None:
        """Turn each class's sketch into the functionals that are looked at, in its place."""
        held, width = self._held, self.width
        _add_up(held["sketch"])
        factor, n = self._metric(), held["count"].double()
        common = held["scatter"] @ held["test"] / n.sum()
        shrinkage, trace = self.regularization.shrinkage, held["scatter"].trace() / n.sum()
        held["missed"] = torch.zeros_like(n)
        for k in torch.arange(self.num_classes, device=n.device).split(max(1, _BATCH_ELEMENTS // common.numel())):
            size = n[k].clamp(min=1)
            spread = shrinkage * (held["square"][k] / size - trace) / self.dim
            change = (1 - shrinkage) * (held["sketch"][k] / size.view(-1, 1, 1) - common)
            change = factor @ (change + spread.view(-1, 1, 1) * held["test"])
            basis = torch.linalg.qr(change[..., :width])[0]
            held["sketch"][k, :, :width] = factor.mT @ basis
            probes = change[..., width:]
            rest = probes - basis @ (basis.mT @ probes)
            power = probes.square().sum((1, 2))
            held["missed"][k] = torch.where(power > 0, rest.square().sum((1, 2)) / power, 0.0)
        broadcast_([held["sketch"], held["missed"]])
        held["functionals"] = held.pop("sketch")[..., :width]
        held["core"] = n.new_zeros(self.num_classes, width, width)
        del held["test"]

    def _end_third(self) -> None:
        _add_up(self._held["core"])

    def compute(self) -> SketchedMoments:
        """Return the moments of everything seen, by all processes.

        Raises:
            ValueError: If the three passes have not ended.
        """
        if self._ended < self.passes:
            raise ValueError(
                f"Expected {self.passes} passes over the data, each ended by `end_pass()`, but got {self._ended}; the "
                "number of passes is `passes`."
            )
        return SketchedMoments(**{name: self._held[name] for name in SketchedMoments._fields})

    def held(self) -> SketchedMoments:
        """Return what :meth:`compute` returns, which are no copies: as :meth:`ClassMoments.held`."""
        return self.compute()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:  # noqa: ANN401 - as nn.Module's
        """Move to another device but stay in float64."""
        super()._apply(keep_dtype(fn), recurse)  # type: ignore[no-untyped-call]
        self._first = self._first._apply(fn)
        self._held = {name: keep_dtype(fn)(tensor) for name, tensor in self._held.items()}
        return self


Collector = ClassMoments | ClassSketch


def collector(
    num_classes: int,
    dim: int,
    covariance_type: str = "full",
    rank: int | None = None,
    regularization: Regularization = _NONE,
) -> Collector:
    """Return what collects moments for a mixture: a sketch where it is of low rank and scatters are too large to keep.

    Args:
        num_classes: K.
        dim: Width d of the latents.
        covariance_type: That of the mixture.
        rank: That of the mixture.
        regularization: That of the mixture.
    """
    if covariance_type == "diagonal":
        return ClassMoments(num_classes, dim, "diagonal")
    if rank is None or num_classes * dim**2 <= _FULL_ELEMENTS:
        return ClassMoments(num_classes, dim)
    return ClassSketch(num_classes, dim, rank, regularization)


def _gram(x: Tensor) -> Tensor:
    return x.mT @ x


def _add_up(tensor: Tensor) -> None:
    """Add up a tensor over processes, in place."""
    if world_size() > 1:
        dist.all_reduce(tensor)
