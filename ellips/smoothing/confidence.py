"""What a number of votes proves of a probability: at a fixed number of draws, and at whatever number one looks.

Everything is about H0: P(vote) <= p0, for which ``margin`` is p0 as a ratio: p0 = Phi(margin), so that sigma times the
margin is the radius of Cohen et al. (2019, Theorem 1).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp
from scipy.stats import beta, binom, norm

from ellips.validation import at_least, fraction, positive

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

_ATOM = 0.4  # weight of "every vote will be the same": what most images under little noise are like
_ALTERNATIVES = 12
_FIRST = 16  # draws after which the farthest alternative would be proven
_RELATIVE = 1e-9  # of a probability: far above what SciPy's distributions are rounded by
_SLACK = 1e-6  # of a logarithm: far above what its terms, at most 1e7 in all, are rounded by


def clopper_pearson_lower(successes: int, draws: int, alpha: float) -> float:
    """Return the lower end of the one-sided Clopper-Pearson interval: a bound of p that fails with at most ``alpha``.

    The definition of Cohen et al. (2019, ``_lower_confidence_bound``): the alpha-quantile of Beta(s, n - s + 1).

    Args:
        successes: s, from 0 to ``draws``.
        draws: n, fixed before the draws are seen.
        alpha: Allowed probability that p is smaller.

    Raises:
        ValueError: If an argument is out of range.
    """
    at_least(1, draws=draws)
    fraction(alpha=alpha, ends=False)
    if not 0 <= successes <= draws:
        raise ValueError(f"Expected `successes` to be from 0 to {draws} but got {successes}.")
    return float(beta.ppf(alpha, successes, draws - successes + 1)) if successes else 0.0


def votes_needed(margin: Floats, draws: int, alpha: float) -> Counts:
    """Return the smallest s of a fixed number of draws that rejects H0 at level ``alpha``; ``draws + 1``: none does.

    The same test as :func:`clopper_pearson_lower`, read from the binomial tail itself.

    Args:
        margin: Any shape.
        draws: n, fixed before the draws are seen.
        alpha: Level.
    """
    missing = norm.sf(margin)
    # P(at least s votes) = P(at most n - s others): of few others, the tail keeps its digits.
    others = binom.ppf(alpha, draws, missing).astype(np.int64) + 1
    while (too_likely := binom.cdf(others, draws, missing) > alpha * (1 - _RELATIVE)).any():
        others = np.where(too_likely, others - 1, others)  # ends at -1, whose probability is 0
    needed: Counts = draws - others
    return needed


@dataclass(frozen=True)
class MixtureTest:
    """A test that may be looked at after every draw.

    For alternatives q_j > p0 and weights w_j of sum 1, ``M_n = sum_j w_j (q_j / p0)^s ((1 - q_j) / (1 - p0))^(n - s)``
    is a nonnegative supermartingale under every p <= p0 (a factor's mean is 1 at p0 and grows with p), so that it ever
    reaches 1 / alpha with probability at most alpha (Ville). Here one q is 1, which pays for unanimous votes, and the
    others are where n draws would prove p0 exceeded, n from few to all.

    Args:
        alpha: Level.
        draws: The number of draws that the alternatives are laid out for; the test holds beyond it.

    Raises:
        ValueError: If an argument is out of range.
    """

    alpha: float
    draws: int

    def __post_init__(self) -> None:
        fraction(alpha=self.alpha, ends=False)
        at_least(1, draws=self.draws)

    def log_value(self, successes: Counts, draws: Counts, margin: Floats) -> Floats:
        """Return log M_n; the arguments broadcast."""
        p0, rest = norm.cdf(margin), norm.sf(margin)
        failures = draws - successes
        log_p0 = norm.logcdf(margin)
        terms = [np.log(_ATOM) - successes * log_p0 + np.where(failures > 0, -np.inf, 0.0)]
        for gap, weight in self._alternatives(margin):
            rise, fall = np.log1p(gap / p0), np.log1p(-gap / rest)
            terms.append(np.log(weight) + successes * rise + failures * fall)
        total: Floats = logsumexp(np.stack(np.broadcast_arrays(*terms)), axis=0)
        return total

    def votes_needed(self, margin: Floats, draws: Counts) -> Counts:
        """Return the smallest number of votes that rejects H0 at each number of draws; one more: none does.

        M_n grows with s for every fixed n.

        Args:
            margin: Shape ``(R,)``.
            draws: Shape ``(L,)``.

        Returns:
            Shape ``(R, L)``.
        """
        margin, draws = np.broadcast_arrays(margin[:, None], draws[None, :])
        low = np.full(draws.shape, -1, dtype=np.int64)
        high = draws + 1
        while (high - low > 1).any():
            middle = np.minimum((low + high) // 2, draws)
            enough = self.log_value(middle, draws, margin) >= np.log(1 / self.alpha) + _SLACK
            high, low = np.where(enough, np.minimum(high, middle), high), np.where(enough, low, np.maximum(low, middle))
            high = np.where(low == draws, draws + 1, high)
        return high

    def _alternatives(self, margin: Floats) -> list[tuple[Floats, float]]:
        """Return q - p0 by shape of ``margin``, and the weight, of every alternative but the one at 1."""
        goal = np.log(1 / self.alpha) + 1
        sizes = np.geomspace(_FIRST, max(self.draws, _FIRST + 1), _ALTERNATIVES)
        return [(_gap(margin, goal / size), (1 - _ATOM) / _ALTERNATIVES) for size in sizes]


def _gap(margin: Floats, divergence: float) -> Floats:
    """Return q - p0 with the binary relative entropy KL(q, p0) as given, or nearly 1 - p0 where none has it.

    Any q strictly between p0 and 1 is a valid alternative: this needs no precision.
    """
    p0, rest = norm.cdf(margin), norm.sf(margin)
    low, high = np.zeros_like(rest), np.asarray(rest, dtype=np.float64)
    for _ in range(40):
        gap = (low + high) / 2
        entropy = (p0 + gap) * np.log1p(gap / p0) + (rest - gap) * np.log1p(-gap / rest)
        low, high = np.where(entropy < divergence, gap, low), np.where(entropy < divergence, high, gap)
    found: Floats = np.minimum((low + high) / 2, (1 - 1e-6) * rest)  # nearer to 1 its logarithm would lose digits
    return found


def radius_of(probability: float, sigma: float) -> float:
    """Return sigma times the normal quantile of a lower bound of P(vote); 0 up to one half (Cohen et al. Theorem 1)."""
    positive(sigma=sigma)
    return sigma * float(norm.ppf(probability)) if probability > 0.5 else 0.0
