"""Casting and counting votes of many images at once: their draws share the batches that go through the network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import binomtest
from torch import Tensor
from torch.nn import functional

from ellips.chunks import Chunks, ChunkSize
from ellips.smoothing.confidence import Counts
from ellips.smoothing.noise import ImageNoise
from ellips.smoothing.plan import VotePlan
from ellips.types import ImageMap

Decision = Callable[[Tensor], Tensor]
"""Maps images ``(M, C, H, W)`` to classes ``(M,)``, int64: the classifier that is smoothed."""

COPIES = 16
"""Noisy copies behind each gradient of an attack."""

MOST = 1024
"""Copies that go through the network at once where memory decides."""

LEVEL = 1e-5
"""At which an audit's judge must tell two classes apart: it asks often, and a mistake looks like a broken claim."""


class Votes(NamedTuple):
    """How a vote on N images ended.

    Attributes:
        prediction: Shape ``(N,)``, int64: the class selected, −1 where it was not proven to have most votes.
        radius: Shape ``(N,)``, float64; 0 where the classifier abstains.
        rival: Shape ``(N,)``, int64: the other class with most votes.
        votes: Shape ``(N,)``, int64: votes for the class selected.
        draws: Shape ``(N,)``, int64: draws they were counted in.
        selection: Shape ``(N,)``, int64: further draws, which selected the class.
    """

    prediction: Tensor
    radius: Tensor
    rival: Tensor
    votes: Tensor
    draws: Tensor
    selection: Tensor


@torch.no_grad()
def cast_votes(decide: Decision, streams: Sequence[ImageNoise], counts: Sequence[int], chunks: Chunks) -> list[Tensor]:
    """Return the classes of each image's next noisy copies, int64 on the processor, as many as ``counts`` says.

    Args:
        decide: The classifier that is smoothed.
        streams: The images' noise, all of one shape and device.
        counts: Copies of each image.
        chunks: How many copies go through the network at once, of whichever image.
    """
    if not streams:
        return []
    classes = [chunks.run(lambda part: (decide(part),), batch)[0] for batch in _batches(streams, counts, chunks)]
    return list(torch.cat(classes).cpu().split(list(counts)))


def _batches(streams: Sequence[ImageNoise], counts: Sequence[int], chunks: Chunks) -> Iterator[Tensor]:
    """Yield the noisy copies in order, as many together as ``chunks`` takes at that moment."""
    left, filled = sum(counts), 0
    batch = streams[0].image.new_empty((0, *streams[0].image.shape))
    for stream, count in zip(streams, counts, strict=True):
        while count:
            if not filled and len(batch) != (size := min(chunks.size, left)):
                batch = batch.new_empty((size, *batch.shape[1:]))
            taken = min(count, len(batch) - filled)
            stream.fill(batch[filled : filled + taken])
            filled, count, left = filled + taken, count - taken, left - taken
            if filled == len(batch):
                yield batch
                filled = 0


def count_votes(
    decide: Decision, images: Tensor, plan: VotePlan, *, num_selection: int, seed: int, chunk_size: ChunkSize = "auto"
) -> Votes:
    """Let noisy copies of images vote until nothing that ``plan`` asks for is left to decide.

    The class is selected by draws of its own (Cohen et al. 2019, ``certify``), so that it does not depend on those
    that are counted. Noise, and so the result, depends on each image, the seed and the plan, not on the batches.

    Args:
        decide: The classifier that is smoothed.
        images: Shape ``(N, C, H, W)``.
        plan: When to look, and what is proven then.
        num_selection: Most draws for the selection.
        seed: Seed.
        chunk_size: Copies that go through the network at once.
    """
    chunks = Chunks(chunk_size, MOST)
    selected, selection = _select(decide, images, plan.sigma, num_selection, seed, chunks)
    streams = [ImageNoise(image, plan.sigma, seed, "estimation") for image in images]
    tallies = [np.zeros(0, dtype=np.int64) for _ in images]
    rungs, votes, last = (np.zeros(len(images), dtype=np.int64) for _ in range(3))
    active = np.arange(len(images))
    for look, draws in enumerate(plan.looks):
        step = int(draws - (plan.looks[look - 1] if look else 0))
        for i, classes in zip(
            active, cast_votes(decide, [streams[i] for i in active], [step] * len(active), chunks), strict=True
        ):
            tallies[i] = _add(tallies[i], classes)
            votes[i] = tallies[i][selected[i]] if selected[i] < len(tallies[i]) else 0
        last[active] = look
        rungs[active] = np.maximum(rungs[active], plan.proven(votes[active], look))
        active = active[~plan.is_over(rungs[active], votes[active], look)]
    ended = zip(rungs.tolist(), votes.tolist(), strict=True)
    radius = [plan.radius(rung, count) if rung else 0.0 for rung, count in ended]
    rival = [_runner_up(tally, int(own)) for tally, own in zip(tallies, selected, strict=True)]
    return Votes(
        prediction=torch.from_numpy(np.where(rungs > 0, selected, -1)).to(images.device),
        radius=images.new_tensor(radius, dtype=torch.float64),
        rival=torch.tensor(rival, dtype=torch.int64, device=images.device),
        votes=torch.from_numpy(votes).to(images.device),
        draws=torch.from_numpy(plan.looks[last]).to(images.device),
        selection=torch.from_numpy(selection).to(images.device),
    )


