"""Mixture: K Gaussians with priors as a torch module: fitting, density, sampling, scores.

What the classifier of "Certified Robustness from Approximate Gaussian Mixture Structures in Pretrained Latent Spaces"
(arXiv 2605.25352, [E26] below), section 4, equation 4, consists of.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Self

import torch
from torch import Tensor

from ellips.gaussians.covariance import covariances_by_range, precision_factor
from ellips.gaussians.cut import cut_to_rank, validate_low_rank
from ellips.gaussians.moments import Moments
from ellips.gaussians.parameters import MixtureParameters
from ellips.gaussians.sketch import SketchedMoments, collector
from ellips.gaussians.structures import class_ranges
from ellips.validation import at_least, validate_latents

_LOG_2PI = math.log(2 * math.pi)


class Mixture(MixtureParameters):
    """K Gaussians with priors; the class of the highest posterior wins.

    The score of class k at z is, with precision P_k = A_kᵀA_k ([E26] eq. 4),

        score_k(z) = −‖A_k (z − μ_k)‖² + 2 log det A_k + 2 log π_k .

    What is stored of it is said in :class:`MixtureParameters`.

    Args:
        num_classes: K, at least 2.
        dim: Width d of the latents.
        covariance_type: ``"full"``, ``"diagonal"``, or ``"low_rank"``: a common covariance from which each class
            differs in a few directions.
        rank: How many directions, from 0 (pooled) to d (as good as full); of ``"low_rank"`` alone.
        pooling: In [0, 1]: how far each class covariance is moved to the common one (1: tied covariances).
        shrinkage: In [0, 1]: how far it is then moved to a multiple of the identity (1: spherical covariances).

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> z, labels = torch.randn(100, 3), torch.arange(100) % 2
        >>> mixture = Mixture(num_classes=2, dim=3, shrinkage=0.1).fit(z, labels)
        >>> mixture(z).shape, mixture.log_prob(z).shape
        (torch.Size([100, 2]), torch.Size([100]))
    """

    # ------------------------------------------------------------------ making one

    @classmethod
    def from_parameters(cls, means: Tensor, covariances: Tensor, priors: Tensor) -> Self:
        """Build a fitted mixture from its parameters.

        Args:
            means: Shape ``(K, d)``.
            covariances: Shape ``(K, d, d)``, symmetric positive definite, or ``(K, d)`` for diagonal ones (variances).
            priors: Shape ``(K,)``, positive, summing to one.

        Raises:
            ValueError: If shapes disagree, a value is not finite, the priors are no distribution or a covariance is
                not positive definite; the message names the class.
        """
        means, covariances, priors = (torch.as_tensor(x).detach().double() for x in (means, covariances, priors))
        if means.ndim != 2:
            raise ValueError(f"Expected `means` to have shape (K, d) but got {tuple(means.shape)}.")
        classes, dim = means.shape
        diagonal = covariances.ndim == 2
        expected = (classes, dim) if diagonal else (classes, dim, dim)
        if tuple(covariances.shape) != expected:
            raise ValueError(
                f"Expected `covariances` to have shape ({classes}, {dim}, {dim}) or ({classes}, {dim}) to go with the "
                f"means but got {tuple(covariances.shape)}."
            )
        if not bool(torch.isfinite(means).all()):
            raise ValueError("Expected `means` to be finite but got NaN or infinite values.")
        mixture = cls(classes, dim, covariance_type="diagonal" if diagonal else "full").to(means.device)
        ranges = class_ranges(classes, covariances[0].numel())
        mixture._set_by_range(means, ((k, covariances[k]) for k in ranges), priors)
        return mixture

    @classmethod
    def from_low_rank(
        cls, means: Tensor, covariance: Tensor, directions: Tensor, widths: Tensor, priors: Tensor
    ) -> Self:
        """Build a fitted mixture of covariances Σ_k = L(I + Σ_j D_kj q_kj q_kjᵀ)Lᵀ, LLᵀ = Σ (METHOD's section 11).

        Args:
            means: Shape ``(K, d)``.
            covariance: The common Σ, shape ``(d, d)``, symmetric positive definite; L is its lower Cholesky factor.
            directions: q_kj, shape ``(K, r, d)``, orthonormal within each class.
            widths: D_kj > −1, shape ``(K, r)``.
            priors: Shape ``(K,)``, positive, summing to one.

        Raises:
            ValueError: If shapes disagree, a value is not finite, directions are not orthonormal, a width is not above
                −1, the priors are no distribution or the covariance is not positive definite.
        """
        tensors = (means, covariance, directions, widths, priors)
        means, covariance, directions, widths, priors = (torch.as_tensor(x).detach().double() for x in tensors)
        validate_low_rank(means, covariance, directions, widths)
        factor = precision_factor(covariance.unsqueeze(0))[0]
        mixture = cls(*means.shape, covariance_type="low_rank", rank=directions.shape[1]).to(means.device)
        mixture._set(means, [factor, directions, (1 + widths).rsqrt()], priors)
        return mixture

    def fit(self, z: Tensor, labels: Tensor) -> Self:
        """Fit the Gaussians to labelled latents.

        Args:
            z: Shape ``(N, d)``.
            labels: Shape ``(N,)``, integers in ``[0, K)``.

        Returns:
            Itself, fitted.

        Raises:
            ValueError: As :meth:`fit_moments`, and for latents or labels of the wrong kind.
        """
        collected = collector(self.num_classes, self.dim, self.covariance_type, self.rank, self.regularization)
        collected = collected.to(z.device)
        for _ in range(collected.passes):
            collected.update(z, labels)
            collected.end_pass()
        return self.fit_collected(collected.held())

    def fit_moments(self, count: Tensor, mean: Tensor, scatter: Tensor) -> Self:
        """Fit the Gaussians to per-class moments, with this mixture's regularisation.

        Priors are the class shares. See :func:`ellips.gaussians.covariance.class_covariances` for the covariances.

        Args:
            count: Shape ``(K,)``, samples per class.
            mean: Shape ``(K, d)``.
            scatter: Shape ``(K, d, d)`` (or ``(K, d)``, its diagonal): sums of centred outer products.

        Returns:
            Itself, fitted.

        Raises:
            ValueError: If a class has no samples or its covariance is singular; the message names the class and the
                parameter to raise.
        """
        return self.fit_collected(Moments(count, mean.double(), scatter.double()))

    def fit_collected(self, collected: Moments | SketchedMoments, added: Tensor | None = None) -> Self:
        """Fit the Gaussians to moments, or to a sketch of them, with this mixture's regularisation.

        Covariances of low rank are those of the full model cut to the ``rank`` directions of the whitened space in
        which they differ most from the common one; see :mod:`ellips.gaussians.cut`. Others are written into this
        mixture some classes at a time: beside it and the moments nothing of their size is held. If that fails, the
        mixture is no longer fitted.

        Args:
            collected: From :class:`ellips.gaussians.ClassMoments` or :class:`ellips.gaussians.ClassSketch`.
            added: A covariance that is added to that of every class; see :func:`ellips.gaussians.class_covariances`.

        Raises:
            ValueError: As :meth:`fit_moments`, or if a sketch is to give other than covariances of low rank, or one of
                low rank is to have something added.
        """
        if added is not None and self.rank is not None:
            raise ValueError("Expected full or diagonal covariances to add another to but got some of low rank.")
        priors = collected.count.double() / collected.count.sum()
        if self.rank is not None:
            self._set(collected.mean, self._cut_to_rank(collected, self.rank), priors)
        elif isinstance(collected, Moments):
            parts = covariances_by_range(collected, self.covariance_type, self.regularization, added)
            self._set_by_range(collected.mean, parts, priors)
        else:
            raise ValueError(f"Expected moments for covariance_type={self.covariance_type!r} but got a sketch.")
        return self

    @torch.no_grad()
    def _cut_to_rank(self, collected: Moments | SketchedMoments, rank: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return what is stored of a mixture of low rank; its directions are in their place already."""
        self._refuse_unfit(collected.mean)
        self._forget()  # before anything is made: what is remembered of the old mixture takes memory, too
        version = self.directions._version
        try:
            return cut_to_rank(collected, rank, self.regularization, self.directions)
        except BaseException:
            if self.directions._version != version:  # some are another fit's
                self.fitted.fill_(False)
            raise

    @torch.no_grad()
    def _set_by_range(self, means: Tensor, parts: Iterable[tuple[slice, Tensor]], priors: Tensor) -> None:
        """Store a mixture whose covariances come by ranges of classes."""
        self._refuse_unfit(means)
        self._forget()  # before anything is made: what is remembered of the old mixture takes memory, too
        for k, covariances in parts:
            factors = precision_factor(covariances, k.start)
            self.fitted.fill_(False)
            self.precision_factors[k] = factors
        self._set(means, [self.precision_factors], priors)

    # ------------------------------------------------------------------ using it

    def forward(self, z: Tensor) -> Tensor:
        """Return the scores of [E26] eq. 4.

        Args:
            z: Latents, shape ``(N, d)``.

        Returns:
            Scores, shape ``(N, K)``, float64. They are twice the log-posterior up to a term that all classes share.

        Raises:
            ValueError: If ``z`` has another width or is not finite.
            NotFittedError: If no mixture was fitted.
        """
        z = self.validate(z)
        with torch.autocast(z.device.type, enabled=False):
            return self.offsets - self.structure.squares(z, self.means)

    def pull(self, z: Tensor, classes: Tensor) -> Tensor:
        """Return P_k(z − μ_k), minus half the gradient of a class's score, differentiably.

        The one place where it is written, but for the solvers' own arrangement of it
        (:mod:`ellips.certificates.geometry`) and the verifier, which must not share it.

        Args:
            z: Latents, shape ``(N, d)``, float64.
            classes: Shape ``(N,)``, the class k of each point.

        Returns:
            Shape ``(N, d)``.
        """
        return self.structure.pull(z - self.means[classes], classes)

    def half_gradient(self, z: Tensor, prediction: Tensor, rival: Tensor) -> Tensor:
        """Return b, half the gradient of the margin score_prediction − score_rival at z, differentiably.

        Args:
            z: Latents, shape ``(N, d)``, float64.
            prediction: Shape ``(N,)``.
            rival: Shape ``(N,)``.

        Returns:
            P_rival(z − μ_rival) − P_prediction(z − μ_prediction), shape ``(N, d)``.
        """
        return self.pull(z, rival) - self.pull(z, prediction)

    def curvature(self, prediction: Tensor, rival: Tensor) -> Tensor:
        """Return W = P_rival − P_prediction, half the Hessian of the margin, shape ``(N, d, d)``."""
        structure = self.structure
        return structure.precisions(rival) - structure.precisions(prediction)

    def predict(self, z: Tensor) -> Tensor:
        """Return the class of the highest score, shape ``(N,)``; of equal scores the lowest class index."""
        scores: Tensor = self(z)
        return scores.argmax(1)

    def class_log_prob(self, z: Tensor) -> Tensor:
        """Return log N(z; μ_k, Σ_k), shape ``(N, K)``."""
        scores: Tensor = self(z)
        return 0.5 * (scores - 2 * self.log_priors.log_softmax(0) - self.dim * _LOG_2PI)

    def log_prob(self, z: Tensor) -> Tensor:
        """Return the log-density of the mixture, log Σ_k π_k N(z; μ_k, Σ_k), shape ``(N,)``."""
        scores: Tensor = self(z)
        return (0.5 * (scores - self.dim * _LOG_2PI)).logsumexp(1)

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draw latents and their classes from the mixture; nothing is differentiated through.

        Args:
            n: How many.
            generator: Source of randomness, on the mixture's device.

        Returns:
            Latents, shape ``(n, d)``, float64, and class indices, shape ``(n,)``.

        Raises:
            NotFittedError: If no mixture was fitted.
            ValueError: If ``n`` is below 1.
        """
        at_least(1, n=n)
        self._require_fitted()
        device = self.means.device
        labels = torch.multinomial(self.priors, n, replacement=True, generator=generator)
        noise = torch.randn(n, self.dim, generator=generator, dtype=torch.float64, device=device)
        return self.means[labels] + self.structure.color(noise, labels), labels

    def validate(self, z: Tensor) -> Tensor:
        """Return latents as this mixture computes with them: float64, on its device's kind, refused if unfit.

        Raises:
            ValueError: If ``z`` has another width or is not finite.
            NotFittedError: If no mixture was fitted.
        """
        self._require_fitted()
        validate_latents(z, self.dim)
        return z.double()
