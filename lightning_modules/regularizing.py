"""Choosing the regularisation on the validation split of a datamodule."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from ellips.head import EllipsHead
from ellips.regularization_search import Candidate, RegularizationSearch, select_regularization
from ellips.vote_search import select_by_votes

LatentsOf = Callable[[Iterable[Any]], tuple[Tensor, Tensor]]


def choose(
    search: RegularizationSearch,
    head: EllipsHead,
    datamodule: Any,  # noqa: ANN401 - any datamodule that has the loader
    latents_of: LatentsOf,
) -> Candidate:
    """Return the best setting of a grid for the moments that a head has collected; every process must call it.

    Args:
        search: By certificates of clean validation images or, with a ``sigma``, by votes of noisy copies.
        head: Its moments are complete.
        datamodule: Has ``val_dataloader()``, for votes ``votes_dataloader()``, ``vote_copies`` and ``noise_sigma``.
        latents_of: Gives this process's latents and labels of a loader.

    Raises:
        ValueError: If votes are to choose and the data have no noisy copies, or those of another sigma.
    """
    moments, kind, rank = head.moments.compute(), head.ellips.covariance_type, head.ellips.rank
    if search.sigma is None:
        latents, labels = latents_of(datamodule.val_dataloader())
        return select_regularization(moments, latents, labels, search, covariance_type=kind, rank=rank)[0]
    copies = _vote_copies(datamodule, search.sigma)
    latents, labels = latents_of(datamodule.votes_dataloader())
    images = latents.view(-1, copies, latents.shape[1])
    return select_by_votes(moments, images, labels[::copies], search, covariance_type=kind, rank=rank)[0]


def described(chosen: Candidate, search: RegularizationSearch) -> dict[str, float]:
    """Return what votes say of the chosen setting, by the names that are logged."""
    return {
        "val/votes/accuracy": chosen.accuracy,
        f"val/votes/certified_accuracy@{search.radius:g}": chosen.certified_accuracy,
        "val/votes/mean_radius": chosen.mean_radius,
    }


def _vote_copies(datamodule: Any, sigma: float) -> int:  # noqa: ANN401 - any datamodule
    copies = getattr(datamodule, "vote_copies", None)
    if copies is None:
        raise ValueError(
            "Expected a datamodule with noisy copies of validation images for a search by votes but "
            f"{type(datamodule).__name__} has none; set augment (GaussianNoise), copies and val_copies of the data."
        )
    if datamodule.noise_sigma != sigma:
        raise ValueError(
            "Expected `sigma` of the search by votes to be that of the data's noise, "
            f"{datamodule.noise_sigma}, but got {sigma}; set model.regularization.sigma."
        )
    return int(copies)
