"""What a head, its checkpoints and a feature cache hold, in bytes."""

from __future__ import annotations

from typing import Final

from ellips.validation import at_least, one_of

FLOAT64: Final = 8
FLOAT32: Final = 4
LABEL_AND_INDEX: Final = 16
"""Bytes of a cached row beside its features: two 64-bit integers."""

CACHED: Final = {"float32": 4, "float16": 2, "bfloat16": 2}
"""Bytes of a cached number."""

PEAK: Final = {"full": 3, "diagonal": 3, "low_rank": 5}
"""Covariances held at once while a head is fitted, certifies or is checked: moments, mixture, what is made of them.

Measured: 2.8 of full ones at K = 400, d = 512; 4.7 of low rank at K = 1,000, d = 1,024, r = 32.
"""

OPTIMIZER_COPIES: Final = {"sgd": 1, "adamw": 2}
"""Numbers that an optimiser keeps of each parameter: momentum; both moments."""


def covariance_numbers(kind: str, classes: int, dim: int, rank: int | None = None) -> int:
    """Return how many numbers the covariances of all classes are.

    ``full``: K d². ``diagonal``: K d. ``low_rank``: K (d + 1) r + d², directions and their scales of each class over
    one common matrix.

    Args:
        kind: The covariances' type.
        classes: K.
        dim: Width d of the latents.
        rank: r, of ``low_rank`` alone.

    Raises:
        ValueError: If the type is not known, or ``low_rank`` comes without its rank.
    """
    one_of(("full", "diagonal", "low_rank"), covariance_type=kind)
    if kind != "low_rank":
        return classes * dim**2 if kind == "full" else classes * dim
    if rank is None:
        raise ValueError("Expected `rank` for covariance_type='low_rank' but got None.")
    return classes * (dim + 1) * rank + dim**2


def covariance_bytes(kind: str, classes: int, dim: int, rank: int | None = None) -> int:
    """Return T, the bytes of the covariances of all classes in float64; see :func:`covariance_numbers`."""
    return FLOAT64 * covariance_numbers(kind, classes, dim, rank)


def mixture_bytes(kind: str, classes: int, dim: int, rank: int | None = None) -> int:
    """Return the bytes of a fitted mixture: covariances' factors, means K d and log-priors K, all in float64."""
    return FLOAT64 * (covariance_numbers(kind, classes, dim, rank) + classes * dim + classes)


def projector_numbers(in_features: int, latent_dim: int | None, hidden_dim: int) -> tuple[int, int]:
    """Return the projector's parameters and the numbers of its running statistics.

    With D features, h hidden units and d latents: Dh + h, 2h of the batch normalisation, h² + h, hd + d; statistics 2h
    and a counter. One linear map, Dd + d, without hidden units; nothing without a projector.

    Args:
        in_features: D.
        latent_dim: d; None: no projector.
        hidden_dim: h.
    """
    if latent_dim is None:
        return 0, 0
    if not hidden_dim:
        return in_features * latent_dim + latent_dim, 0
    first, second = (in_features + 1) * hidden_dim, (hidden_dim + 1) * hidden_dim
    return first + 2 * hidden_dim + second + (hidden_dim + 1) * latent_dim, 2 * hidden_dim + 2


def checkpoint_bytes(projector: tuple[int, int], mixture: int, optimizer: str, *, train_mixture: bool = False) -> int:
    """Return the bytes of a checkpoint: weights, mixture, and what the optimiser keeps of each parameter.

    Names, settings and a file's own structure, some tens of kilobytes, are left out.

    Args:
        projector: See :func:`projector_numbers`.
        mixture: See :func:`mixture_bytes`.
        optimizer: ``"sgd"`` or ``"adamw"``.
        train_mixture: Whether the mixture has parameters, which the optimiser keeps numbers of, too.
    """
    one_of(tuple(OPTIMIZER_COPIES), optimizer=optimizer)
    parameters, statistics = projector
    kept = OPTIMIZER_COPIES[optimizer] * (FLOAT32 * parameters + (mixture if train_mixture else 0))
    return FLOAT32 * (parameters + statistics) + mixture + kept


def cache_bytes(rows: int, feature_dim: int, dtype: str = "float32") -> int:
    """Return the bytes of a cache's tensors; each file has some hundred more.

    Args:
        rows: Images, or their noisy copies.
        feature_dim: Width D of the features.
        dtype: Of the stored features.
    """
    at_least(0, rows=rows)
    one_of(tuple(CACHED), cache_dtype=dtype)
    return rows * (feature_dim * CACHED[dtype] + LABEL_AND_INDEX)


def head_sizes(
    covariances: tuple[str, int, int, int | None],
    projector: tuple[int, int],
    optimizer: str,
    *,
    encoder_parameters: int,
    proofs: int,
    train_mixture: bool = False,
) -> dict[str, int]:
    """Return the bytes that a head takes, by what takes them.

    Args:
        covariances: The arguments of :func:`covariance_numbers`.
        projector: See :func:`projector_numbers`.
        optimizer: ``"sgd"`` or ``"adamw"``.
        encoder_parameters: Of the encoder.
        proofs: Files of certificates of a run; each holds the mixture that it is about.
        train_mixture: Whether the mixture has parameters.
    """
    total, mixture, held = covariance_bytes(*covariances), mixture_bytes(*covariances), PEAK[covariances[0]]
    checkpoint = checkpoint_bytes(projector, mixture, optimizer, train_mixture=train_mixture)
    return {
        "disk: checkpoints, best and last": 2 * checkpoint,
        "disk: certificates with their classifier": proofs * mixture,
        "covariances of all classes (T)": total,
        "GPU: encoder and projector": FLOAT32 * (encoder_parameters + sum(projector)),
        "GPU: gradients and optimiser": checkpoint - mixture - FLOAT32 * projector[1],
        f"GPU: fit and certificates, {held} T": held * total,
    }
