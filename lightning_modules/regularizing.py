"""Choosing the regularisation on the validation split of a datamodule."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import lightning as L
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from ellips.automatic_regularization import MAX_SETTINGS, choose_automatically
from ellips.gaussians import ClassSketch
from ellips.head import EllipsHead
from ellips.progress import ImageProgress
from ellips.regularization_search import Candidate, RegularizationSearch, select_regularization
from ellips.vote_search import select_by_votes

from .passes import shows_progress

LatentsOf = Callable[[Iterable[Any]], tuple[Tensor, Tensor, Tensor]]
"""Gives this process's latents, labels and positions of a loader."""

AUTO: Literal["auto"] = "auto"


def choose(
    search: RegularizationSearch,
    head: EllipsHead,
    datamodule: Any,  # noqa: ANN401 - any datamodule that has the loader
    latents_of: LatentsOf,
    trainer: L.Trainer,
) -> Candidate:
    """Return the best setting of a grid for the moments that a head has collected; every process must call it.

    Args:
        search: By certificates of clean validation images or, with a ``sigma``, by votes of noisy copies.
        head: Its moments are complete; its mixture is what settings are tried on, to be fitted anew.
        datamodule: Has ``val_dataloader()``, for votes ``votes_dataloader()``, ``vote_copies`` and ``noise_sigma``.
        latents_of: See :data:`LatentsOf`.
        trainer: Shows how far it is.

    Raises:
        ValueError: If votes are to choose and the data have no noisy copies, or those of another sigma.
    """
    moments, kind, rank = head.moments.held(), head.ellips.covariance_type, head.ellips.rank
    count = search.size
    if search.sigma is None:
        latents, labels, _ = latents_of(datamodule.val_dataloader())
        with _followed(trainer, count) as progress:
            return select_regularization(
                moments,
                latents,
                labels,
                search,
                covariance_type=kind,
                rank=rank,
                ellips=head.ellips,
                after_each=progress.advance,
            )[0]
    copies = _vote_copies(datamodule, search.sigma)
    latents, labels, _ = latents_of(datamodule.votes_dataloader())
    images = latents.view(-1, copies, latents.shape[1])
    with _followed(trainer, count) as progress:
        return select_by_votes(
            moments,
            images,
            labels[::copies],
            search,
            covariance_type=kind,
            rank=rank,
            mixture=head.ellips,
            after_each=progress.advance,
        )[0]


def _followed(trainer: L.Trainer, total: int) -> ImageProgress:
    """Show how many settings were tried, if it takes long and the trainer shows how far it is itself."""
    show = shows_progress(trainer)
    return ImageProgress("Choosing pooling and shrinkage", total, unit="settings", after=5.0, show=show)


def choose_auto(
    head: EllipsHead,
    datamodule: Any,  # noqa: ANN401 - as above
    latents_of: LatentsOf,
    trainer: L.Trainer,
) -> Candidate | None:
    """Return the best setting of :func:`ellips.automatic_regularization.choose_automatically`, or None without data.

    Args:
        head: Its moments are complete; its mixture is what settings are tried on, to be fitted anew.
        datamodule: Has ``val_dataloader()``, or else a warning says that settings stay as they are.
        latents_of: See :data:`LatentsOf`.
        trainer: Shows how far it is, at most: not all settings are tried.
    """
    default = isinstance(datamodule, L.LightningDataModule) and (
        type(datamodule).val_dataloader is L.LightningDataModule.val_dataloader
    )
    if default or not hasattr(datamodule, "val_dataloader"):
        rank_zero_warn(
            f"{type(datamodule).__name__} has no validation split to choose pooling and shrinkage on (regularization: "
            f"auto); they stay {head.ellips.regularization}. Give the datamodule a val_dataloader, or set both."
        )
        return None
    held = latents_of(datamodule.val_dataloader())
    with _followed(trainer, MAX_SETTINGS) as progress:
        return choose_automatically(head.ellips, head.moments.held(), *held, after_each=progress.advance)[0]


def missed(head: EllipsHead) -> dict[str, float]:
    """Return what a sketch of the covariances may have missed, mean over classes, by its logged name; else nothing.

    See :class:`ellips.gaussians.SketchedMoments`.
    """
    if not isinstance(head.moments, ClassSketch):
        return {}
    return {"train/sketch_missed": float(head.moments.held().missed.mean())}


def described(chosen: Candidate, search: RegularizationSearch) -> dict[str, float]:
    """Return what votes say of the chosen setting, by the names that are logged."""
    return {
        "val/votes/accuracy": chosen.accuracy,
        f"val/votes/certified_accuracy@{search.radius:g}": chosen.certified_accuracy,
        "val/votes/mean_radius": chosen.mean_radius,
        **({"val/noise": chosen.noise} if any(search.noise) else {}),
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
