"""Ellips: the Gaussian mixture as a classifier with certificates."""

from __future__ import annotations

from torch import Tensor

from ellips.certificates import Certificate, Method, certify
from ellips.gaussians import Mixture


class Ellips(Mixture):
    """Quadratic discriminant analysis with certificates: K Gaussians with priors, the highest posterior wins.

    The classifier of "Certified Robustness from Approximate Gaussian Mixture Structures in Pretrained Latent Spaces"
    (arXiv 2605.25352, [E26]), section 4, equation 4. What it computes, and its arguments, are those of
    :class:`ellips.gaussians.Mixture`.

    Example:
        >>> ellips = Ellips(num_classes=2, dim=3, shrinkage=0.1)
        >>> z, labels = torch.randn(100, 3), torch.arange(100) % 2
        >>> scores = ellips.fit(z, labels)(z)
        >>> certificate = ellips.certify(z)
    """

    def certify(self, z: Tensor, method: Method = "exact", *, chunk_size: int | None = None) -> Certificate:
        """Certify the predictions at z against every ℓ2 change of the latent up to a radius.

        Args:
            z: Latents, shape ``(N, d)``.
            method: ``"exact"`` (the distance to the decision boundary), ``"pairwise"`` (closed form per rival) or
                ``"theorem"`` ([E26] Theorem 4.1, eq. 5); see :mod:`ellips.certificates`.
            chunk_size: Points handled at a time; by default as many as keep the working memory below about 1 GB.

        Returns:
            A certificate per point. With gradients enabled, the radii of ``exact`` and ``pairwise`` carry gradients to
            ``z`` and to a trainable mixture.

        Raises:
            ValueError: If ``z`` has another width or is not finite, or the method is unknown.
            NotFittedError: If no mixture was fitted.
        """
        return certify(self, z, method, chunk_size=chunk_size)
