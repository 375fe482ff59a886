"""What certifying sends through the encoder, by certifier."""

from __future__ import annotations

from dataclasses import dataclass
from functools import singledispatch
from typing import Final

import numpy as np
from scipy.stats import binom

from ellips.input_certifiers import ByConstant, InputCertifier, MarginClever, SmoothedDecision, SmoothedEncoder
from ellips.lipschitz import Clever, ConstantSource, JacobianNorm, KnownConstant, SpectralProduct
from ellips.planning.work import Cost, Work
from ellips.smoothing import VotePlan

BY_IMAGE: Final = 38
"""Images of a batch's proof that each is mapped by itself: 16 twice, 5 in another order, one alone."""

CAPTURE: Final = 430
"""About the images that a network's captured graph is held against it on, once a process."""

WATCHED: Final = 2
"""Images through the network whenever its graph is asked for."""


@dataclass(frozen=True)
class Images:
    """What is certified.

    Attributes:
        count: Images.
        batches: Batches they come in.
        classes: K.
        latent_dim: Width d of the latents.
        pixels: Numbers of an image.
        processes: Processes.
        vote_share: Share of the votes that the winner of an image is taken to get, for what early stopping saves.
    """

    count: int
    batches: int
    classes: int
    latent_dim: int
    pixels: int
    processes: int = 1
    vote_share: float = 0.95

    def products(self, iterations: int) -> int:
        """Return the products with a Jacobian that so many iterations of its norm are: two each, d or D at most."""
        return 2 * min(iterations, self.latent_dim, self.pixels)


@singledispatch
def certifier_cost(certifier: InputCertifier | ConstantSource, images: Images) -> Cost | None:
    """Return what a certifier costs beyond the latents of the images, which are encoded once for all certifiers.

    Args:
        certifier: The certifier, or a source of a constant.
        images: What is certified.

    Returns:
        The cost of the whole run; None if nothing is known of a certifier of this class.
    """
    return None


@certifier_cost.register
def _(certifier: ByConstant, images: Images) -> Cost | None:
    return certifier_cost(certifier.source, images)


@certifier_cost.register
def _(source: KnownConstant, images: Images) -> Cost:
    """Nothing for the constant; the rounding of one that is not estimated is measured as for a proven one."""
    return _rounding(images) if source.soundness != "estimated" else Cost.fixed(Work())


@certifier_cost.register
def _(source: SpectralProduct, images: Images) -> Cost:
    """The network beside its graph, once and in each batch. Norms of layers are no passes and are not counted."""
    return Cost.fixed(Work(WATCHED * images.batches)) + _rounding(images)


def _rounding(images: Images) -> Cost:
    """Each image through the graph twice, in float64, which is slower; in each batch the network is watched."""
    return Cost.fixed(Work(CAPTURE * images.processes + 2 * images.count + WATCHED * images.batches))


@certifier_cost.register
def _(source: JacobianNorm, images: Images) -> Cost:
    """Each image, one more in a batch for its width, and the products of each image, fewer where they converge."""
    forward = images.count + images.batches
    return Cost.fixed(Work(forward, images.count * images.products(source.num_iterations)))


@certifier_cost.register
def _(source: Clever, images: Images) -> Cost:
    """All points around an image, and twice the image itself: for its width and where the iterations start from."""
    points = source.num_batches * source.num_samples
    products = points * images.products(source.num_iterations) + images.products(source.num_iterations_center)
    return Cost.fixed(Work(points + 2, products)).times(images.count)


@certifier_cost.register
def _(certifier: MarginClever, images: Images) -> Cost:
    """All points around an image, and the image itself; for each point a product for every rival."""
    points = certifier.num_batches * certifier.num_samples
    return Cost.fixed(Work(points + 1, points * (images.classes - 1))).times(images.count)


@certifier_cost.register
def _(certifier: SmoothedEncoder, images: Images) -> Cost:
    """All noisy copies."""
    return Cost.fixed(Work(certifier.num_samples).times(images.count) + Work(BY_IMAGE * images.batches))


@certifier_cost.register
def _(certifier: SmoothedDecision, images: Images) -> Cost:
    """Noisy copies that select the class and that are counted: all of them at most."""
    most = certifier.num_selection + certifier.num_samples
    drawn = expected_draws(certifier.plan, images.vote_share)
    expected = expected_selection(certifier.num_selection, images.vote_share) + drawn
    once = Work(BY_IMAGE * images.batches)
    return Cost(Work(most * images.count) + once, Work(round(expected * images.count)) + once)


def expected_draws(plan: VotePlan, share: float, images: int = 4000, seed: int = 0) -> float:
    """Return the mean number of draws of images whose selected class gets a share of the votes, by simulation.

    Args:
        plan: When to look and when to stop.
        share: Probability of a vote for the class.
        images: Simulated images.
        seed: Seed.
    """
    generator = np.random.default_rng(seed)
    rungs, votes = np.zeros(images, dtype=np.int64), np.zeros(images, dtype=np.int64)
    active, total = np.ones(images, dtype=bool), 0
    for look, draws in enumerate(plan.looks.tolist()):
        step = draws - (int(plan.looks[look - 1]) if look else 0)
        total += step * int(active.sum())
        votes[active] += generator.binomial(step, share, int(active.sum()))
        rungs = np.maximum(rungs, np.where(active, plan.proven(votes, look), 0))
        active &= ~plan.is_over(rungs, votes, look)
    return total / images


def expected_selection(draws: int, share: float) -> float:
    """Return the mean number of draws that select the class: the second half only where it could change it.

    Two classes are taken to share the votes, which needs most draws.

    Args:
        draws: Most of them.
        share: Probability of a vote for the class that wins.
    """
    half = draws // 2 + 1 if draws > 1 else 1
    won = np.arange(half + 1)
    undecided = np.abs(2 * won - half) <= draws - half
    return half + (draws - half) * float(binom.pmf(won[undecided], half, share).sum())
