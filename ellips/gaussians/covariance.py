"""Class covariances from moments, regularised, and their precision factors."""

from __future__ import annotations

import torch
from torch import Tensor

from ellips.gaussians.moments import Moments
from ellips.gaussians.regularization import Regularization

_NONE = Regularization()
CURE = "raise `shrinkage` or `pooling`, use covariance_type='diagonal' or 'low_rank', or lower the latent dimension"


def class_covariances(
    moments: Moments, covariance_type: str = "full", regularization: Regularization = _NONE
) -> Tensor:
    """Return regularised class covariances.

    Σ_k is the sample covariance (divisor n_k, as in scikit-learn's QDA), moved to the within-class covariance of all
    classes (divisor n) by ``pooling`` and then to (tr Σ_k / d)·I by ``shrinkage``: the two parameters of regularised
    discriminant analysis (Friedman 1989), the first in the form of Hastie et al., The Elements of Statistical Learning,
    eq. 4.13.

    Args:
        moments: Counts, means and scatters per class.
        covariance_type: ``"full"`` or ``"diagonal"``.
        regularization: Pooling and shrinkage.

    Returns:
        Shape ``(K, d, d)``, or variances of shape ``(K, d)`` for diagonal covariances; float64.

    Raises:
        ValueError: If a class has no samples, or too few for what is asked; the message names the class.
    """
    count, _, scatter = moments
    pooling, shrinkage = regularization.pooling, regularization.shrinkage
    full = covariance_type == "full"
    if not full and scatter.ndim == 3:
        scatter = scatter.diagonal(dim1=-2, dim2=-1)
    if full and scatter.ndim != 3:
        raise ValueError(
            f"Expected `scatter` to have shape (K, d, d) for full covariances but got {tuple(scatter.shape)}; "
            "collect the moments with covariance_type='full'."
        )
    dim = moments.mean.shape[1]
    validate_counts(count, dim, full, regularization)
    n = count.double().view(-1, *[1] * (scatter.ndim - 1))
    covariances = (1 - pooling) * scatter / n
    if pooling:
        covariances = covariances + pooling * scatter.sum(0) / n.sum()
    if not shrinkage:
        return covariances
    if full:
        scale = covariances.diagonal(dim1=-2, dim2=-1).mean(-1).view(-1, 1, 1)
        target = scale * torch.eye(dim, dtype=scatter.dtype, device=scatter.device)
    else:
        target = covariances.mean(-1, keepdim=True)
    return (1 - shrinkage) * covariances + shrinkage * target


def validate_counts(count: Tensor, dim: int, full: bool, regularization: Regularization) -> None:
    """Refuse classes without samples, and such with too few for a covariance."""
    empty = (count == 0).nonzero().flatten().tolist()
    if empty:
        raise ValueError(
            f"Expected every class to have samples but class{'es' if len(empty) > 1 else ''} "
            f"{', '.join(map(str, empty[:10]))} had none; check `num_classes` and the training split."
        )
    # With pooling the common covariance stands in where a class has none of its own.
    needed = 1 if regularization.pooling else 2
    if full and regularization == _NONE:
        needed = dim + 1
    worst = int(count.argmin())
    if int(count[worst]) < needed:
        raise ValueError(
            f"Expected at least {needed} samples per class for covariances in {dim} dimensions but class {worst} has "
            f"{int(count[worst])}; {CURE}."
        )


def precision_factor(covariances: Tensor) -> Tensor:
    """Return A_k with A_kᵀA_k = Σ_k⁻¹: the inverse of the lower Cholesky factor.

    Args:
        covariances: Shape ``(K, d, d)``, or variances of shape ``(K, d)``.

    Returns:
        Lower triangular factors of shape ``(K, d, d)``, or 1/σ of shape ``(K, d)``.

    Raises:
        ValueError: If a covariance is not finite, not symmetric or numerically singular; the message names the class.
    """
    _refuse(~torch.isfinite(covariances).flatten(1).all(1), "finite", "NaN or infinite values", "check the latents")
    if covariances.ndim == 2:
        top, low = covariances.amax(1), covariances.amin(1)
        _refuse_singular(low, top, covariances.shape[1])
        return covariances.rsqrt()
    top = covariances.abs().amax((1, 2))
    skew = (covariances - covariances.mT).abs().amax((1, 2))
    _refuse(skew > 1e-8 * top, "symmetric", "an asymmetric matrix", "pass (C + Cᵀ)/2 if that is what is meant")
    covariances = (covariances + covariances.mT) / 2
    eigenvalues = torch.linalg.eigvalsh(covariances)
    _refuse_singular(eigenvalues[:, 0], eigenvalues[:, -1], covariances.shape[1])
    lower, info = torch.linalg.cholesky_ex(covariances)
    _refuse(info != 0, "positive definite", "a failing Cholesky factorisation", CURE)
    eye = torch.eye(covariances.shape[1], dtype=covariances.dtype, device=covariances.device)
    factor: Tensor = torch.linalg.solve_triangular(lower, eye.expand_as(lower), upper=False).tril()
    return factor


def _refuse_singular(low: Tensor, top: Tensor, dim: int) -> None:
    floor = dim * torch.finfo(low.dtype).eps * top
    singular = ~(low > floor)
    if bool(singular.any()):
        k = int(singular.nonzero()[0])
        got = f"one whose eigenvalues run from {float(low[k]):.3g} to {float(top[k]):.3g}"
        _refuse(singular, "positive definite", got, CURE)


def _refuse(bad: Tensor, expected: str, got: str, cure: str) -> None:
    if bool(bad.any()):
        k = int(bad.nonzero()[0])
        raise ValueError(f"Expected the covariance of class {k} to be {expected} but got {got}; {cure}.")
