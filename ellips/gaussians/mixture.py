"""Mixture: K Gaussians with priors as a torch module: fitting, density, sampling, scores.

What the classifier of "Certified Robustness from Approximate Gaussian Mixture Structures in Pretrained Latent Spaces"
(arXiv 2605.25352, [E26] below), section 4, equation 4, consists of.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor

from ellips.gaussians.covariance import class_covariances, precision_factor
from ellips.gaussians.moments import ClassMoments, Moments
from ellips.gaussians.parameters import MixtureParameters, gram
from ellips.validation import validate_latents

_LOG_2PI = math.log(2 * math.pi)
# Latents are whitened in tiles of some points for some classes; larger ones leave the processor's caches.
TILE_ROWS = 256
_TILE_ELEMENTS = 2**18


def square_norm(whitened: Tensor) -> Tensor:
    """Return ‖y‖² over the last dimension; y is overwritten where no gradient needs it."""
    squares = whitened.square() if whitened.requires_grad else whitened.square_()
    return squares.sum(-1)


class Mixture(MixtureParameters):
    """K Gaussians with priors; the class of the highest posterior wins.

    The score of class k at z is, with precision P_k = A_kᵀA_k ([E26] eq. 4),

        score_k(z) = −‖A_k (z − μ_k)‖² + 2 log det A_k + 2 log π_k .

    What is stored of it is said in :class:`MixtureParameters`.

    Args:
        num_classes: K, at least 2.
        dim: Width d of the latents.
        covariance_type: ``"full"`` or ``"diagonal"``.
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
        mixture._set(means, precision_factor(covariances), priors)
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
        moments = ClassMoments(self.num_classes, self.dim, covariance_type=self.covariance_type).to(z.device)
        moments.update(z, labels)
        return self.fit_moments(*moments.compute())

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
        moments = Moments(count, mean.double(), scatter.double())
        covariances = class_covariances(moments, self.covariance_type, self.regularization)
        self._set(mean.double(), precision_factor(covariances), count.double() / count.sum())
        return self

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
        whiten, offsets, tiles = self.whitening(), self.offsets, self.tiles()
        with torch.autocast(z.device.type, enabled=False):
            parts = [
                torch.cat([offsets[k] - square_norm(whiten(rows, k)) for k in tiles], dim=1)
                for rows in z.split(TILE_ROWS)
            ]
        return torch.cat(parts)

    def tiles(self) -> list[slice]:
        """Return ranges of classes such that whitening ``TILE_ROWS`` points for one stays in the processor's caches."""
        classes = max(1, _TILE_ELEMENTS // (TILE_ROWS * self.dim))
        return [slice(k, min(k + classes, self.num_classes)) for k in range(0, self.num_classes, classes)]

    def whitening(self) -> Callable[[Tensor, slice], Tensor]:
        """Return the map from z, shape ``(N, d)``, and a range of k classes to A(z − μ), shape ``(N, k, d)``.

        Latents are centred on the mean of the means first: data far from the origin would otherwise cost digits.
        """
        factors, center, dim = self.factors, self.means.mean(0), self.dim
        offset = self.means - center
        if factors.ndim == 2:
            scaled = factors * offset
            return lambda z, k: (z - center).unsqueeze(1) * factors[k] - scaled[k]
        stacked = factors.reshape(-1, dim).mT
        shifted = (factors @ offset.unsqueeze(-1)).reshape(1, -1)

        def whiten(z: Tensor, k: slice) -> Tensor:
            columns = slice(k.start * dim, k.stop * dim)
            return torch.addmm(shifted[:, columns], z - center, stacked[:, columns], beta=-1).view(
                len(z), k.stop - k.start, dim
            )

        return whiten

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
        away, factors = z - self.means[classes], self.factors
        if factors.ndim == 2:
            return factors[classes].square() * away
        # Grouped by class, so that each factor is read once and none is copied.
        order = classes.argsort()
        found, counts = torch.unique_consecutive(classes[order], return_counts=True)
        parts = away[order].split(counts.tolist())
        pulls = [(rows @ factors[k].mT) @ factors[k] for k, rows in zip(found.tolist(), parts, strict=True)]
        pull: Tensor = torch.cat([*pulls, away[:0]])[order.argsort()]
        return pull

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
        factors = self.factors
        return gram(factors[rival]) - gram(factors[prediction])

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
        """
        self._require_fitted()
        device = self.means.device
        labels = torch.multinomial(self.priors, n, replacement=True, generator=generator)
        noise = torch.randn(n, self.dim, generator=generator, dtype=torch.float64, device=device)
        z, factors = torch.empty_like(noise), self.factors
        for k in labels.unique().tolist():
            rows = (labels == k).nonzero().squeeze(1)
            if factors.ndim == 2:
                z[rows] = self.means[k] + noise[rows] / factors[k]
            else:
                z[rows] = self.means[k] + torch.linalg.solve_triangular(factors[k], noise[rows].mT, upper=False).mT
        return z, labels

    def validate(self, z: Tensor) -> Tensor:
        """Return latents as this mixture computes with them: float64, on its device's kind, refused if unfit.

        Raises:
            ValueError: If ``z`` has another width or is not finite.
            NotFittedError: If no mixture was fitted.
        """
        self._require_fitted()
        validate_latents(z, self.dim)
        return z.double()