def _select(
    decide: Decision, images: Tensor, sigma: float, draws: int, seed: int, chunks: Chunks
) -> tuple[Counts, Counts]:
    """Return the class with most votes of each image, and how many draws it took.

    Where the lead after half the draws is more than the other half could make up for, these are not drawn.
    """
    streams = [ImageNoise(image, sigma, seed, "selection") for image in images]
    tallies = [np.zeros(0, dtype=np.int64) for _ in images]
    used = np.zeros(len(images), dtype=np.int64)
    half = draws // 2 + 1 if draws > 1 else 1
    active = list(range(len(images)))
    for count in (half, draws - half):
        found = cast_votes(decide, [streams[i] for i in active], [count] * len(active), chunks) if count else []
        for i, classes in zip(active, found, strict=False):
            tallies[i] = _add(tallies[i], classes)
            used[i] += count
        active = [i for i in active if _lead(tallies[i]) <= draws - half]
    return np.array([tally.argmax() for tally in tallies], dtype=np.int64), used


def _add(tally: Counts, classes: Tensor) -> Counts:
    more = np.bincount(classes.numpy(), minlength=len(tally))
    more[: len(tally)] += tally
    return more


def _lead(tally: Counts) -> int:
    ranked = np.sort(np.append(tally, 0))
    return int(ranked[-1] - ranked[-2])


def _runner_up(tally: Counts, own: int) -> int:
    others = tally.copy()
    others[own : own + 1] = -1
    return int(others.argmax()) if len(others) > 1 and others.max() > 0 else -1


def soft_votes(scores: ImageMap, images: Tensor, sigma: float, copies: int, seed: int) -> Tensor:
    """Return the mean of class probabilities under a fixed set of noise, ``(N, K)``: what an attack can climb.

    Args:
        scores: Maps images to scores ``(M, K)``, differentiable.
        images: Shape ``(N, C, H, W)``.
        sigma: Standard deviation of the noise.
        copies: Noisy copies of each image.
        seed: Seed.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn((copies, *images.shape[1:]), generator=generator).to(images)
    noisy = (images[:, None] + sigma * noise).flatten(0, 1)
    return functional.softmax(scores(noisy), dim=1).view(len(images), copies, -1).mean(1)


def majority(
    decide: Decision,
    images: Tensor,
    sigma: float,
    *,
    copies: int,
    seed: int,
    level: float,
    chunk_size: ChunkSize = "auto",
) -> Tensor:
    """Return the class with most votes, ``(N,)``; −1 where the two with most are not told apart (Cohen's ``predict``).

    Args:
        decide: The classifier that is smoothed.
        images: Shape ``(N, C, H, W)``.
        sigma: Standard deviation of the noise.
        copies: Votes of each image.
        seed: Seed.
        level: Allowed probability that a class is returned which has not most votes.
        chunk_size: Copies that go through the network at once.
    """
    streams = [ImageNoise(image, sigma, seed, "prediction") for image in images]
    found = []
    for classes in cast_votes(decide, streams, [copies] * len(images), Chunks(chunk_size, MOST)):
        votes = np.bincount(classes.numpy(), minlength=2)
        second, top = np.sort(votes)[-2:]
        told_apart = binomtest(int(top), int(top + second), 0.5).pvalue <= level
        found.append(int(votes.argmax()) if told_apart else -1)
    return torch.tensor(found, dtype=torch.int64, device=images.device)
