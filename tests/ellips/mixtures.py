"""Random mixtures for the tests."""

from __future__ import annotations

import sklearn
import torch
from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis
from torch import Tensor

from ellips import Ellips

KINDS = ("isotropic", "shared", "spherical", "diagonal", "full")


def random_mixture(kind: str, classes: int, dim: int, seed: int = 0, spread: float = 1.0) -> Ellips:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    means = spread * normal(classes, dim)
    eye = torch.eye(dim, dtype=torch.float64)
    if kind == "isotropic":
        covariances = eye.expand(classes, dim, dim)
    elif kind == "shared":
        root = normal(dim, dim)
        covariances = (root @ root.T / dim + 0.2 * eye).expand(classes, dim, dim)
    elif kind == "spherical":
        covariances = normal(classes).exp().view(-1, 1, 1) * eye
    elif kind == "diagonal":
        covariances = (0.7 * normal(classes, dim)).exp()
    else:
        root = normal(classes, dim, dim)
        covariances = root @ root.mT / dim + 0.2 * eye
    priors = normal(classes).mul(0.3).softmax(0)
    return Ellips.from_parameters(means, covariances, priors)


def random_points(ellips: Ellips, n: int, seed: int = 0, scale: float = 1.5) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 1)
    z, _ = ellips.sample(n, generator)
    return scale * z


def quadratic_discriminant(z: Tensor, labels: Tensor) -> QuadraticDiscriminantAnalysis:
    """scikit-learn's classifier with maximum likelihood covariances, which divide by n."""
    oracle = QuadraticDiscriminantAnalysis().fit(z.numpy(), labels.numpy())
    if tuple(map(int, sklearn.__version__.split(".")[:2])) < (1, 9):  # before, scikit-learn divided by n - 1
        for k, n in enumerate(labels.bincount().tolist()):
            oracle.scalings_[k] = oracle.scalings_[k] * (n - 1) / n
    return oracle
