"""The largest value a bounded random quantity can take, estimated from maxima of batches of it."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats


class Extreme(NamedTuple):
    """An estimated largest value.

    Attributes:
        value: The estimate: the fit's location, or the sample maximum where the fit may not be believed.
        pvalue: Kolmogorov-Smirnov p-value of the fit; 0 where no fit was found, 1 where all maxima agree.
        fitted: Whether ``value`` is the fit's.
        shape: The fit's shape parameter, NaN where there is none.
    """

    value: float
    pvalue: float
    fitted: bool
    shape: float


def fit_maxima(
    maxima: NDArray[np.float64],
    *,
    min_pvalue: float = 0.05,
    max_stretch: float = 2.0,
    shapes: tuple[float, ...] = (1.0, 5.0, 25.0),
) -> Extreme:
    """Fit a reverse Weibull distribution to batch maxima; its location is the right end of the support.

    Weng et al. 2018, section 3.2: by Fisher-Tippett-Gnedenko the maxima of a bounded quantity tend to that
    distribution. The maximum-likelihood fit starts from several shapes, and the likeliest result counts.

    Args:
        maxima: Shape ``(B,)``, one maximum per batch.
        min_pvalue: Below this p-value the fit is not believed, and the sample maximum is returned.
        max_stretch: Nor is it when its location exceeds the sample maximum this many times: the likelihood of few
            maxima may grow without limit as location and shape go to infinity together.
        shapes: Shape parameters to start from.
    """
    top = float(maxima.max())
    spread = float(maxima.std())
    if spread <= 1e-6 * top:  # equal but for rounding, as for an affine map: there is nothing to fit
        return Extreme(top, 1.0, False, float("nan"))
    # SciPy's optimiser works in absolute steps, so the data are brought to the unit scale first.
    scaled = (maxima - top) / spread
    fits = [fit for shape in shapes if (fit := _fit(scaled, shape)) is not None]
    if not fits:
        return Extreme(top, 0.0, False, float("nan"))
    shape, location, scale = max(fits, key=lambda fit: float(stats.weibull_max.logpdf(scaled, *fit).sum()))
    pvalue = float(stats.kstest(scaled, stats.weibull_max(shape, location, scale).cdf).pvalue)
    value = top + spread * location
    believed = pvalue >= min_pvalue and top <= value <= max_stretch * top
    return Extreme(value if believed else top, pvalue, believed, shape)


def _fit(scaled: NDArray[np.float64], shape: float) -> tuple[float, float, float] | None:
    """Return shape, location and scale, or None where the optimiser found nothing finite."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # trial points outside the support have likelihood 0
        try:
            fit = stats.weibull_max.fit(scaled, shape, loc=0.5, scale=1.0 - float(scaled.mean()))
        except stats.FitError:
            return None
        likelihood = stats.weibull_max.logpdf(scaled, *fit).sum()
    return (float(fit[0]), float(fit[1]), float(fit[2])) if np.isfinite(likelihood) else None
