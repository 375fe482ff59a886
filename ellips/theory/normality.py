"""Is a class Gaussian? Mardia's tests of multivariate skewness and kurtosis, per class.

K. V. Mardia, "Measures of multivariate skewness and kurtosis with applications", Biometrika 57 (1970); the moments that
are exact at finite n come from his "Applications of some measures of multivariate skewness and kurtosis in testing
normality and robustness studies", Sankhyā B 36 (1974).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Literal, get_args

import torch
from scipy.stats import chi2, norm
from torch import Tensor

from ellips.validation import at_least, one_of, validate_labels, validate_latents

Calibration = Literal["asymptotic", "monte_carlo"]

# Products of one block of rows with all of them: 32 MB in float64.
_BLOCK_ELEMENTS = 2**22


@dataclass(frozen=True)
class MardiaResult:
    """Mardia's statistics and p-values, one entry per class.

    A class with at most d samples, or whose samples do not span all d dimensions, cannot be tested: its count is kept
    and every other entry is NaN.

    Attributes:
        count: Shape ``(K,)``, int64, samples of each class.
        skewness: Shape ``(K,)``, float64, b₁ = n⁻² Σ_ij m_ij³ with m_ij = (z_i − z̄)ᵀ S⁻¹ (z_j − z̄), S with divisor n.
        skewness_pvalue: Shape ``(K,)``, probability of at least that skewness under normality.
        kurtosis: Shape ``(K,)``, b₂ = n⁻¹ Σ_i m_ii².
        kurtosis_pvalue: Shape ``(K,)``, two-sided.
        dim: d.
        calibration: How the p-values were obtained.
    """

    count: Tensor
    skewness: Tensor
    skewness_pvalue: Tensor
    kurtosis: Tensor
    kurtosis_pvalue: Tensor
    dim: int
    calibration: Calibration

    @property
    def tested(self) -> Tensor:
        """Which classes could be tested, bool, shape ``(K,)``."""
        return ~self.skewness.isnan()

    @property
    def pvalue(self) -> Tensor:
        """P-value of both tests together, shape ``(K,)``: twice the smaller one (Bonferroni), at most 1."""
        return (2 * torch.minimum(self.skewness_pvalue, self.kurtosis_pvalue)).clamp(max=1)

    def passed(self, alpha: float = 0.05) -> Tensor:
        """Return which classes pass both tests at the joint level ``alpha``, bool; an untested class does not."""
        return self.pvalue >= alpha

    def pass_rate(self, alpha: float = 0.05) -> float:
        """Return the share of the tested classes that pass at level ``alpha``; NaN where none could be tested."""
        tested = self.tested
        return float(self.passed(alpha)[tested].double().mean())

    def table(self) -> list[dict[str, float | int]]:
        """Return one dictionary per class, ready for JSON or a table."""
        names = [f.name for f in fields(self) if isinstance(getattr(self, f.name), Tensor)]
        return [{n: getattr(self, n)[k].item() for n in names} for k in range(len(self.count))]


def mardia(
    z: Tensor,
    labels: Tensor | None = None,
    num_classes: int | None = None,
    *,
    calibration: Calibration = "asymptotic",
    num_simulations: int = 999,
    seed: int = 0,
) -> MardiaResult:
    """Test each class for multivariate normality by its skewness and kurtosis (Mardia 1970).

    Both statistics are invariant under affine maps, so their distribution under normality depends on n and d alone.
    ``asymptotic`` compares skewness with χ² of d(d+1)(d+2)/6 degrees of freedom and kurtosis, made symmetric, with a
    normal, each with moments that are exact at finite n (Mardia 1974) as far as they are known: the mean of both and
    the variance of the kurtosis. The variance of the skewness exceeds that of χ² by 5 to 30 % for n between 5,000 and
    50, so the joint level 0.05 comes out between 0.05 and 0.07. ``monte_carlo`` simulates the distribution and is exact
    for every n > d, at ``num_simulations`` times the cost, shared by classes of one size.

    Args:
        z: Latents, shape ``(N, d)``; computed in float64.
        labels: Shape ``(N,)``, integers; None takes all latents for one class.
        num_classes: K; by default the largest label plus one.
        calibration: ``"asymptotic"`` or ``"monte_carlo"``.
        num_simulations: How many Gaussian samples the Monte-Carlo calibration draws; its smallest p-value is
            1 / (num_simulations + 1) for skewness and twice that for kurtosis.
        seed: Seed of those samples.

    Returns:
        Statistics and p-values per class, on the CPU.

    Raises:
        ValueError: If latents or labels are of the wrong kind or an option is unknown.
    """
    one_of(get_args(Calibration), calibration=calibration)
    at_least(1, num_simulations=num_simulations)
    validate_latents(z, z.shape[-1] if isinstance(z, Tensor) and z.ndim else 0)
    if labels is None:
        labels, num_classes = torch.zeros(len(z), dtype=torch.int64, device=z.device), 1
    elif num_classes is None:
        num_classes = int(labels.max()) + 1 if len(labels) else 0
    validate_labels(labels, num_classes or 0, len(z))
    dim = z.shape[1]
    rows = []
    for k in range(num_classes or 0):
        n, b1, b2 = _statistics(z[labels == k].double())
        if calibration == "monte_carlo" and b1 == b1:
            p1, p2 = _monte_carlo_pvalues(n, dim, b1, b2, num_simulations, seed)
        else:
            p1, p2 = _asymptotic_pvalues(n, dim, b1, b2)
        rows.append((b1, p1, b2, p2))
    b1s, p1s, b2s, p2s = torch.tensor(rows, dtype=torch.float64).reshape(-1, 4).unbind(1)
    count = torch.bincount(labels.cpu(), minlength=num_classes or 0)
    return MardiaResult(count, b1s, p1s, b2s, p2s, dim, calibration)


def _statistics(x: Tensor) -> tuple[int, float, float]:
    """Return n, b₁ and b₂ of one class; NaN where the samples do not span the space.

    With the QR factorisation of the centred samples m_ij = n (QQᵀ)_ij: no covariance is formed, so its condition
    number, the square of the samples', never enters.
    """
    n, dim = x.shape
    if n <= dim:
        return n, float("nan"), float("nan")
    x = x - x.mean(0)
    scale = x.square().mean(0).sqrt()
    if not bool((scale > 0).all()):
        return n, float("nan"), float("nan")
    q, r = torch.linalg.qr(x / scale)
    diagonal = r.diagonal().abs()
    if float(diagonal.min()) <= n * torch.finfo(x.dtype).eps * float(diagonal.max()):
        return n, float("nan"), float("nan")
    w = q * n**0.5
    return n, _skewness(w), float(w.square().sum(1).square().mean())


def _skewness(w: Tensor) -> float:
    """Return b₁ of whitened samples: the squared norm of their third moment tensor.

    Over pairs it costs n²d, over the tensor's entries nd³; the cheaper one is taken, a block at a time.
    """
    n, dim = w.shape
    if n <= dim * dim:
        rows = max(1, _BLOCK_ELEMENTS // n)
        total = torch.stack([(block @ w.mT).pow(3).sum() for block in torch.split(w, rows)]).sum()
        return float(total) / n**2
    tensor = torch.zeros(dim * dim, dim, dtype=w.dtype, device=w.device)
    for block in torch.split(w, max(1, _BLOCK_ELEMENTS // dim**2)):
        tensor += (block.unsqueeze(2) * block.unsqueeze(1)).flatten(1).mT @ block
    return float((tensor / n).square().sum())


def _asymptotic_pvalues(n: int, dim: int, b1: float, b2: float) -> tuple[float, float]:
    """P-values from χ² and a transformed normal, with the finite-sample moments of Mardia 1974, eq. 5.5 and 5.6."""
    if b1 != b1:
        return float("nan"), float("nan")
    degrees = dim * (dim + 1) * (dim + 2) / 6
    mean = dim * (dim + 2) * ((n + 1) * (dim + 1) - 6) / ((n + 1) * (n + 3))
    kurtosis_mean = dim * (dim + 2) * (n - 1) / (n + 1)
    spread = (n - 3) * (n - dim - 1) * (n - dim + 1) / ((n + 1) ** 2 * (n + 3) * (n + 5))
    variance = 8 * dim * (dim + 2) * spread
    skewness_pvalue = float(chi2.sf(b1 / mean * degrees, degrees)) if mean > 0 else float("nan")
    if variance <= 0:
        return skewness_pvalue, float("nan")
    normal = _kurtosis_to_normal((b2 - kurtosis_mean) / variance**0.5, n, dim)
    return skewness_pvalue, float(2 * norm.sf(abs(normal)))


def _kurtosis_to_normal(standardised: float, n: int, dim: int) -> float:
    """Map the standardised kurtosis, which is skewed, to a normal (Mardia and Kanazawa 1983, after Wilson–Hilferty).

    The statistic is taken for a shifted and scaled 1/χ² with f degrees of freedom that has its asymptotic skewness,
    √(8 (d+8)² / (d (d+2) n)).
    """
    skewness = (8 * (dim + 8) ** 2 / (dim * (dim + 2) * n)) ** 0.5
    f = 6 + 8 / skewness * (2 / skewness + (1 + 4 / skewness**2) ** 0.5)
    denominator = 1 + standardised * (2 / (f - 4)) ** 0.5
    ratio = (1 - 2 / f) / denominator
    root = abs(ratio) ** (1 / 3) * (1 if ratio > 0 else -1)
    return float((1 - 2 / (9 * f) - root) / (2 / (9 * f)) ** 0.5) if denominator else float("-inf")


@lru_cache(maxsize=64)
def _simulated(n: int, dim: int, num_simulations: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return b₁ and b₂ of Gaussian samples of size n, sorted."""
    generator = torch.Generator().manual_seed(seed)
    draws = [
        _statistics(torch.randn(n, dim, generator=generator, dtype=torch.float64))[1:] for _ in range(num_simulations)
    ]
    b1, b2 = torch.tensor(draws, dtype=torch.float64).sort(0).values.unbind(1)
    return b1, b2


def _monte_carlo_pvalues(n: int, dim: int, b1: float, b2: float, simulations: int, seed: int) -> tuple[float, float]:
    """Rank p-values among simulated statistics: valid at every n, because the observed one is counted among them."""
    ref1, ref2 = _simulated(n, dim, simulations, seed)
    upper1, upper2, lower2 = int((ref1 >= b1).sum()), int((ref2 >= b2).sum()), int((ref2 <= b2).sum())
    return (1 + upper1) / (simulations + 1), min(1.0, 2 * (1 + min(upper2, lower2)) / (simulations + 1))
