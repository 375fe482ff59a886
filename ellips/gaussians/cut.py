"""Covariances of low rank: what is left of regularised class covariances when few of their differences are kept.

With Σ the common covariance after shrinkage, A its precision factor and Σ_k the class covariance after pooling and
shrinkage, AΣ_kAᵀ = I + Δ_k. The r eigenpairs of Δ_k of the largest |D| are kept: the nearest matrix of rank r, so r = 0
is pooled (linear) discriminant analysis and r = d the full model.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ellips.gaussians.covariance import CURE, precision_factor, validate_counts
from ellips.gaussians.moments import Moments
from ellips.gaussians.regularization import Regularization
from ellips.gaussians.sketch import SketchedMoments

_BATCH_ELEMENTS = 2**20  # of the matrices that are decomposed in one go: 8 MB
_UPRIGHT = 1e-9  # what directions that are called orthonormal may lack


def cut_to_rank(
    collected: Moments | SketchedMoments, rank: int, regularization: Regularization, directions: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the common precision factor, directions and scales of a mixture of low rank.

    Args:
        collected: Moments with full scatters, or a sketch of them.
        rank: Directions per class; of a sketch at most as many as it was made for.
        regularization: Pooling and shrinkage.
        directions: Where they are written, some classes at a time, shape ``(K, r, d)``: with many classes nothing of
            their size is held beside them.

    Returns:
        A, q and s of :class:`ellips.gaussians.low_rank.LowRank`, shapes ``(d, d)``, ``(K, r, d)`` and ``(K, r)``.

    Raises:
        ValueError: If a class has no samples, or a covariance is singular; the message names class and parameter.
    """
    count, dim = collected.count, collected.mean.shape[1]
    validate_counts(count, dim, rank > 0, regularization)
    scatter = collected.scatter.sum(0) if isinstance(collected, Moments) else collected.scatter
    within, n = scatter / count.sum(), count.double()
    eye = torch.eye(dim, dtype=within.dtype, device=within.device)
    shrinkage, trace = regularization.shrinkage, within.trace()
    common = (1 - shrinkage) * within + shrinkage * trace / dim * eye
    factor = _common_factor(common)
    if isinstance(collected, Moments):
        rows = max(1, _BATCH_ELEMENTS // dim**2)
        functionals: Tensor = factor.mT.expand(len(count), dim, dim)  # Aᵀ: everything is looked at, in its own metric
        traces = collected.scatter.diagonal(dim1=1, dim2=2).sum(1) / n
    else:
        rows = max(1, _BATCH_ELEMENTS // collected.functionals[0].numel())
        functionals, traces = collected.functionals, collected.square / n
    width = functionals.shape[2]
    if rank > width:
        raise ValueError(
            f"Expected a rank up to {width}, that of the sketch, but got {rank}; sketch with a larger one."
        )
    widths = within.new_empty(len(count), rank)
    for k in torch.arange(len(count), device=within.device).split(rows):
        f, own = functionals[k], collected.core[k] if isinstance(collected, SketchedMoments) else None
        if own is None:
            own = f.mT @ (collected.scatter[k] @ f)
        core = (1 - shrinkage) * (own / n[k].view(-1, 1, 1) - f.mT @ (within @ f))
        core = core + shrinkage * ((traces[k] - trace) / dim).view(-1, 1, 1) * (f.mT @ f)
        directions[k], widths[k] = _leading(factor, f, (1 - regularization.pooling) * core, rank)
    _refuse_flat(widths, dim)
    return factor, directions, (1 + widths).rsqrt()


def _leading(factor: Tensor, functionals: Tensor, core: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the leading eigenpairs of Δ within the span of functionals F, given FᵀΔ'F; as rows, and by |D|."""
    classes, dim, width = functionals.shape
    columns = functionals.transpose(0, 1).reshape(dim, classes * width)  # of all classes: one factor serves them
    whitened = torch.linalg.solve_triangular(factor.mT, columns, upper=True).view(dim, classes, width)
    basis, triangle = torch.linalg.qr(whitened.transpose(0, 1))
    half = torch.linalg.solve_triangular(triangle.mT, core, upper=False)
    inner = torch.linalg.solve_triangular(triangle.mT, half.mT, upper=False)
    values, vectors = torch.linalg.eigh((inner + inner.mT) / 2)
    chosen = values.abs().argsort(dim=1, descending=True, stable=True)[:, :rank]
    vectors = vectors.gather(2, chosen.unsqueeze(1).expand(-1, vectors.shape[1], -1))
    return (basis @ vectors).mT, values.gather(1, chosen)


def _common_factor(common: Tensor) -> Tensor:
    try:
        return precision_factor(common.unsqueeze(0))[0]
    except ValueError as error:
        raise ValueError(f"{error}".replace("the covariance of class 0", "the common covariance")) from error


def _refuse_flat(widths: Tensor, dim: int) -> None:
    top = 2 + widths.abs().sum(1, keepdim=True)
    flat = (widths + 1 <= dim * torch.finfo(widths.dtype).eps * top).any(1)
    if bool(flat.any()):
        k = int(flat.nonzero()[0])
        raise ValueError(
            f"Expected the covariance of class {k} to be positive definite but got one without any width in some "
            f"direction; {CURE}."
        )


def validate_low_rank(means: Tensor, covariance: Tensor, directions: Tensor, widths: Tensor) -> None:
    """Refuse what is no mixture of low rank.

    Raises:
        ValueError: If shapes disagree, a value is not finite, directions are not orthonormal or widths not above −1.
    """
    if means.ndim != 2 or directions.ndim != 3:
        raise ValueError(
            f"Expected `means` of shape (K, d) and `directions` of shape (K, r, d) but got {tuple(means.shape)} and "
            f"{tuple(directions.shape)}."
        )
    (classes, dim), rank = means.shape, directions.shape[1]
    expected = {"covariance": (dim, dim), "directions": (classes, rank, dim), "widths": (classes, rank)}
    got = {"covariance": covariance, "directions": directions, "widths": widths}
    for name, shape in expected.items():
        if tuple(got[name].shape) != shape:
            raise ValueError(f"Expected `{name}` to have shape {shape} but got {tuple(got[name].shape)}.")
    for name, value in {"means": means, **got}.items():
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"Expected `{name}` to be finite but got NaN or infinite values.")
    eye = torch.eye(rank, dtype=directions.dtype, device=directions.device)
    skew = (directions @ directions.mT - eye).abs().flatten(1).amax(1) if rank else directions.new_zeros(classes)
    if bool((skew > _UPRIGHT).any()):
        k = int(skew.argmax())
        raise ValueError(
            f"Expected `directions` to be orthonormal but those of class {k} are off by {float(skew[k]):.3g}; take the "
            "rows of an orthogonal matrix, as from torch.linalg.qr."
        )
    if not bool((widths > -1).all()):
        raise ValueError(f"Expected `widths` to be above -1 but got {float(widths.min())}.")
