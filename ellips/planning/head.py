"""Operations of projector and Gaussians, which no encoder is needed for."""

from __future__ import annotations


def training_flops(parameters: int, rows: int, epochs: int) -> int:
    """Return the multiplications and additions of a projector's training: two a parameter and row, three times over.

    Forward, back to its input and back to its weights. Losses are not counted.

    Args:
        parameters: Of the projector.
        rows: Features of an epoch.
        epochs: Epochs.
    """
    return 6 * parameters * rows * epochs


def fit_flops(parameters: int, rows: int, classes: int, dim: int, fits: int) -> int:
    """Return those of exact fits with full covariances.

    Each row goes through the projector (2 a parameter) and into its class's scatter (2d²); each class's covariance is
    factorised and its factor inverted (d³).

    Args:
        parameters: Of the projector.
        rows: Features that are fitted to.
        classes: K.
        dim: Width d of the latents.
        fits: Exact fits.
    """
    return fits * (rows * (2 * parameters + 2 * dim**2) + classes * dim**3)


def search_flops(candidates: int, rows: int, classes: int, dim: int, fits: int) -> int:
    """Return those of searches for a regularisation: each candidate's covariances (d³), each row's scores (2d²).

    Solving for exact radii comes on top.

    Args:
        candidates: Settings that are tried.
        rows: Held-out latents.
        classes: K.
        dim: Width d of the latents.
        fits: Exact fits, each with a search.
    """
    return fits * candidates * classes * (dim**3 + 2 * dim**2 * rows)
