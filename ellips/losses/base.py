"""The shape that every loss on latents has, and the weighted sum of several."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ellips.gaussians import Mixture
from ellips.validation import at_least


class LatentLoss(nn.Module, ABC):
    """A loss on the latents of one global batch, to be minimised.

    It runs in float32, or in float64 if the latents are float64, whatever autocast is in force: log-determinants and
    differences of nearly equal numbers do not survive 16 bits. Losses hold neither parameters nor buffers, so they
    add nothing to a checkpoint.

    Args:
        weight: What an :class:`Objective` multiplies the value with.
        start_step: First optimiser step at which an :class:`Objective` counts the loss; before it, the loss is off.

    Attributes:
        copies: Rows in a row that the loss takes to be noisy copies of one image; 1: it looks at rows alone.

    Raises:
        ValueError: If ``weight`` or ``start_step`` is negative.
    """

    copies: int = 1

    def __init__(self, weight: float = 1.0, start_step: int = 0) -> None:
        super().__init__()
        at_least(0, weight=weight, start_step=start_step)
        self.weight = float(weight)
        self.start_step = int(start_step)

    @property
    def uses_mixture(self) -> bool:
        """Whether :meth:`compute` reads the Gaussian mixture."""
        return False

    @property
    def needs_fitted_mixture(self) -> bool:
        """Whether the mixture must be fitted before the first step."""
        return False

    def forward(self, latents: Tensor, labels: Tensor, mixture: Mixture | None = None, step: int = 0) -> Tensor:
        """Return the unweighted loss.

        Args:
            latents: Shape ``(n, d)``.
            labels: Shape ``(n,)``, integer class indices, none negative.
            mixture: The Gaussians on these latents, for the losses that need them.
            step: Optimiser steps made so far, for the losses that change over time.

        Returns:
            Scalar, float32 (float64 for float64 latents).

        Raises:
            ValueError: If the shapes are not as stated, or the loss needs a mixture and none was given.
        """
        if latents.ndim != 2 or labels.shape != latents.shape[:1]:
            raise ValueError(
                "Expected `latents` of shape (n, d) and `labels` of shape (n,) but got "
                f"{tuple(latents.shape)} and {tuple(labels.shape)}."
            )
        if latents.shape[0] == 0:
            raise ValueError("Expected at least one sample in the batch but got none.")
        if self.uses_mixture and mixture is None:
            raise ValueError(f"Expected a `mixture` for {type(self).__name__} but got None; pass a fitted one.")
        with torch.autocast(latents.device.type, enabled=False):
            wide = latents if latents.dtype == torch.float64 else latents.float()
            return self.compute(wide, labels.long(), mixture, step)

    @abstractmethod
    def compute(self, latents: Tensor, labels: Tensor, mixture: Mixture | None, step: int) -> Tensor:
        """Return the unweighted loss of checked latents in float32 or float64, with autocast off."""

    def extra_repr(self) -> str:
        """Return what ``print`` shows: weight and start."""
        return f"weight={self.weight}, start_step={self.start_step}"


class Objective(nn.Module):
    """A weighted sum of losses.

    Args:
        losses: The terms; each brings its own weight and the step from which it counts.

    Raises:
        ValueError: If there are no losses.
    """

    def __init__(self, losses: Iterable[LatentLoss]) -> None:
        super().__init__()
        self.losses = nn.ModuleList(losses)
        if len(self.losses) == 0:
            raise ValueError("Expected at least one loss in the objective but got none.")

    @property
    def uses_mixture(self) -> bool:
        """Whether a term reads the Gaussian mixture."""
        return any(loss.uses_mixture for loss in self._terms())

    @property
    def needs_fitted_mixture(self) -> bool:
        """Whether a term needs the mixture to be fitted before the first step."""
        return any(loss.needs_fitted_mixture for loss in self._terms())

    def validate_index(self, index: Tensor) -> None:
        """Refuse a batch in which the rows that a term takes to be copies of one image are not.

        Args:
            index: Which image each row is of, shape ``(n,)``.

        Raises:
            ValueError: With the number of copies that the term takes.
        """
        for copies in {loss.copies for loss in self._terms()}:
            if len(index) % copies or bool((index.view(-1, copies) != index[::copies, None]).any()):
                raise ValueError(
                    f"Expected batches in which every {copies} rows in a row are noisy copies of one image, as the "
                    f"objective takes them, but they are not; in the data, set copies to {copies} and batch_by_image."
                )

    def _terms(self) -> list[LatentLoss]:
        return [loss for loss in self.losses if isinstance(loss, LatentLoss)]

    def forward(
        self, latents: Tensor, labels: Tensor, mixture: Mixture | None = None, step: int = 0
    ) -> dict[str, Tensor]:
        """Return the sum as ``"loss"`` and every active term, unweighted, under its class name.

        Args:
            latents: Shape ``(n, d)``, of the whole global batch.
            labels: Shape ``(n,)``.
            mixture: The Gaussians, for the losses that need them.
            step: Optimiser steps made so far; a term whose ``start_step`` is later is left out.

        Raises:
            ValueError: If no term is active at ``step``, so that nothing could be trained.
        """
        terms: dict[str, Tensor] = {}
        total: Tensor | None = None
        for loss in self._terms():
            if step < loss.start_step:
                continue
            value = loss(latents, labels, mixture, step)
            terms[_free_name(type(loss).__name__, terms)] = value.detach()
            weighted = loss.weight * value
            total = weighted if total is None else total + weighted
        if total is None:
            raise ValueError(f"Expected a loss that is active at step {step} but all start later; lower `start_step`.")
        return {"loss": total, **terms}


def _free_name(name: str, taken: dict[str, Tensor]) -> str:
    """Return ``name``, numbered if an earlier term of the same class has it."""
    if name not in taken:
        return name
    return next(f"{name}_{i}" for i in range(2, len(taken) + 2) if f"{name}_{i}" not in taken)
