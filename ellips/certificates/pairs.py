"""Spectra of P_i − P_j, decomposed once per pair of classes and remembered, with bounds on their errors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from threading import RLock
from typing import NamedTuple

import torch
from torch import Tensor

from ellips.certificates.parts import Parts
from ellips.certificates.rounding import UNDERFLOW, gamma
from ellips.certificates.secular import Problems

_KEPT_ELEMENTS = 2**25  # of the eigenvectors remembered: 256 MB in float64
_BATCH_ELEMENTS = 2**20  # of the matrices decomposed in one go
_TINY = UNDERFLOW[torch.float64]


class Spectra(NamedTuple):
    """W = P_high − P_low = Q diag(λ) Qᵀ + E for pairs low < high, h = Qᵀ(P_high ν_high − P_low ν_low), ν = μ − c."""

    rotation: Tensor  # (n, d, q), Q diag(λ)
    values: Tensor  # (n, q), ascending
    ends: Tensor  # (n, 2, d), the first and the last column of Q
    shift: Tensor  # (n, q), h
    error: Tensor  # (n,), ‖E‖, with what Q lacks in orthogonality
    gain_error: Tensor  # (n,), error of diag(λ) Qᵀx per unit of ‖x‖
    shift_error: Tensor  # (n,), error of h


class PairSpectra(ABC):
    """Eigen-decompositions of P_i − P_j for pairs of classes, each made when it is first needed.

    Several threads may ask at once: where a pair stands is said together with the spectra that it stands in, which are
    never written to again.

    Args:
        geometry: The mixture.
        elements: Numbers that one pair's eigenvectors take.
    """

    def __init__(self, geometry: Parts, elements: int) -> None:
        self._geometry, self._elements = geometry, max(1, elements)
        classes = geometry.num_classes
        self._slot = torch.full((classes, classes), -1, dtype=torch.int64, device=geometry.offsets.device)
        self._spectra: Spectra | None = None
        self._shifted: tuple[Spectra, Tensor, Tensor] | None = None
        self._lock = RLock()

    @abstractmethod
    def _decompose(self, low: Tensor, high: Tensor) -> Spectra:
        """Decompose a batch of pairs and bound the errors."""

    def __len__(self) -> int:
        return 0 if self._spectra is None else len(self._spectra.values)

    def lowest(self, prediction: Tensor, rival: Tensor) -> Tensor:
        """Return a lower bound on λ_min(P_rival − P_prediction) for each pair: exact up to rounding.

        Args:
            prediction: Shape ``(M,)``, class indices.
            rival: Shape ``(M,)``, class indices other than ``prediction``'s.

        Returns:
            Shape ``(M,)``.
        """
        slot, spectra = self._find(torch.minimum(prediction, rival), torch.maximum(prediction, rival))
        ends = torch.where(prediction < rival, spectra.values[slot, 0], -spectra.values[slot, -1])
        return ends - spectra.error[slot]

    def lowest_vector(self, prediction: Tensor, rival: Tensor) -> Tensor:
        """Return the eigenvector of λ_min(P_rival − P_prediction) for each pair, shape ``(M, d)``."""
        slot, spectra = self._find(torch.minimum(prediction, rival), torch.maximum(prediction, rival))
        return spectra.ends[slot, (prediction > rival).long()]

    def coefficient_slack(self, norm: Tensor, prediction: Tensor, rival: Tensor) -> Tensor:
        """Bound by how much ‖β‖, as :meth:`problems` returns it, can exceed ‖b‖.

        Args:
            norm: ‖z − c‖, of a shape that broadcasts with the others.
            prediction: Class indices.
            rival: Class indices.
        """
        root = (self._geometry.dim + 1) ** 0.5
        low, high = torch.minimum(prediction, rival), torch.maximum(prediction, rival)
        differ, slot = low != high, torch.zeros_like(low)
        slot[differ], spectra = self._find(low[differ], high[differ])
        slack: Tensor = 2 * root * (spectra.gain_error[slot] * norm + spectra.shift_error[slot])
        return slack

    def problems(
        self, x: Tensor, points: Tensor, margin: Tensor, prediction: Tensor, rival: Tensor
    ) -> tuple[Problems, Tensor]:
        """Return the secular problems of points between their predictions and rivals.

        Args:
            x: z − c, shape ``(N, d)``.
            points: Which of them each problem is about, shape ``(M,)``.
            margin: Lower bounds on the margins, shape ``(M,)``.
            prediction: Shape ``(M,)``, class indices.
            rival: Shape ``(M,)``, class indices other than ``prediction``'s.

        Returns:
            The problems, with their rounding errors subtracted, and the order they are in: problem i is that of row
            ``order[i]``. Problems of one pair stand together, so that each pair's matrix is read once.
        """
        slot, spectra = self._find(torch.minimum(prediction, rival), torch.maximum(prediction, rival))
        order = slot.argsort()
        slot, x, downwards = slot[order], x.index_select(0, points[order]), (prediction > rival)[order]
        beta = _rotate(x, spectra, slot).abs_()
        beta += (spectra.gain_error[slot] * x.norm(dim=-1) + spectra.shift_error[slot]).unsqueeze(-1)
        spread, concavity = self._ends_first(spectra)
        rows = slot + downwards * len(spectra.values)
        return Problems(margin[order], beta.square_(), spread.index_select(0, rows), concavity[rows]), order

    def portions(self, prediction: Tensor, rival: Tensor) -> list[Tensor]:
        """Return the rows of problems in parts, of which each has no more pairs than are kept at once.

        Args:
            prediction: Shape ``(M,)``, class indices.
            rival: Shape ``(M,)``, class indices.
        """
        classes, most = self._geometry.num_classes, max(1, _KEPT_ELEMENTS // self._elements)
        if classes * (classes - 1) // 2 <= most:
            return [torch.arange(len(rival), device=rival.device)]
        codes = torch.minimum(prediction, rival) * classes + torch.maximum(prediction, rival)
        part = codes.unique(return_inverse=True)[1] // most
        return list(part.argsort().split(part.bincount().tolist()))

    def _ends_first(self, spectra: Spectra) -> tuple[Tensor, Tensor]:
        """λ + ℓ and ℓ = (−λ_min)₊ of all W and then all −W, errors subtracted, shapes ``(2n, d)`` and ``(2n,)``."""
        known = self._shifted
        if known is None or known[0] is not spectra:
            both = torch.cat([spectra.values, -spectra.values]) - spectra.error.repeat(2).unsqueeze(-1)
            concavity = (-both.amin(-1)).clamp(min=0)
            known = self._shifted = spectra, both + concavity.unsqueeze(-1), concavity
        return known[1:]

    def _find(self, low: Tensor, high: Tensor) -> tuple[Tensor, Spectra]:
        """Return where the spectra of pairs low < high are, after decomposing those that are missing."""
        with self._lock:
            missing = (self._slot[low, high] < 0).nonzero().squeeze(1)
            if len(missing):
                classes = self._geometry.num_classes
                codes = torch.unique(low[missing] * classes + high[missing])
                if (len(self) + len(codes)) * self._elements > _KEPT_ELEMENTS:  # start over, with what is needed now
                    self._spectra = self._shifted = None
                    self._slot.fill_(-1)
                    codes = torch.unique(low * classes + high)
                self._add(codes // classes, codes % classes)
            assert self._spectra is not None  # for the type checker
            return self._slot[low, high], self._spectra

    def _add(self, low: Tensor, high: Tensor) -> None:
        rows = max(1, _BATCH_ELEMENTS // self._elements)
        new = [self._decompose(*pair) for pair in zip(low.split(rows), high.split(rows), strict=True)]
        place = torch.arange(len(low), device=low.device) + len(self)
        parts = new if self._spectra is None else [self._spectra, *new]
        self._spectra = Spectra(*(torch.cat(columns) for columns in zip(*parts, strict=True)))
        self._slot[low, high] = place  # last: memory may have run out above, and whoever asks again asks for them


def _rotate(x: Tensor, spectra: Spectra, slot: Tensor) -> Tensor:
    """Return β = ΛQᵀx − h for rows sorted by pair: a product per pair where rows share pairs, else one per row."""
    found, counts = torch.unique_consecutive(slot, return_counts=True)
    if len(found) * 8 > len(x) and x.shape[1] <= 32:
        return torch.baddbmm(spectra.shift[slot].unsqueeze(1), x.unsqueeze(1), spectra.rotation[slot], beta=-1).squeeze(
            1
        )
    beta, start = x.new_empty(len(x), spectra.shift.shape[1]), 0
    for k, count in zip(found.tolist(), counts.tolist(), strict=True):
        rows = slice(start, start + count)
        torch.addmm(spectra.shift[k], x[rows], spectra.rotation[k], beta=-1, out=beta[rows])
        start += count
    return beta


def _diagonal_spectrum(own: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """The diagonal of W from the factors of prediction and rival, and a bound on its error, entry by entry."""
    values = other.square() - own.square()
    error = gamma(10) * (other.square() + own.square())  # four are done; the verified kernel takes off as many
    return values, (error + _TINY**2).masked_fill(own == other, 0.0)


class FactoredPairs(PairSpectra):
    """Pairs of precisions with a factor each; for diagonal ones there is nothing to decompose.

    Args:
        geometry: The mixture.
        factors: A_k, shape ``(K, d, d)`` or ``(K, d)``.
    """

    def __init__(self, geometry: Parts, factors: Tensor) -> None:
        super().__init__(geometry, 0 if factors.ndim == 2 else geometry.dim**2)
        self._factors = factors
        self._diagonal = factors.ndim == 2

    def lowest(self, prediction: Tensor, rival: Tensor) -> Tensor:
        """See :class:`PairSpectra`."""
        if not self._diagonal:
            return super().lowest(prediction, rival)
        values, error = _diagonal_spectrum(self._factors[prediction], self._factors[rival])
        return (values - error).amin(-1)

    def lowest_vector(self, prediction: Tensor, rival: Tensor) -> Tensor:
        """See :class:`PairSpectra`."""
        if not self._diagonal:
            return super().lowest_vector(prediction, rival)
        values, _ = _diagonal_spectrum(self._factors[prediction], self._factors[rival])
        return torch.nn.functional.one_hot(values.argmin(-1), self._geometry.dim).to(values)

    def coefficient_slack(self, norm: Tensor, prediction: Tensor, rival: Tensor) -> Tensor:
        """See :class:`PairSpectra`."""
        if not self._diagonal:
            return super().coefficient_slack(norm, prediction, rival)
        geometry = self._geometry
        size = [geometry.factor_norms[k].square() * (norm + geometry.mean_norms[k]) for k in (prediction, rival)]
        return 2 * gamma(10) * (size[0] + size[1])

    def problems(
        self, x: Tensor, points: Tensor, margin: Tensor, prediction: Tensor, rival: Tensor
    ) -> tuple[Problems, Tensor]:
        """See :class:`PairSpectra`."""
        if not self._diagonal:
            return super().problems(x, points, margin, prediction, rival)
        as_given = torch.arange(len(points), device=x.device)
        return self._diagonal_problems(x[points], margin, prediction, rival), as_given

    def _diagonal_problems(self, x: Tensor, margin: Tensor, prediction: Tensor, rival: Tensor) -> Problems:
        factors, means = self._factors, self._geometry.offsets_from_center
        values, error = _diagonal_spectrum(factors[prediction], factors[rival])
        own, other = (factors[k].square() * (x - means[k]) for k in (prediction, rival))
        size = sum(factors[k].square() * (x.abs() + means[k].abs()) for k in (prediction, rival))
        beta = (other - own).abs() + gamma(8) * size
        alike = (factors[prediction] == factors[rival]) & (means[prediction] == means[rival])
        values = values - error
        concavity = (-values.amin(-1)).clamp(min=0)
        beta = (beta + _TINY).masked_fill(alike, 0.0)
        return Problems(margin, beta.square(), values + concavity.unsqueeze(-1), concavity)

    def _decompose(self, low: Tensor, high: Tensor) -> Spectra:
        """See :class:`PairSpectra`; errors are bounded from the residuals."""
        geometry, factors = self._geometry, self._factors
        d, means = geometry.dim, geometry.offsets_from_center
        factors_low, factors_high = factors[low], factors[high]
        curvature = factors_high.mT @ factors_high - factors_low.mT @ factors_low
        values, vectors = torch.linalg.eigh(curvature)
        pulls = [(f.mT @ (f @ m.unsqueeze(-1))) for f, m in ((factors_low, means[low]), (factors_high, means[high]))]
        shift = (vectors.mT @ (pulls[1] - pulls[0])).squeeze(-1)
        power_low, power_high = (geometry.factor_norms[k].square() for k in (low, high))  # ‖A‖_F² ≥ ‖|A|ᵀ|A|‖ ≥ ‖P‖
        reach = power_low * geometry.mean_norms[low] + power_high * geometry.mean_norms[high]
        largest = values.abs().amax(-1)
        eye = torch.eye(d, dtype=curvature.dtype, device=curvature.device)
        skew = (vectors.mT @ vectors - eye).flatten(1).norm(dim=1) + gamma(d + 2) * d
        residual = (curvature - (vectors * values.unsqueeze(1)) @ vectors.mT).flatten(1).norm(dim=1)
        error = residual + 3 * skew * largest + gamma(4 * d + 24) * (power_low + power_high + d**0.5 * largest)
        gain_error = error + (skew + gamma(d + 4) * d**0.5) * largest
        shift_error = gamma(4 * d + 8) * d**0.5 * reach
        # Classes of one shape have W = 0 exactly (the boundary is a hyperplane); of one place too, b = 0 exactly.
        same_shape = (factors_low == factors_high).flatten(1).all(1)
        same_place = same_shape & (means[low] == means[high]).all(1)
        values = values.masked_fill(same_shape.unsqueeze(-1), 0.0)
        error, gain_error = (e.masked_fill(same_shape, 0.0) for e in (error, gain_error))
        ends = torch.stack([vectors[..., 0], vectors[..., -1]], dim=1)
        return Spectra(
            vectors * values.unsqueeze(1),
            values,
            ends,
            shift,
            error,
            gain_error,
            (shift_error + _TINY).masked_fill(same_place, 0.0),
        )
