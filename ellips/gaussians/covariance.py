"""Class covariances from moments, regularised, and their precision factors."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ellips.gaussians.moments import Moments
from ellips.gaussians.regularization import Regularization
from ellips.gaussians.structures import class_ranges

_NONE = Regularization()
CURE = "raise `shrinkage` or `pooling`, use covariance_type='diagonal' or 'low_rank', or lower the latent dimension"


def class_covariances(
    moments: Moments,
    covariance_type: str = "full",
    regularization: Regularization = _NONE,
    added: Tensor | None = None,
) -> Tensor:
    """Return regularised class covariances.

    Σ_k is the sample covariance (divisor n_k, as in scikit-learn's QDA), moved to the within-class covariance of all
    classes (divisor n) by ``pooling``, with ``added`` to it, and then to (tr Σ_k / d)·I by ``shrinkage``: the two
    parameters of regularised discriminant analysis (Friedman 1989), the first in the form of Hastie et al., The
    Elements of Statistical Learning, eq. 4.13.

    Args:
        moments: Counts, means and scatters per class.
        covariance_type: ``"full"`` or ``"diagonal"``.
        regularization: Pooling and shrinkage.
        added: A covariance that is added to that of every class, as the noise's own; shape ``(d, d)``, or ``(d,)`` for
            diagonal covariances.

    Returns:
        Shape ``(K, d, d)``, or variances of shape ``(K, d)`` for diagonal covariances; float64.

    Raises:
        ValueError: If a class has no samples, or too few for what is asked; the message names the class.
    """
    parts = covariances_by_range(moments, covariance_type, regularization, added, [slice(0, len(moments.count))])
    return next(parts)[1]


def covariances_by_range(
    moments: Moments,
    covariance_type: str = "full",
    regularization: Regularization = _NONE,
    added: Tensor | None = None,
    ranges: list[slice] | None = None,
) -> Iterator[tuple[slice, Tensor]]:
    """Yield ranges of classes with their covariances, so that those of all need not be held beside the moments.

    Args:
        moments: See :func:`class_covariances`.
        covariance_type: See :func:`class_covariances`.
        regularization: See :func:`class_covariances`.
        added: See :func:`class_covariances`.
        ranges: Of which classes; None: all, some at a time.

    Raises:
        ValueError: See :func:`class_covariances`; before anything is yielded.
    """
    count, _, scatter = moments
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
    pooling = regularization.pooling
    n = count.double().view(-1, *[1] * (scatter.ndim - 1))
    common = pooling * scatter.sum(0) / n.sum() if pooling else None
    for k in ranges or class_ranges(len(count), scatter[0].numel()):
        covariances = (1 - pooling) * scatter[k] / n[k]
        if common is not None:
            covariances = covariances + common
        if added is not None:
            covariances = covariances + added
        yield k, _shrunk(covariances, regularization.shrinkage)


def _shrunk(covariances: Tensor, shrinkage: float) -> Tensor:
    """Move covariances ``(n, d, d)``, or variances ``(n, d)``, towards multiples of the identity."""
    if not shrinkage:
        return covariances
    if covariances.ndim == 3:
        scale = covariances.diagonal(dim1=-2, dim2=-1).mean(-1).view(-1, 1, 1)
        target = scale * torch.eye(covariances.shape[-1], dtype=covariances.dtype, device=covariances.device)
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


def precision_factor(covariances: Tensor, first: int = 0) -> Tensor:
    """Return A_k with A_kᵀA_k = Σ_k⁻¹: the inverse of the lower Cholesky factor.

    Args:
        covariances: Shape ``(K, d, d)``, or variances of shape ``(K, d)``.
        first: Index of the first class, by which messages name them.

    Returns:
        Lower triangular factors of shape ``(K, d, d)``, or 1/σ of shape ``(K, d)``.

    Raises:
        ValueError: If a covariance is not finite, not symmetric or numerically singular; the message names the class.
    """
    finite = torch.isfinite(covariances).flatten(1).all(1)
    _refuse(~finite, first, "finite", "NaN or infinite values", "check the latents")
    if covariances.ndim == 2:
        top, low = covariances.amax(1), covariances.amin(1)
        _refuse_singular(low, top, covariances.shape[1], first)
        return covariances.rsqrt()
    top = covariances.abs().amax((1, 2))
    skew = (covariances - covariances.mT).abs().amax((1, 2))
    _refuse(skew > 1e-8 * top, first, "symmetric", "an asymmetric matrix", "pass (C + Cᵀ)/2 if that is what is meant")
    covariances = (covariances + covariances.mT) / 2
    eigenvalues = torch.linalg.eigvalsh(covariances)
    _refuse_singular(eigenvalues[:, 0], eigenvalues[:, -1], covariances.shape[1], first)
    lower, info = torch.linalg.cholesky_ex(covariances)
    _refuse(info != 0, first, "positive definite", "a failing Cholesky factorisation", CURE)
    eye = torch.eye(covariances.shape[1], dtype=covariances.dtype, device=covariances.device)
    factor: Tensor = torch.linalg.solve_triangular(lower, eye.expand_as(lower), upper=False).tril()
    return factor


def _refuse_singular(low: Tensor, top: Tensor, dim: int, first: int) -> None:
    floor = dim * torch.finfo(low.dtype).eps * top
    singular = ~(low > floor)
    if bool(singular.any()):
        k = int(singular.nonzero()[0])
        got = f"one whose eigenvalues run from {float(low[k]):.3g} to {float(top[k]):.3g}"
        _refuse(singular, first, "positive definite", got, CURE)


def _refuse(bad: Tensor, first: int, expected: str, got: str, cure: str) -> None:
    if bool(bad.any()):
        k = first + int(bad.nonzero()[0])
        raise ValueError(f"Expected the covariance of class {k} to be {expected} but got {got}; {cure}.")
