"""The three certificates of [E26] section 4 and beyond: Theorem 4.1, its pairwise form, and the exact radius."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ellips.certificates.certificate import METHODS, Certificate, Method, round_down
from ellips.certificates.closed_form import closed_form_multiplier, closed_form_radius
from ellips.certificates.geometries import geometry_of
from ellips.certificates.geometry import Geometry
from ellips.certificates.gradients import differentiable_radius
from ellips.certificates.krylov import MAX_DIMENSION, KrylovProblems, solve_krylov
from ellips.certificates.rounding import UNDERFLOW, gamma
from ellips.certificates.screen import Screen, screen
from ellips.certificates.secular import solve_secular
from ellips.gaussians import Mixture
from ellips.precision import full_precision
from ellips.validation import at_least, one_of

WEYL = "weyl"  # the diagnostic of closed forms that bound λ_min(P_i − P_j) by Weyl's inequality
_CHUNK_BYTES = 2**29
_KRYLOV_ELEMENTS = 2**25
_LARGEST = torch.finfo(torch.float64).max  # of squared radii: a larger one is finite, too
# Units in the last place taken off a radius for the few operations after the bounded ones; graded, so that rounding
# never turns the order of the three methods round.
_SAFETY: dict[Method, int] = {"exact": 128, "pairwise": 192, "theorem": 256}


def certify(mixture: Mixture, z: Tensor, method: Method = "exact", *, chunk_size: int | None = None) -> Certificate:
    """Certify predictions; see :meth:`ellips.classifier.Ellips.certify` for arguments, result and errors.

    The radius is a lower bound in floating point, too: errors of scores, half gradients and spectra are bounded and
    subtracted before anything is solved (:mod:`ellips.certificates.rounding`), and what is returned is the square root
    of a *dual* value.

    ``theorem`` is [E26] eq. 5. ``pairwise`` applies the same form to each rival alone. Both need λ_min(P_i − P_j):
    exact up to rounding where all pairs can be decomposed, else Weyl's lower bound, which can only shrink the radius;
    then they are not the paper's radii but smaller ones, and the diagnostic ``weyl`` is 1 (see :func:`by_weyl`).
    ``exact`` is the distance to the decision boundary itself, whatever the number of classes.

    ``theorem ≤ pairwise ≤ exact`` holds for every point.
    """
    one_of(METHODS, method=method)
    at_least(1, chunk_size=chunk_size)
    z = mixture.validate(z)
    with full_precision(), torch.autocast(z.device.type, enabled=False):
        geometry = geometry_of(mixture)
        _require_range(geometry, z)
        # Not in inference mode: what is remembered of the mixture must serve training, too.
        with torch.inference_mode(False), torch.no_grad():
            rows = chunk_size or default_chunk_size(geometry)
            certificate = Certificate.cat([_certify(geometry, part, method) for part in z.detach().split(rows)])
        trainable = any(tensor.requires_grad for tensor in (z, *mixture.stored))
        if method == "theorem" or not (trainable and torch.is_grad_enabled()):
            return certificate
        return replace(certificate, radius=differentiable_radius(mixture, geometry, z, certificate))


def _require_range(geometry: Geometry, z: Tensor) -> None:
    """Refuse what float64 cannot square: the bounds on rounding know nothing of over- and underflow.

    Raises:
        ValueError: If standard deviations are beyond 1e±60, or gradients of scores could be.
    """
    if not len(z):
        return
    sizes = geometry.factor_norms
    low, high = float(sizes.min()), float(sizes.max())
    reach = geometry.dim**0.5 * float(z.detach().abs().max()) + float(
        geometry.mean_norms.max() + geometry.center.norm()
    )
    if not (low >= 1e-60 and high <= 1e60 and high**2 * reach <= 1e150):  # NaN fails, too
        raise ValueError(
            "Expected standard deviations between 1e-60 and 1e60, and latents not beyond 1e150 times the smallest "
            f"variance, but got precision factors of norms {low:.3g} to {high:.3g} and latents up to {reach:.3g}; "
            "divide the latents by their scale before the Gaussians are fitted (`mixture.scale`)."
        )


def default_chunk_size(geometry: Geometry) -> int:
    """Return how many points keep the working memory of :func:`certify` below about 1 GB."""
    per_point = 8 * (12 * geometry.num_classes + 48 * geometry.dim)
    return max(1, min(8192, _CHUNK_BYTES // per_point))


def _certify(geometry: Geometry, z: Tensor, method: Method) -> Certificate:
    if method == "exact":
        return _exact(geometry, z)
    seen = screen(geometry, z)
    concavity = geometry.concavity[seen.prediction]
    # At least what the exact solvers make of ‖b‖, so that they never come out below a closed form.
    classes = torch.arange(geometry.num_classes, device=z.device)
    slack = geometry.pairs.coefficient_slack if geometry.affordable else geometry.half_gradient_error
    slip = slack(seen.point_norms.unsqueeze(1), seen.prediction.unsqueeze(1), classes)
    norms = (seen.half_gradient_norms + 2 * slip) * (1 + gamma(geometry.dim + 16))
    seen = seen._replace(safe_margins=seen.safe_margins * (1 - gamma(16)))
    bounds = (seen.safe_margins, norms, concavity)
    if method == "pairwise":
        rival = nearest(closed_form_radius(*bounds), seen.margins)
        margin, norm, concavity = (x.gather(1, rival.unsqueeze(1)).squeeze(1) for x in bounds)
    else:
        own = torch.nn.functional.one_hot(seen.prediction, geometry.num_classes).bool()
        rival = seen.margins.argmin(1)
        margin = bounds[0].amin(1)
        norm = bounds[1].masked_fill(own, 0).amax(1)
        concavity = concavity.amax(1)
    radius = closed_form_radius(margin, norm, concavity)
    multiplier = closed_form_multiplier(radius, norm, concavity)
    noted = {} if geometry.affordable else {WEYL: torch.ones_like(radius)}
    return replace(_certificate(seen, radius, rival, multiplier, method), diagnostics=noted)


def by_weyl(mixture: Mixture, method: str) -> bool:
    """Whether radii by this method are smaller than the paper's, for want of all differences of precisions.

    The paper's closed forms take the lowest eigenvalue of each P_i − P_j. For 1,000 classes in 1,024 dimensions those
    are half a million decompositions, days of work; Weyl's inequality bounds them by the spectra of the P_i alone.
    """
    return method in ("theorem", "pairwise") and not geometry_of(mixture).affordable


def nearest(radius: Tensor, margins: Tensor) -> Tensor:
    """Return the rival of the smallest radius; of equal ones (ties, infinite radii) that of the smallest margin."""
    tied = radius == radius.amin(1, keepdim=True)
    return margins.masked_fill(~tied, torch.inf).argmin(1)


def _certificate(seen: Screen, radius: Tensor, rival: Tensor, multiplier: Tensor, method: Method) -> Certificate:
    margin = seen.margins.gather(1, rival.unsqueeze(1)).squeeze(1)
    return Certificate(seen.prediction, round_down(radius, _SAFETY[method]), rival, margin, multiplier, method)


def _exact(geometry: Geometry, z: Tensor) -> Certificate:
    """Solve the rival that looks nearest, then all whose lower bound does not rule them out."""
    seen = screen(geometry, z, screening_dtype(geometry, z))
    lower = closed_form_radius(seen.safe_margins, seen.half_gradient_norms, geometry.concavity[seen.prediction])
    rows = torch.arange(len(z), device=z.device)
    likely = nearest(lower, seen.margins)
    squared = lower.square().clamp_(max=_LARGEST)
    multiplier = torch.zeros_like(lower)
    solver = (DecomposedSolver if geometry.affordable else IterativeSolver)(geometry, z, seen)

    def solve(points: Tensor, rivals: Tensor, threshold: Tensor) -> None:
        for part in range(0, len(points), solver.batch):
            some = slice(part, part + solver.batch)
            t, dual = solver.solve(points[some], rivals[some], threshold[some])
            squared[points[some], rivals[some]] = torch.where(t.isinf(), dual, dual.clamp(max=_LARGEST))
            multiplier[points[some], rivals[some]] = t

    solve(rows, likely, torch.full_like(seen.point_norms, torch.inf))
    best = squared[rows, likely]
    open_ = squared < best.unsqueeze(1)
    open_[rows, likely] = False
    points, rivals = open_.nonzero(as_tuple=True)
    solve(points, rivals, best[points])
    squared[rows, seen.prediction] = torch.inf
    rival = nearest(squared, seen.margins)
    radius = squared[rows, rival].sqrt()
    return _certificate(seen, radius, rival, multiplier[rows, rival], "exact")


def screening_dtype(geometry: Geometry, z: Tensor) -> torch.dtype:
    """Return float32 where precisions and gradients are well within its range, else float64."""
    powers = geometry.factor_norms.square()
    reach = (z - geometry.center).norm(dim=1).max() + geometry.mean_norms.max() if len(z) else powers.max()
    low, high = float(powers.min()), float(powers.max())
    least, most = geometry.narrow
    fits = low >= least and high <= most and high * float(reach) <= most and low * float(reach) >= least
    return torch.float32 if fits else torch.float64


class DecomposedSolver:
    """Solves problems through decomposed differences of precisions."""

    batch = 2**12  # problems at a time: a few megabytes

    def __init__(self, geometry: Geometry, z: Tensor, seen: Screen) -> None:
        self._geometry, self._seen, self._x = geometry, seen, z - geometry.center

    def solve(self, points: Tensor, rivals: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
        """Return multipliers and dual values of some points' problems with some rivals."""
        margin, prediction = self._seen.safe_margins[points, rivals], self._seen.prediction[points]
        multiplier, dual = torch.empty_like(margin), torch.empty_like(margin)
        for rows in self._geometry.pairs.portions(prediction, rivals):
            columns = (points[rows], margin[rows], prediction[rows], rivals[rows])
            problems, order = self._geometry.pairs.problems(self._x, *columns)
            order = rows[order]
            multiplier[order], dual[order] = solve_secular(problems, threshold[order])
        return multiplier, dual


