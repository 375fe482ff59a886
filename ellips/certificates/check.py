"""An independent check of certificates: definitions and plain linear algebra, nothing of the solver.

For the named rival it needs one Cholesky factorisation per point. With W = P_rival − P_prediction, b half the gradient
of the margin m at z, and any t ≥ 0 with I + tW ≻ 0,

    D(t) = t m − t² bᵀ (I + tW)⁻¹ b ≤ R²

(weak duality), so a radius of at most √D(t) is proven by t, whoever found t and however.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ellips.certificates.certificate import METHODS, Certificate
from ellips.gaussians import Mixture
from ellips.validation import one_of

_BATCH_ELEMENTS = 2**22  # of the matrices factorised in one go: 32 MB in float64
_SAME_MARGIN = 1e-9  # relative to the scores: how far two ways of computing a margin may lie apart
_SCORE_ROUNDING = 1e-15  # a few units of float64's precision per dimension, for scores far from their mean
_SOLVER_ROUNDING = 1e-14  # worst-case bounds, which solvers subtract, are some tens of units per dimension
_NOTHING = 1e-13  # relative, per dimension: eigenvalues and coefficients that an eigen-decomposition gives for 0
_TINY = 1e-300  # keeps comparisons relative to a size of 0 meaningful
_WIDENINGS = 250  # of the bisection's interval, fourfold each: squares of the ends stay below float64's overflow
_HALVINGS = 80  # of it, then: the root lies in its upper three quarters, so all 53 bits are settled


def check(
    mixture: Mixture,
    z: Tensor,
    certificate: Certificate,
    *,
    rivals: Literal["all", "named"] = "all",
    tolerance: float = 1e-9,
    slack: float = 1e-6,
) -> Tensor:
    """Check certificates against the mixture, without trusting the solver that made them.

    A certificate passes if its prediction and margin are the mixture's, its radius is proven against the named
    rival by its multiplier, no other rival is nearer, and, for the input space, the radius is at most ``min(R/L, r)``.
    So that nothing about it can be altered unnoticed, the radius must also not be *smaller* than what its method
    gives, beyond what a solver takes off for rounding. Whether L is what it claims to be cannot be checked here.

    Args:
        mixture: The fitted mixture.
        z: Latents the certificates are for, shape ``(N, d)``.
        certificate: What to check, of the same length.
        rivals: ``"named"`` checks the named rival alone, one Cholesky factorisation per point; ``"all"`` also proves
            the radius against every other, by a closed form where that suffices and an eigen-decomposition where not.
        tolerance: How much larger than the proven radius a radius may be, relative; for this check's own rounding.
        slack: How much smaller than its method's value a radius may be, relative, on top of an allowance for rounding
            that grows with the conditioning of the mixture.

    Returns:
        Shape ``(N,)``, bool.

    Raises:
        ValueError: If lengths disagree, or method or ``rivals`` are unknown, or as :meth:`Mixture.validate`.
        NotFittedError: If no mixture was fitted.
    """
    z = mixture.validate(z)
    if len(z) != len(certificate):
        raise ValueError(f"Expected {len(z)} certificates, one per latent, but got {len(certificate)}.")
    one_of(METHODS, method=certificate.method)
    one_of(("all", "named"), rivals=rivals)
    with torch.no_grad():
        auditor = _Auditor(mixture, tolerance, slack)
        rows = max(1, _BATCH_ELEMENTS // max(mixture.dim**2, mixture.num_classes * mixture.dim))
        parts = zip(z.split(rows), torch.arange(len(z), device=z.device).split(rows), strict=True)
        passed = [auditor.audit(part, certificate.to(str(z.device))[index], rivals == "all") for part, index in parts]
    return torch.cat(passed)


class _Auditor:
    """The mixture from its definition, and the questions asked of it."""

    def __init__(self, mixture: Mixture, tolerance: float, slack: float) -> None:
        self.means, self.precisions = mixture.means.detach(), mixture.precisions.detach()
        self.offsets = (2 * mixture.log_priors.log_softmax(0) - mixture.log_dets).detach()
        self.traces = self.precisions.diagonal(dim1=-2, dim2=-1).sum(-1)
        self.tolerance, self.slack = tolerance, slack
        self.center = self.means.mean(0)

    def audit(self, z: Tensor, certificate: Certificate, every: bool) -> Tensor:
        pulls = torch.einsum("kij,nkj->nki", self.precisions, z.unsqueeze(1) - self.means)
        scores = self.offsets - ((z.unsqueeze(1) - self.means) * pulls).sum(-1)
        radius = certificate.radius if certificate.latent_radius is None else certificate.latent_radius
        rows, prediction, rival = torch.arange(len(z), device=z.device), certificate.prediction, certificate.rival
        classes = len(self.means)
        valid = (prediction >= 0) & (prediction < classes) & (rival >= 0) & (rival < classes) & (prediction != rival)
        valid &= ~(radius.isnan() | certificate.multiplier.isnan()) & (certificate.multiplier >= 0)
        prediction, rival = prediction.clamp(0, classes - 1), rival.clamp(0, classes - 1)
        top = scores[rows, prediction]
        margins = top.unsqueeze(1) - scores
        scale = _SAME_MARGIN * (1 + scores.abs() + self.offsets.abs()).amax(1) + self._noise(z, prediction, rival)
        valid &= margins.amin(1) >= -scale
        valid &= (certificate.margin - margins[rows, rival]).abs() <= scale
        half_gradients = pulls - pulls[rows, prediction].unsqueeze(1)
        named = half_gradients[rows, rival], margins[rows, rival]
        proven = self._proven(prediction, rival, *named, certificate.multiplier)
        valid &= (radius <= proven * (1 + self.tolerance)) | (radius == 0)
        due = (
            proven
            if certificate.method == "exact"
            else self._closed_form(certificate.method, radius, prediction, rival, half_gradients, margins)
        )
        allowance = self.slack + self._allowance(z, prediction, rival, certificate.multiplier, radius)
        valid &= (radius >= due * (1 - allowance)) | (radius == due)
        if certificate.method != "exact":
            valid &= radius <= due * (1 + self.slack)
        if every:
            valid &= self._others(valid, prediction, rival, half_gradients, margins, radius)
        return valid & self._carried(certificate)

    def _noise(self, z: Tensor, prediction: Tensor, rival: Tensor) -> Tensor:
        """What rounding may do to a margin."""
        size = sum(self.traces[k] * (z - self.means[k]).square().sum(-1) for k in (prediction, rival))
        return _SCORE_ROUNDING * z.shape[1] * torch.as_tensor(size)

    def _allowance(self, z: Tensor, prediction: Tensor, rival: Tensor, multiplier: Tensor, radius: Tensor) -> Tensor:
        """What a careful solver may take off for rounding, relative to the radius."""
        d = z.shape[1]
        reach = (z - self.center).norm(dim=1) + sum(
            (self.means[k] - self.center).norm(dim=1) for k in (prediction, rival)
        )
        power = self.traces[prediction] + self.traces[rival]
        relative = _SOLVER_ROUNDING * d**1.5 * multiplier * power * (1 + reach / radius) ** 2
        return torch.where(radius.isfinite() & (radius > 0), relative, 0.0)

    def _proven(
        self, prediction: Tensor, rival: Tensor, half_gradient: Tensor, margin: Tensor, multiplier: Tensor
    ) -> Tensor:
        """√D(t), by one Cholesky factorisation per point; 0 where t proves nothing."""
        curvature = self.precisions[rival] - self.precisions[prediction]
        finite = multiplier.isfinite()
        t = torch.where(finite, multiplier, 0.0).view(-1, 1, 1)
        eye = torch.eye(curvature.shape[-1], dtype=curvature.dtype, device=curvature.device)
        lower, info = torch.linalg.cholesky_ex(eye + t * curvature)
        half = torch.linalg.solve_triangular(lower, half_gradient.unsqueeze(-1), upper=False).flatten(1).square().sum(1)
        dual = multiplier * (margin - multiplier * half)
        proven: Tensor = torch.where((info == 0) & (dual > 0), dual, 0.0).sqrt()
        for row in (~finite).nonzero().flatten().tolist():
            proven[row] = torch.inf if _never_reached(curvature[row], half_gradient[row], margin[row]) else 0.0
        return proven

    def _closed_form(
        self, method: str, radius: Tensor, prediction: Tensor, rival: Tensor, half_gradients: Tensor, margins: Tensor
    ) -> Tensor:
        """The radius of a closed-form method: by Weyl's bound if the certificate's is that one, else by eigenvalues."""
        rows = torch.arange(len(radius), device=radius.device)
        margins = margins.clone()
        margins[rows, prediction] = torch.inf
        every = torch.arange(len(self.means), device=radius.device).expand_as(margins)
        if method == "pairwise":
            index = (rows.unsqueeze(1), rival.unsqueeze(1))
            every, margins, half_gradients = (x[index] for x in (every, margins, half_gradients))
        own, norms = prediction.unsqueeze(1).expand_as(every), half_gradients.norm(dim=-1)
        ends = torch.linalg.eigvalsh(self.precisions)
        weyl = ends[:, 0][every] - ends[:, -1][own]
        due = _root(margins, norms, weyl, own == every)
        other = ((radius - due).abs() > self.slack * due).nonzero().flatten()
        if len(other):
            lowest = self._lowest(own[other], every[other])
            due[other] = _root(margins[other], norms[other], lowest, (own == every)[other])
        return due

    def _lowest(self, prediction: Tensor, rival: Tensor) -> Tensor:
        classes = len(self.means)
        codes, inverse = torch.unique(prediction * classes + rival, return_inverse=True)
        rows = max(1, _BATCH_ELEMENTS // self.means.shape[1] ** 2)
        values = [
            torch.linalg.eigvalsh(self.precisions[part % classes] - self.precisions[part // classes])[:, 0]
            for part in codes.split(rows)
        ]
        return torch.cat(values)[inverse]

    def _others(
        self, open_: Tensor, prediction: Tensor, rival: Tensor, half_gradients: Tensor, margins: Tensor, radius: Tensor
    ) -> Tensor:
        """Whether no rival other than the named one is nearer than the radius."""
        ends = torch.linalg.eigvalsh(self.precisions)
        concavity = (ends[:, -1][prediction].unsqueeze(1) - ends[:, 0]).clamp(min=0)
        r = radius.unsqueeze(1)
        safe: Tensor = margins - 2 * half_gradients.norm(dim=-1) * r - concavity * r.square() >= 0
        rows = torch.arange(len(radius), device=radius.device)
        safe[rows, prediction] = safe[rows, rival] = True
        safe |= (r == 0) | ~open_.unsqueeze(1)
        left, others = (~safe).nonzero(as_tuple=True)
        batch = max(1, _BATCH_ELEMENTS // self.means.shape[1] ** 2)
        for row, other in zip(left.split(batch), others.split(batch), strict=True):
            curvature = self.precisions[other] - self.precisions[prediction[row]]
            reached = _distance(curvature, half_gradients[row, other], margins[row, other])
            safe[row, other] = radius[row] <= reached * (1 + self.slack)
        return safe.all(1)

    def _carried(self, certificate: Certificate) -> Tensor:
        """Whether an input-space radius follows from the latent one."""
        if certificate.space == "latent":
            return torch.ones_like(certificate.prediction, dtype=torch.bool)
        latent, constant, ball = certificate.latent_radius, certificate.lipschitz, certificate.ball_radius
        if latent is None or constant is None or ball is None:
            return torch.zeros_like(certificate.prediction, dtype=torch.bool)
        within = (certificate.radius * constant <= latent) | (constant == 0) | (certificate.radius == 0)
        return within & (certificate.radius <= ball)


def _root(margins: Tensor, half_gradient_norms: Tensor, lowest: Tensor, own: Tensor) -> Tensor:
    """[E26] eq. 5 over the rivals of each row: smallest margin, largest ‖b‖, lowest eigenvalue of W."""
    margin = margins.masked_fill(own, torch.inf).amin(1).clamp(min=0)
    norm = half_gradient_norms.masked_fill(own, 0.0).amax(1)
    concavity = (-lowest).masked_fill(own, 0.0).amax(1).clamp(min=0)
    return torch.where(margin > 0, margin / ((norm.square() + concavity * margin).sqrt() + norm), 0.0)


def _never_reached(curvature: Tensor, half_gradient: Tensor, margin: Tensor) -> bool:
    """Whether δᵀWδ + 2bᵀδ + m is positive everywhere."""
    values, vectors = torch.linalg.eigh(curvature)
    beta = vectors.mT @ half_gradient
    floor = _NOTHING * len(beta) * max(float(values.abs().max()), _TINY)
    flat = values <= floor
    if bool((values < -floor).any()) or bool((beta[flat].abs() > _NOTHING * (_TINY + half_gradient.norm())).any()):
        return False
    return bool(margin - (beta[~flat].square() / values[~flat]).sum() > 0)


def _distance(curvature: Tensor, half_gradient: Tensor, margin: Tensor) -> Tensor:
    """√max_t D(t) by bisection on D'(t) over the admissible interval, for a batch of problems."""
    values, vectors = torch.linalg.eigh(curvature)
    squares = (vectors.mT @ half_gradient.unsqueeze(-1)).squeeze(-1).square()
    lowest = values[:, 0]
    low, high = torch.zeros_like(lowest), torch.where(lowest < 0, -1 / lowest, 1.0)

    def slope(t: Tensor) -> Tensor:
        t = t.unsqueeze(-1)
        drop: Tensor = (squares * t * (2 + t * values) / (1 + t * values).square()).sum(-1)
        return margin - drop

    for _ in range(_WIDENINGS):
        growing = (lowest >= 0) & (slope(high) > 0)
        if not bool(growing.any()):
            break
        high = torch.where(growing, 4 * high, high)
    never = (lowest >= 0) & (slope(high) > 0)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        rising = slope(middle) > 0
        low, high = torch.where(rising, middle, low), torch.where(rising, high, middle)
    dual = low * margin - low.square() * (squares / (1 + low.unsqueeze(-1) * values)).sum(-1)
    distance: Tensor = torch.where(never, torch.inf, dual.clamp(min=0).sqrt())
    return distance
