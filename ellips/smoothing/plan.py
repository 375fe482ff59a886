"""When to stop counting votes: decided before the first one is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv
from scipy.stats import binom, norm

from ellips.smoothing.confidence import Counts, Floats, MixtureTest, clopper_pearson_lower, radius_of, votes_needed
from ellips.smoothing.crossing import votes_needed_at_last
from ellips.smoothing.noise import BLOCK
from ellips.validation import at_least, fraction, positive

Flags = NDArray[np.bool_]

_STEP = 0.04  # of the ladder's rungs, in units of sigma
_TARGETS = 0.25  # of the targets where none are given, in units of sigma
_NEARLY = 0.99  # of the largest margin: where none are given, the last target
_SHARES = (0.9, 0.6, 0.3, 0.15)  # of alpha, for stopping early: the largest with which the last look needs ...
_DEARER = 0.15  # ... at most so many more votes, in standard deviations, than if it were the only one
_GIVE_UP = 0.02  # chance of reaching the next target below which drawing ends; costs coverage, never soundness
_QUANTILES = 32


@dataclass(frozen=True)
class VotePlan:
    """How many draws to look at, which radius each count of votes proves there, and when the rest is not worth it.

    A ladder of radii is tested, H0 of rung r being ``P(vote) <= Phi(r / sigma)``. A rung is proven at a look where the
    count reaches its entry in :attr:`needed`. For the looks before the last these come from :class:`MixtureTest`, at a
    share of alpha; at the last one as few votes are needed as keep the probability that H0 is ever rejected although
    it is true within alpha (:func:`votes_needed_at_last`). The entries grow along the ladder, so no rung is proven
    without those below it, and a false claim implies that the lowest rung which is false was rejected: with
    probability at most alpha, whatever rule ends the drawing.

    Attributes:
        sigma: Standard deviation of the noise.
        radii: Shape ``(R,)``, rising from 0: the rungs; among them the targets.
        looks: Shape ``(L,)``, rising: the numbers of draws after which votes are counted.
        needed: Shape ``(R, L)``: votes that prove a rung; more than the draws where none do.
        hope: Shape ``(R, L)``: votes below which the target at or above a rung is given up.
        alpha: Allowed probability that a radius does not hold.
    """

    sigma: float
    radii: Floats
    looks: Counts
    needed: Counts
    hope: Counts
    alpha: float

    @staticmethod
    def fixed(sigma: float, draws: int, alpha: float) -> VotePlan:
        """Plan to look once, after all draws: the certificate of Cohen et al. (2019, ``certify``).

        Args:
            sigma: Standard deviation of the noise.
            draws: Draws of every image.
            alpha: Allowed probability that a radius does not hold.

        Raises:
            ValueError: If an argument is out of range.
        """
        positive(sigma=sigma)
        at_least(1, draws=draws)
        fraction(alpha=alpha, ends=False)
        radii, looks = np.zeros(1), np.array([draws], dtype=np.int64)
        needed = votes_needed(radii, draws, alpha)[:, None]
        return VotePlan(sigma, radii, looks, needed, needed, alpha)

    @staticmethod
    def stopping(sigma: float, draws: int, alpha: float, targets: Sequence[float] | None) -> VotePlan:
        """Plan to stop as soon as every target is decided.

        Args:
            sigma: Standard deviation of the noise.
            draws: Most draws of one image.
            alpha: Allowed probability that a radius does not hold.
            targets: Radii that are asked for; None: every quarter of sigma, and nearly the largest that can be proven.

        Raises:
            ValueError: If an argument is out of range.
        """
        positive(sigma=sigma)
        at_least(1, draws=draws)
        fraction(alpha=alpha, ends=False)
        asked = None if targets is None else tuple(sorted({float(r) for r in targets if r > 0}))
        return _stopping(float(sigma), draws, alpha, asked)

    @property
    def draws(self) -> int:
        """Most draws of one image."""
        return int(self.looks[-1])

    def proven(self, votes: Counts, look: int) -> Counts:
        """Return how many rungs the votes after a look prove; shape as ``votes``."""
        found: Counts = np.searchsorted(self.needed[:, look], votes, side="right")
        return found

    def radius(self, rungs: int, votes: int) -> float:
        """Return the radius that is proven when drawing ends: the highest rung's, or with a single look the votes'.

        Args:
            rungs: Rungs proven at any look, at least 1.
            votes: Votes after the last look that was taken.
        """
        if len(self.looks) > 1:
            return float(self.radii[rungs - 1])
        return radius_of(clopper_pearson_lower(votes, self.draws, self.alpha), self.sigma)

    def is_over(self, rungs: Counts, votes: Counts, look: int) -> Flags:
        """Return whether nothing that is asked for is left to hope for.

        Args:
            rungs: Rungs proven so far.
            votes: Votes after the look.
            look: Which look.
        """
        if look == len(self.looks) - 1:
            return np.ones(votes.shape, dtype=bool)
        next_rung = np.minimum(rungs, len(self.radii) - 1)
        over: Flags = (rungs == len(self.radii)) | (votes < self.hope[next_rung, look])
        return over


@lru_cache(maxsize=8)
def _stopping(sigma: float, draws: int, alpha: float, asked: tuple[float, ...] | None) -> VotePlan:
    looks = _looks(draws)
    largest = float(norm.isf(-np.expm1(np.log(alpha) / draws)))  # margin that unanimous votes prove in one look
    every = [*np.arange(_TARGETS, _NEARLY * largest, _TARGETS), max(_NEARLY * largest, 0.0)]  # few draws prove nothing
    targets = np.array([0.0, *(np.multiply(every, sigma) if asked is None else asked)])
    rungs = np.arange(_STEP, min(largest, targets[-1] / sigma), _STEP) * sigma
    radii = np.unique(np.concatenate([targets, rungs]))
    needed = _needed(np.nextafter(radii / sigma, np.inf), looks, alpha)  # the division may have rounded down
    hope = np.stack([_votes_for_hope(int(votes), looks) for votes in needed[np.searchsorted(radii, targets), -1]])
    return VotePlan(sigma, radii, looks, needed, hope[np.searchsorted(targets, radii)], alpha)


def _needed(margin: Floats, looks: Counts, alpha: float) -> Counts:
    """Return what :attr:`VotePlan.needed` holds."""
    draws, result = int(looks[-1]), np.zeros((len(margin), len(looks)), dtype=np.int64)
    bearable = votes_needed(margin, draws, alpha) + _DEARER * np.sqrt(draws * norm.sf(margin) * norm.cdf(margin))
    left = np.arange(len(margin))
    for share in _SHARES:
        result[left] = MixtureTest(share * alpha, draws).votes_needed(margin[left], looks)
        for rung in left:
            result[rung, -1] = votes_needed_at_last(result[rung], looks, float(margin[rung]), alpha)
        left = left[result[left, -1] > bearable[left]]
    return np.maximum.accumulate(result, axis=0)


def _looks(draws: int) -> Counts:
    """Return looks whose distances grow with the draws, so that few draws and few looks are in vain."""
    looks = [min(BLOCK, draws)]
    while looks[-1] < draws:
        step = max(BLOCK, looks[-1] // 8 // BLOCK * BLOCK)
        looks.append(min(looks[-1] + step, draws))
    return np.array(looks, dtype=np.int64)


def _votes_for_hope(goal: int, looks: Counts) -> Counts:
    """Return the votes after each look from which ``goal`` votes after the last one are likely enough.

    P(vote) is taken to be distributed as Jeffreys' rule says after the votes so far; its quantiles stand for it.
    """
    draws = int(looks[-1])
    levels = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    low, high = np.full(looks.shape, -1, dtype=np.int64), looks + 1
    while (high - low > 1).any():
        votes = np.clip((low + high) // 2, 0, looks)
        chance = betaincinv(votes[:, None] + 0.5, (looks - votes)[:, None] + 0.5, levels)
        reached = binom.sf((goal - votes - 1)[:, None], (draws - looks)[:, None], chance).mean(1)
        likely = (reached >= _GIVE_UP) & (high - low > 1)
        high, low = np.where(likely, votes, high), np.where(likely | (high - low <= 1), low, votes)
    return high