class IterativeSolver:
    """Solves problems by the Lanczos process, and through decompositions where that does not settle them."""

    def __init__(self, geometry: Geometry, z: Tensor, seen: Screen) -> None:
        # Problems at a time: enough of them share a class, and their Krylov spaces take 128 MB at most.
        self.batch = max(256, min(2**14, _KRYLOV_ELEMENTS // (MAX_DIMENSION * geometry.dim)))
        self._geometry, self._seen, self._x = geometry, seen, z - geometry.center
        self._decomposed = DecomposedSolver(geometry, z, seen)
        self._own = self._pull(torch.arange(len(z), device=z.device), seen.prediction)

    def _pull(self, points: Tensor, classes: Tensor) -> Tensor:
        """P_k(z − μ_k) for some points and classes, up to what all classes share."""
        return self._geometry.pull(self._x[points], classes)

    def solve(self, points: Tensor, rivals: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
        """Return multipliers and dual values of some points' problems with some rivals."""
        geometry, seen = self._geometry, self._seen
        prediction = seen.prediction[points]
        error = geometry.half_gradient_error(seen.point_norms[points], prediction, rivals) + UNDERFLOW[torch.float64]
        problems = KrylovProblems(
            seen.safe_margins[points, rivals],
            self._pull(points, rivals) - self._own[points],
            error,
            prediction,
            rivals,
            geometry.concavity[prediction, rivals],
        )
        multiplier, dual, settled = solve_krylov(geometry, problems, threshold)
        rest = (~settled).nonzero().squeeze(1)
        if len(rest):
            t, better = self._decomposed.solve(points[rest], rivals[rest], threshold[rest])
            gain = better > dual[rest]
            multiplier[rest] = torch.where(gain, t, multiplier[rest])
            dual[rest] = torch.where(gain, better, dual[rest])
        norm = problems.half_gradient.norm(dim=1) + error
        closed = closed_form_radius(problems.margin, norm, problems.concavity)
        at = closed_form_multiplier(closed, norm, problems.concavity)
        gain = closed.square() > dual
        return torch.where(gain, at, multiplier), torch.where(gain, closed.square(), dual)
