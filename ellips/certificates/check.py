"""Whether certificates are proven: by the verified kernel, whoever made them and however.

What has to be trusted is :mod:`ellips.certificates.verify`, :mod:`ellips.certificates.bounds` and
:mod:`ellips.certificates.ties`, and for covariances of low rank :mod:`ellips.certificates.verify_low_rank`. The solvers
serve to look for multipliers of rivals that a certificate does not name; a wrong one proves nothing.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ellips.certificates.bounds import FarRivals
from ellips.certificates.certificate import METHODS, Certificate
from ellips.certificates.geometries import geometry_of
from ellips.certificates.multipliers import find_multipliers
from ellips.certificates.ties import StoredClass, margin_sign
from ellips.certificates.verify_low_rank import LowRankFarRivals, LowRankKernel, kernel_of
from ellips.gaussians import Mixture
from ellips.gaussians.fingerprint import fingerprint
from ellips.precision import require_subnormals

_SCORED_ELEMENTS, _PROVEN_ELEMENTS = 2**22, 2**18  # at a time; what is factorised stays in the processor's caches
_BALANCES = (1.0, 2.0**-5, 2.0**-10, 2.0**-15)


def check(
    mixture: Mixture,
    z: Tensor,
    certificate: Certificate,
    *,
    rivals: Literal["all", "named"] = "all",
    prover: Prover | None = None,
) -> Tensor:
    """Prove certificates of the classifier as it is stored, in floating point with every rounding bounded.

    True is a proof of the claim: that no point within the radius of z has another class of higher or equal score, and
    that no class has a higher exact score at z itself, which is all that is claimed by a radius of 0. False is not
    proven. There is no tolerance, and no opinion on radii that could be larger, on margins, or on which rival is named,
    but the named one must be proven by the certificate's own multiplier.

    In input space the latent radius is what is proven, together with the error that was taken off it, if one is
    recorded (:attr:`Certificate.latent_error`), and that radius and ball follow from it and L; an abstention
    (prediction −1, radius 0) of a ``probabilistic`` certificate claims nothing and passes. See :func:`checked_scope`
    for what is not looked at.

    Args:
        mixture: The fitted classifier.
        z: Latents the certificates are for, shape ``(N, d)``; of smoothed encoders, the sampled means.
        certificate: What to check, of the same length.
        rivals: ``"named"`` proves the radius against the named rival alone.
        prover: Of this mixture as it is now, where many batches share one; None: made here.

    Returns:
        Shape ``(N,)``, bool.

    Raises:
        ValueError: If lengths disagree, method or ``rivals`` are unknown, classes are not int64 or radii no floating
            point, the prover is another mixture's, or as :meth:`Mixture.validate`.
        NotFittedError: If no mixture was fitted.
        RuntimeError: If this process flushes subnormal numbers to zero.
    """
    z = mixture.validate(z)
    if len(z) != len(certificate):
        raise ValueError(f"Expected {len(z)} certificates, one per latent, but got {len(certificate)}.")
    require_method(certificate)
    if rivals not in ("all", "named"):
        raise ValueError(f"Expected `rivals` to be 'all' or 'named' but got {rivals!r}.")
    return prover_of(mixture, prover).check(z, certificate, rivals == "all").to(z.device)


def prover_of(mixture: Mixture, prover: Prover | None) -> Prover:
    """Return what proves claims of a mixture: what is given, if it is of this mixture as it is now, or a new one.

    Raises:
        ValueError: If it is of another mixture, or this one was changed since.
        RuntimeError: If a thread of this process flushes subnormal numbers to zero; the kernel asks one alone.
    """
    require_subnormals()
    if prover is not None and not prover.is_of(mixture):
        raise ValueError(
            "Expected the prover to be of this mixture as it is now but it is of another one, or of what this one was "
            "before it changed; make a new one: Prover(mixture)."
        )
    return prover or Prover(mixture)


def require_method(certificate: Certificate) -> None:
    """Refuse certificates that have no latent part.

    Raises:
        ValueError: If the method is not one for latents.
    """
    if certificate.method not in METHODS:
        raise ValueError(
            f"Expected a certificate by one of {METHODS} but got {certificate.method!r}, which has no latent part that "
            "could be checked."
        )


def checked_scope(certificate: Certificate) -> str:
    """Say in one sentence how far :func:`check` goes for this kind of certificate."""
    if certificate.method not in METHODS:
        return f"Nothing: a certificate by {certificate.method!r} has no latent part."
    if certificate.space == "latent":
        return "The whole claim: the prediction, and the radius against every rival."
    error = "" if certificate.latent_error is None else ", with the error that was taken off it"
    rest = {
        "exact": "",
        "deterministic": " and that the error contains the rounding of these latents",
        "probabilistic": (
            " and that these latents are the sampled means, within the error of the true ones: drawing cannot be "
            "proven afterwards, only repeated, from the seed that the source names"
        ),
        "estimated": ", which is an estimate",
    }[certificate.soundness]
    return (
        f"The latent radius{error}, against every rival, and that the input radius follows from it, the Lipschitz "
        f"constant and the ball; not that the constant bounds the encoder{rest}."
    )


def claimed_radius(certificate: Certificate) -> Tensor:
    """Return the radius that has to be proven of the latents, ``(N,)``; NaN where there is none that could be.

    In input space the latent radius and the error, rounded up; of nothing nothing is left, whatever the error.
    """
    if certificate.space == "latent":
        return certificate.radius
    radius, error = certificate.latent_radius, certificate.latent_error
    if radius is None:
        return torch.full_like(certificate.radius, torch.nan)
    if error is None:
        return radius
    radius, error = radius.double(), error.double()
    whole = torch.nextafter(radius + error, torch.full_like(radius, torch.inf))
    whole = torch.where((radius == 0) | (error == 0), radius, whole)
    return torch.where(error >= 0, whole, torch.nan)


class Prover:
    """The kernel with what it needs to prove claims against every rival.

    Args:
        mixture: The fitted classifier, as it is now.
    """

    def __init__(self, mixture: Mixture) -> None:
        self._mixture, self._kernel, self._stored_bits = mixture, kernel_of(mixture), _bits(mixture)
        stored = (self._kernel.means, self._kernel.factors, self._kernel.log_priors)
        # Class by class: the question takes as much memory as what it is asked of.
        self._usable = all(bool(part.isfinite().all()) for x in stored for part in x.split(1))
        self._classes: dict[int, StoredClass] = {}
        self._far: FarRivals | None = None

    def is_of(self, mixture: Mixture) -> bool:
        """Whether a mixture holds the numbers that claims are proven of here."""
        return _bits(mixture) == self._stored_bits

    def check(self, z: Tensor, certificate: Certificate, every: bool = True) -> Tensor:
        """Return which certificates are proven; see :func:`check`. The result is on the processor."""
        held = certificate.detach().cpu()
        error = held.latent_error
        _require_types(**held.tensors(), **({} if error is None else {"latent_error": error}))
        passed = self.prove(z, held.prediction, held.rival, held.multiplier, claimed_radius(held), every)
        if held.space == "input":
            passed &= _carried(held)
            if held.soundness == "probabilistic" and held.latent_radius is not None:
                passed |= (held.prediction == -1) & (held.radius == 0) & (held.latent_radius == 0)
        return passed

    @torch.no_grad()
    def prove(
        self, z: Tensor, prediction: Tensor, rival: Tensor, multiplier: Tensor, radius: Tensor, every: bool = True
    ) -> Tensor:
        """Prove latent claims; see :func:`check`. All shapes ``(N,)`` but that of z; the result is on the processor."""
        _require_types(prediction=prediction, rival=rival, multiplier=multiplier, radius=radius)
        if not self._usable or not len(z):
            return torch.zeros(len(z), dtype=torch.bool)
        rows = max(1, _SCORED_ELEMENTS // (self._kernel.classes * self._kernel.dim))
        columns = (z.detach().to("cpu", torch.float64), prediction, rival, multiplier.double(), radius.double())
        parts = zip(*(column.split(rows) for column in columns), strict=True)
        far = self._far_rivals() if every else None
        return torch.cat([self._prove(part, far) for part in parts])

    def _far_rivals(self) -> FarRivals:
        if self._far is None:
            guess, kernel = geometry_of(self._mixture).bends, self._kernel
            if isinstance(kernel, LowRankKernel):
                self._far = LowRankFarRivals(kernel, guess)
            else:
                self._far = FarRivals(kernel, guess)
        return self._far

    def _prove(self, claims: tuple[Tensor, ...], far: FarRivals | None) -> Tensor:
        """Prove some claims, against the named rival and, if there is a way to find the near ones, all others."""
        (z, named, rival, t, radius), kernel = claims, self._kernel
        rows = torch.arange(len(z))
        prediction, other = (k.clamp(0, kernel.classes - 1) for k in (named, rival))
        passed = (named == prediction) & (radius >= 0)
        y, scores, errors = kernel.whiten(z)
        low, high = kernel.margins(scores, errors, prediction)
        low[rows, prediction] = high[rows, prediction] = torch.inf
        # A radius of 0 claims the prediction, any other one is proven rival by rival.
        still = (radius == 0) & passed
        passed[still] = self._highest(z[still], prediction[still], low[still], high[still])
        rows = rows[passed & ~still]
        passed[rows] = self.unreached(z[rows], named[rows], rival[rows], low[rows, other[rows]], t[rows], radius[rows])
        rows = rows[passed[rows]]
        if far is not None and len(rows):
            near = ~far.prove(z[rows], y[:, rows], prediction[rows], low[rows], radius[rows])
            near[torch.arange(len(rows)), prediction[rows]] = near[torch.arange(len(rows)), rival[rows]] = False
            which, others = near.nonzero(as_tuple=True)
            if len(which):
                some = rows[which]
                found = find_multipliers(self._mixture, z[rows], prediction[rows], which, others, radius[some])
                held = self.unreached(z[some], named[some], others, low[some, others], found, radius[some])
                passed[some[~held]] = False
        return passed

    @torch.no_grad()
    def winners(self, z: Tensor) -> Tensor:
        """Return the classes of the highest exact scores, of equal ones the lowest, shape ``(N,)``.

        −1 where that cannot be decided. The result is on the processor.
        """
        if not self._usable or not len(z):
            return torch.full((len(z),), -1)
        rows = max(1, _SCORED_ELEMENTS // (self._kernel.classes * self._kernel.dim))
        return torch.cat([self._winners(part) for part in z.detach().to("cpu", torch.float64).split(rows)])

    def _winners(self, z: Tensor) -> Tensor:
        _, scores, errors = self._kernel.whiten(z)
        winner = scores.nan_to_num(-torch.inf).argmax(1)
        low, _ = self._kernel.margins(scores, errors, winner)
        others = ~(low > 0)
        others[torch.arange(len(z)), winner] = False
        for row, k in others.nonzero().tolist():
            first = int(winner[row])
            if first >= 0:
                sign = margin_sign(z[row].tolist(), self._stored(first), self._stored(k))
                winner[row] = -1 if sign is None else k if (sign, k) < (0, first) else first
        return winner

    def named_margins(self, z: Tensor, prediction: Tensor, rival: Tensor) -> Tensor:
        """Return lower bounds on the margins of predictions over rivals, shape ``(N,)``."""
        _, scores, errors = self._kernel.whiten(z)
        return self._kernel.margins(scores, errors, prediction)[0].gather(1, rival.unsqueeze(1)).squeeze(1)

    def unreached(self, *columns: Tensor) -> Tensor:
        """Prove what :meth:`Kernel.unreached` can, some problems at a time; what is left is tried in other balances.

        Args:
            *columns: z, prediction, rival, margin, multiplier and radius of each problem.
        """
        batch = max(8, _PROVEN_ELEMENTS // (self._kernel.dim + 1) ** (1 if self._kernel.diagonal else 2))
        found = torch.zeros(len(columns[0]), dtype=torch.bool)
        for self._kernel.balance in _BALANCES:
            left = (~found).nonzero().squeeze(1)
            for rows in left.split(batch) if len(left) else ():
                z, p, r, *rest = (column[rows] for column in columns)
                found[rows] = self._kernel.unreached(z, (p, r), *rest)
        return found

    def _highest(self, z: Tensor, prediction: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """Prove that no exact score is above the prediction's; what rounding leaves open is decided exactly."""
        highest = ~(high < 0).any(1)
        for row, k in (~(low >= 0) & highest.unsqueeze(1)).nonzero().tolist():
            if bool(highest[row]):
                sign = margin_sign(z[row].tolist(), self._stored(int(prediction[row])), self._stored(k))
                highest[row] = sign is not None and sign >= 0
        return highest

    def _stored(self, k: int) -> StoredClass:
        if k not in self._classes:
            kernel = self._kernel
            mean, log_prior = kernel.means[k].tolist(), float(kernel.log_priors[k])
            rest = (
                (kernel.directions[k].tolist(), kernel.scales[k].tolist()) if isinstance(kernel, LowRankKernel) else ()
            )
            factor = kernel.factors[0 if isinstance(kernel, LowRankKernel) else k].tolist()
            self._classes[k] = StoredClass(mean, factor, log_prior, *rest)
        return self._classes[k]


