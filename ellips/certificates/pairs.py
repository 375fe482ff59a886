"""Spectra of P_i − P_j, decomposed once per pair of classes and remembered, with bounds on their errors."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ellips.certificates.rounding import gamma

if TYPE_CHECKING:
    from ellips.certificates.geometry import Geometry

_KEPT_ELEMENTS = 2**25  # of the eigenvectors remembered: 256 MB in float64
_BATCH_ELEMENTS = 2**20  # of the matrices decomposed in one go


class Problems(NamedTuple):
    """Secular problems with their rounding errors already subtracted (see :mod:`ellips.certificates.secular`).

    Attributes:
        coefficients: Upper bounds on β², shape ``(M, d)``.
        eigenvalues: Lower bounds on λ, shape ``(M, d)``.
    """

    coefficients: Tensor
    eigenvalues: Tensor


class _Spectra(NamedTuple):
    """W = P_b − P_a = Q diag(λ) Qᵀ + E for pairs a < b, and h = Qᵀ(P_bν_b − P_aν_a), ν = μ − c."""

    vectors: Tensor  # (n, d, d)
    values: Tensor  # (n, d), ascending
    shift: Tensor  # (n, d), h
    error: Tensor  # (n,), ‖E‖, with what Q lacks in orthogonality
    gain_error: Tensor  # (n,), error of diag(λ) Qᵀx per unit of ‖x‖
    shift_error: Tensor  # (n,), error of h


class PairSpectra:
    """Eigen-decompositions of P_i − P_j for pairs of classes, each made when it is first needed.

    For diagonal covariances there is nothing to decompose.

    Args:
        geometry: The mixture.
    """

    def __init__(self, geometry: Geometry) -> None:
        self._geometry = geometry
        classes = geometry.num_classes
        self._slot = torch.full((classes, classes), -1, dtype=torch.int64, device=geometry.factors.device)
        self._spectra: _Spectra | None = None

    def __len__(self) -> int:
        return 0 if self._spectra is None else len(self._spectra.values)

    def lowest(self, first: Tensor, second: Tensor) -> Tensor:
        """Return a lower bound on λ_min(P_second − P_first) for each pair: exact up to rounding.

        Args:
            first: Shape ``(M,)``, class indices.
            second: Shape ``(M,)``, class indices other than ``first``'s.

        Returns:
            Shape ``(M,)``.
        """
        geometry = self._geometry
        if geometry.diagonal:
            values, error = _diagonal_spectrum(geometry.factors[first], geometry.factors[second])
            return (values - error).amin(-1)
        slot, spectra = self._find(torch.minimum(first, second), torch.maximum(first, second))
        ends = torch.where(first < second, spectra.values[slot, 0], -spectra.values[slot, -1])
        return ends - spectra.error[slot]

    def lowest_vector(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the eigenvector of λ_min(P_second − P_first) for each pair, shape ``(M, d)``."""
        geometry = self._geometry
        if geometry.diagonal:
            values, _ = _diagonal_spectrum(geometry.factors[first], geometry.factors[second])
            return torch.nn.functional.one_hot(values.argmin(-1), geometry.dim).to(values)
        slot, spectra = self._find(torch.minimum(first, second), torch.maximum(first, second))
        ends = (spectra.vectors[slot, :, 0], spectra.vectors[slot, :, -1])
        return torch.where((first < second).unsqueeze(1), *ends)

    def coefficient_slack(self, norm: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """Bound by how much ‖β‖, as :meth:`problems` returns it, can exceed ‖b‖.

        Args:
            norm: ‖z − c‖, of a shape that broadcasts with the others.
            first: Class indices.
            second: Class indices.
        """
        root, geometry = self._geometry.dim**0.5, self._geometry
        if geometry.diagonal:
            size = [geometry.factor_norms[k].square() * (norm + geometry.mean_norms[k]) for k in (first, second)]
            return 2 * gamma(10) * (size[0] + size[1])
        low, high = torch.minimum(first, second), torch.maximum(first, second)
        _, spectra = self._find(low[low != high], high[low != high])
        slot = self._slot[low, high].clamp(min=0)
        slack: Tensor = 2 * root * (spectra.gain_error[slot] * norm + spectra.shift_error[slot])
        return slack

    def problems(self, x: Tensor, first: Tensor, second: Tensor) -> Problems:
        """Return the secular problems of points x between classes ``first`` (the prediction) and ``second``.

        Args:
            x: z − c, shape ``(M, d)``.
            first: Shape ``(M,)``, class indices.
            second: Shape ``(M,)``, class indices other than ``first``'s.
        """
        if self._geometry.diagonal:
            return self._diagonal_problems(x, first, second)
        slot, spectra = self._find(torch.minimum(first, second), torch.maximum(first, second))
        beta = (_rotate(x, spectra.vectors, slot) * spectra.values[slot]).sub_(spectra.shift[slot]).abs_()
        beta += (spectra.gain_error[slot] * x.norm(dim=-1) + spectra.shift_error[slot]).unsqueeze(-1)
        sign = torch.where(first < second, 1.0, -1.0).to(x).unsqueeze(-1)
        eigenvalues = (sign * spectra.values[slot]).sub_(spectra.error[slot].unsqueeze(-1))
        return Problems(beta.square_(), eigenvalues)

    def _diagonal_problems(self, x: Tensor, first: Tensor, second: Tensor) -> Problems:
        factors, means = self._geometry.factors, self._geometry.offsets_from_center
        values, error = _diagonal_spectrum(factors[first], factors[second])
        far, near = (factors[k].square() * (x - means[k]) for k in (first, second))
        size = sum(factors[k].square() * (x.abs() + means[k].abs()) for k in (first, second))
        beta = (near - far).abs() + gamma(8) * size
        alike = (factors[first] == factors[second]) & (means[first] == means[second])
        return Problems(beta.masked_fill(alike, 0.0).square(), values - error)

    def _find(self, low: Tensor, high: Tensor) -> tuple[Tensor, _Spectra]:
        """Return where the spectra of pairs low < high are, after decomposing those that are missing."""
        missing = (self._slot[low, high] < 0).nonzero().squeeze(1)
        if len(missing):
            classes = self._geometry.num_classes
            codes = torch.unique(low[missing] * classes + high[missing])
            if (len(self) + len(codes)) * self._geometry.dim**2 > _KEPT_ELEMENTS:  # start over, with what is needed now
                self._spectra = None
                self._slot.fill_(-1)
                codes = torch.unique(low * classes + high)
            self._add(codes // classes, codes % classes)
        assert self._spectra is not None  # for the type checker
        return self._slot[low, high], self._spectra

    def _add(self, low: Tensor, high: Tensor) -> None:
        rows = max(1, _BATCH_ELEMENTS // self._geometry.dim**2)
        new = [_decompose(self._geometry, *pair) for pair in zip(low.split(rows), high.split(rows), strict=True)]
        self._slot[low, high] = torch.arange(len(low), device=low.device) + len(self)
        parts = new if self._spectra is None else [self._spectra, *new]
        self._spectra = _Spectra(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def _rotate(x: Tensor, vectors: Tensor, slot: Tensor) -> Tensor:
    """Return Qᵀx for each row and its pair: one product per pair where many rows share it, else one per row."""
    order = slot.argsort()
    found, counts = torch.unique_consecutive(slot[order], return_counts=True)
    if len(found) * 8 > len(x) and x.shape[1] <= 32:
        return torch.bmm(x.unsqueeze(1), vectors[slot]).squeeze(1)
    ordered = x[order]
    parts = [part @ vectors[k] for part, k in zip(ordered.split(counts.tolist()), found.tolist(), strict=True)]
    return torch.empty_like(x).index_copy_(0, order, torch.cat(parts)) if parts else x


def _diagonal_spectrum(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """The diagonal of W and a bound on its error, component by component."""
    values = second.square() - first.square()
    error = gamma(4) * (second.square() + first.square())
    return values, error.masked_fill(first == second, 0.0)


def _decompose(geometry: Geometry, low: Tensor, high: Tensor) -> _Spectra:
    """Decompose a batch of pairs and bound the errors from the residuals."""
    d, factors, means = geometry.dim, geometry.factors, geometry.offsets_from_center
    a, b = factors[low], factors[high]
    w = b.mT @ b - a.mT @ a
    values, vectors = torch.linalg.eigh(w)
    pull = [(f.mT @ (f @ m.unsqueeze(-1))) for f, m in ((a, means[low]), (b, means[high]))]
    shift = (vectors.mT @ (pull[1] - pull[0])).squeeze(-1)
    power_a, power_b = (geometry.factor_norms[k].square() for k in (low, high))  # ‖A‖_F² ≥ ‖|A|ᵀ|A|‖ ≥ ‖P‖
    reach = power_a * geometry.mean_norms[low] + power_b * geometry.mean_norms[high]
    largest = values.abs().amax(-1)
    eye = torch.eye(d, dtype=w.dtype, device=w.device)
    skew = (vectors.mT @ vectors - eye).flatten(1).norm(dim=1) + gamma(d + 2) * d
    residual = (w - (vectors * values.unsqueeze(1)) @ vectors.mT).flatten(1).norm(dim=1)
    error = residual + 3 * skew * largest + gamma(2 * d + 8) * (power_a + power_b + d**0.5 * largest)
    gain_error = error + (skew + gamma(d + 4) * d**0.5) * largest
    shift_error = gamma(4 * d + 8) * d**0.5 * reach
    # Classes of one shape have W = 0 exactly (the boundary is a hyperplane); of one place too, b = 0 exactly.
    same_shape = (a == b).flatten(1).all(1)
    same_place = same_shape & (means[low] == means[high]).all(1)
    values = values.masked_fill(same_shape.unsqueeze(-1), 0.0)
    error, gain_error = (e.masked_fill(same_shape, 0.0) for e in (error, gain_error))
    return _Spectra(vectors, values, shift, error, gain_error, shift_error.masked_fill(same_place, 0.0))
