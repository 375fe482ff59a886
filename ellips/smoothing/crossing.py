"""The exact probability that a count of votes ever reaches a boundary, and the last step of a boundary that uses it."""

from __future__ import annotations

import numpy as np
from scipy.stats import binom, norm

from ellips.smoothing.confidence import Counts, Floats

_LEFT_OUT = 1e-19  # of a distribution's probability at either end, at each look; what is left out counts as failure
_RELATIVE = 1e-9  # of a probability: far above what sums of some thousand terms are rounded by


def votes_needed_at_last(needed: Counts, looks: Counts, margin: float, alpha: float) -> int:
    """Return the votes at the last look with which H0 is rejected at level ``alpha`` over all looks together.

    H0 is P(vote) <= Phi(margin). The distribution of the other votes is followed from look to look, without the paths
    that have reached the boundary. More votes never leave what is rejected, so that the probability is largest at the
    end of H0.

    Args:
        needed: Shape ``(L,)``: votes that reject at each look; the last entry is not used.
        looks: Shape ``(L,)``, rising: draws at each look.
        margin: See :mod:`ellips.smoothing.confidence`.
        alpha: Allowed probability that H0 is rejected at any look although it is true.

    Returns:
        The smallest such number, or one more than the draws where none is.
    """
    others, first, failed = np.ones(1), 0, 0.0
    miss = float(norm.sf(margin))
    for draws, step, votes in zip(looks, np.diff(looks, prepend=0), needed, strict=True):
        low, high = (int(f(_LEFT_OUT, step, miss)) for f in (binom.ppf, binom.isf))
        low, high = max(low - 1, 0), min(high + 1, int(step))
        others, first = np.convolve(others, binom.pmf(np.arange(low, high + 1), step, miss)), first + low
        failed += 2 * _LEFT_OUT
        if draws == looks[-1]:
            break
        reached = int(np.clip(draws - votes + 1 - first, 0, len(others)))
        failed += float(others[:reached].sum())
        others, first = others[reached:], first + reached
        others, first, lost = _trimmed(others, first)
        failed += lost
    at_most = (failed + np.cumsum(others)) * (1 + _RELATIVE) <= alpha
    if failed * (1 + _RELATIVE) > alpha:
        return int(looks[-1]) + 1
    return int(looks[-1] - first - at_most.sum() + 1)


def _trimmed(others: Floats, first: int) -> tuple[Floats, int, float]:
    """Leave out the ends, which matter to nobody; return what is left, where it begins, and what was left out."""
    few, many = np.cumsum(others) <= _LEFT_OUT, np.cumsum(others[::-1])[::-1] <= _LEFT_OUT
    kept = others[~few & ~many]
    return kept, first + int(few.sum()), float(others[few | many].sum())