def _bits(mixture: Mixture) -> tuple[object, ...]:
    """Return what tells a mixture's stored numbers from others."""
    tensors = mixture.stored
    return (mixture.covariance_type, *(tensor.shape for tensor in tensors), *fingerprint(tensors))


def _require_types(**tensors: Tensor) -> None:
    """Refuse classes that torch does not index with (bytes are masks to it), and numbers that are no floats."""
    for name, value in tensors.items():
        if name in ("prediction", "rival"):
            if value.dtype != torch.int64:
                raise ValueError(f"Expected `{name}` to be int64 but got {value.dtype}; convert it with `.long()`.")
        elif not value.is_floating_point():
            raise ValueError(
                f"Expected `{name}` to be floating point but got {value.dtype}; convert it by `.double()`."
            )


def _carried(certificate: Certificate) -> Tensor:
    """Whether radius · L ≤ latent radius, rounded up, and radius ≤ ball; where L = 0 the latent never moves."""
    constant, ball, radius = certificate.lipschitz, certificate.ball_radius, certificate.radius
    latent = certificate.latent_radius
    if latent is None or constant is None or ball is None:
        return torch.zeros_like(certificate.prediction, dtype=torch.bool)
    infinity = torch.tensor(torch.inf, dtype=torch.float64)
    product = torch.nextafter(radius.double() * constant.double(), infinity)
    within = (product <= latent) | ((constant == 0) & (latent > 0)) | (radius == 0)
    return within & (constant >= 0) & (radius >= 0) & (radius <= ball)
