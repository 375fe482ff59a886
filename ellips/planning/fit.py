"""What encoding and a fit send through the encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from ellips.planning.work import Work

AUTOMATIC: Final = 35
"""Settings that a search without a grid tries at most."""


def searched_by(regularization: Any, *, given: bool) -> tuple[str | None, int]:  # noqa: ANN401 - a grid, or its name
    """Return the part of the data that the regularisation is chosen by, None for a fixed one, and how many are tried.

    Args:
        regularization: The grid, with or without a ``sigma``; a name, such as ``"auto"``; None.
        given: Whether pooling or shrinkage are set, so that nothing is chosen without a grid.
    """
    if regularization is None or (isinstance(regularization, str) and given):
        return None, 0
    if isinstance(regularization, str):
        return "val", AUTOMATIC
    tried = len(regularization.pooling) * len(regularization.shrinkage)
    return ("val" if regularization.sigma is None else "votes"), tried


@dataclass(frozen=True)
class FitPlan:
    """The settings of a fit that decide how often images are encoded.

    Attributes:
        rows: Images, or their noisy copies, of ``"train"`` and ``"val"``, and of ``"votes"`` where there are some.
        epochs: Epochs.
        validate_every: Epochs from one validation to the next.
        cached: Whether features are kept on disk.
        fresh: Whether training images are augmented anew in every epoch, so that no cache serves them.
        trained: Whether there is something to train; without, the Gaussians are fitted once.
        train_mixture: Whether the Gaussians are trained; they are fitted once then, too.
        fitted_first: Whether a loss needs fitted Gaussians before the first step.
        sanity_rows: Validation images seen before the first step.
        search: What the regularisation is chosen by: ``"val"``, ``"votes"``, or None for a fixed one.
        tried: Settings that a search tries.
        processes: Processes; each leaves out what does not divide.
    """

    rows: Mapping[str, int]
    epochs: int
    validate_every: int = 1
    cached: bool = True
    fresh: bool = False
    trained: bool = True
    train_mixture: bool = False
    fitted_first: bool = False
    sanity_rows: int = 0
    search: str | None = None
    tried: int = 0
    processes: int = 1

    @property
    def validations(self) -> int:
        """Validations of the whole split."""
        return self.epochs // self.validate_every

    @property
    def fits(self) -> int:
        """Exact fits: one at the end of each epoch, or before its validation, and one before the first step."""
        first = bool(self.sanity_rows or self.fitted_first)
        return 1 if self.train_mixture or not self.trained else self.epochs + first

    def encode(self) -> Work:
        """Return the encoding of what the fit caches."""
        return Work(sum(self.rows.values())) if self.cached else Work()

    def training(self) -> Work:
        """Return what the epochs encode of images that no cache serves; what does not divide is left out."""
        rows = self.rows["train"] // self.processes * self.processes
        return Work(rows * self.epochs) if self.fresh or not self.cached else Work()

    def fitting(self) -> Work:
        """Return what exact fits encode: nothing where features are cached."""
        return Work() if self.cached else Work(self.fits * self.rows["train"])

    def validation(self) -> Work:
        """Return what validations encode."""
        return Work() if self.cached else Work(self.validations * self.rows["val"] + self.sanity_rows)

    def regularization(self) -> Work:
        """Return what the search for a regularisation encodes: nothing where features are cached."""
        return Work() if self.cached or self.search is None else Work(self.fits * self.rows[self.search])
