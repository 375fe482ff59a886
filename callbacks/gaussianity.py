"""How Gaussian the latents are, at validation and test: Mardia's tests, KL to the fitted mixture, what it may cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import lightning as L
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from ellips.certificates import METHODS, Method
from ellips.classifier import Ellips
from ellips.metrics.functional import check_radii
from ellips.theory.degradation import Degradation, Estimator, degradation
from ellips.theory.divergence import TooFewLatentsError
from ellips.theory.normality import MardiaResult, mardia
from ellips.types import HeadOutput


class GaussianityCallback(L.Callback):
    """Tests the evaluated latents against the fitted Gaussians.

    It reads the :class:`ellips.types.HeadOutput` that the steps of a module with a ``head``
    (:class:`ellips.EllipsHead`) return, and logs per stage (``val``, ``test``): ``val/mardia_pass_rate`` over the
    ``val/mardia_tested_classes`` classes with more samples than dimensions; ``val/kl`` with ``val/kl_lower`` and
    ``val/kl_upper``; ``val/total_variation_bound``; and the degradation bound, e.g. ``val/degradation_bound/exact@0.5``
    with ``val/degradation_bound_lower/exact@0.5``, to be read beside ``val/certified_accuracy/exact@0.5``. In high
    dimension KL is biased: see :mod:`ellips.theory.divergence`. Where a class has too few samples for KL, it and what
    follows from it are left out, with a warning.

    Args:
        radii: Latent radii of the degradation bound.
        method: Kind of certificate.
        alpha: Level of Mardia's tests, both together.
        estimator: Of KL, ``"knn"`` or ``"likelihood"``.
        max_per_class: Samples per class that the estimate of KL uses at most.
        num_samples: Draws from the mixture for its own certified accuracy.
        confidence: Coverage of all intervals.
        every_n_epochs: Validate Gaussianity only every so many epochs; tests always do.

    Attributes:
        mardia: Result of the last evaluation, per class; None before the first.
        degradation: The last degradation bound; None where KL could not be estimated.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        radii: Sequence[float] = (0.25, 0.5, 1.0),
        method: Method = "exact",
        alpha: float = 0.05,
        estimator: Estimator = "knn",
        max_per_class: int = 1000,
        num_samples: int = 4000,
        confidence: float = 0.95,
        every_n_epochs: int = 1,
    ) -> None:
        super().__init__()
        self.radii = check_radii(radii)
        for name, value, known in (("method", method, METHODS), ("estimator", estimator, get_args(Estimator))):
            if value not in known:
                raise ValueError(f"Expected `{name}` to be one of {known} but got {value!r}.")
        for name, share in (("alpha", alpha), ("confidence", confidence)):
            if not 0 < share < 1:
                raise ValueError(f"Expected `{name}` to be in (0, 1) but got {share}.")
        counts = {"max_per_class": max_per_class, "num_samples": num_samples, "every_n_epochs": every_n_epochs}
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"Expected `{name}` to be at least 1 but got {count}.")
        self.method: Method = method
        self.alpha = alpha
        self.estimator: Estimator = estimator
        self.max_per_class = max_per_class
        self.num_samples = num_samples
        self.confidence = confidence
        self.every_n_epochs = every_n_epochs
        self.mardia: MardiaResult | None = None
        self.degradation: Degradation | None = None
        self._latents = _Latents()
        self._warned = False

    # ------------------------------------------------------------------ hooks

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Check that the module has a head."""
        if not hasattr(getattr(pl_module, "head", None), "ellips"):
            raise TypeError(
                f"Expected a module with a `head` (an EllipsHead) but got {type(pl_module).__name__} without one."
            )

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start collecting."""
        self._latents = _Latents().to(pl_module.device)

    def on_test_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start collecting."""
        self._latents = _Latents().to(pl_module.device)

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,  # noqa: ANN401 - Lightning's signature; checked in _Latents
        batch: Any,  # noqa: ANN401
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep a batch's latents."""
        if self._due(trainer):
            self._latents.update(outputs)

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,  # noqa: ANN401 - Lightning's signature; checked in _Latents
        batch: Any,  # noqa: ANN401
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep a batch's latents."""
        self._latents.update(outputs)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Test and log."""
        if self._due(trainer):
            self._finish(pl_module, "val")

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Test and log."""
        self._finish(pl_module, "test")

    def _due(self, trainer: L.Trainer) -> bool:
        if trainer.sanity_checking:
            return False
        return trainer.state.fn != "fit" or (trainer.current_epoch + 1) % self.every_n_epochs == 0

    # ------------------------------------------------------------------ results

    def _finish(self, pl_module: L.LightningModule, stage: str) -> None:
        z, labels = self._latents.compute()
        self._latents.reset()
        ellips = pl_module.head.ellips
        self.mardia = mardia(z, labels, ellips.num_classes)
        values = {
            f"{stage}/mardia_pass_rate": self.mardia.pass_rate(self.alpha),
            f"{stage}/mardia_tested_classes": float(self.mardia.tested.sum()),
        }
        self.degradation = self._degradation(ellips, z, labels)
        if self.degradation is not None:
            values |= self._named(self.degradation, stage)
        # Every process has the same numbers from the same gathered latents.
        pl_module.log_dict(values, rank_zero_only=False, sync_dist=False, batch_size=1)

    def _degradation(self, ellips: Ellips, z: Tensor, labels: Tensor) -> Degradation | None:
        try:
            return degradation(
                ellips,
                z,
                labels,
                self.radii,
                estimator=self.estimator,
                method=self.method,
                num_samples=self.num_samples,
                confidence=self.confidence,
                max_per_class=self.max_per_class,
            )
        except TooFewLatentsError as error:
            if not self._warned:
                rank_zero_warn(f"GaussianityCallback leaves out KL and the degradation bound: {error}")
                self._warned = True
            return None

    def _named(self, found: Degradation, stage: str) -> dict[str, float]:
        values = {
            f"{stage}/kl": found.kl.value,
            f"{stage}/kl_lower": found.kl.lower,
            f"{stage}/kl_upper": found.kl.upper,
            f"{stage}/total_variation_bound": found.total_variation,
        }
        for radius, bound, lower in zip(self.radii, found.bound.tolist(), found.bound_lower.tolist(), strict=True):
            values[f"{stage}/degradation_bound/{self.method}@{radius:g}"] = bound
            values[f"{stage}/degradation_bound_lower/{self.method}@{radius:g}"] = lower
        return values


class _Latents(Metric):
    """Latents and labels of one evaluation, gathered over processes, each image once."""

    full_state_update = False

    latent: list[Tensor]
    label: list[Tensor]
    index: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for name in ("latent", "label", "index"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, outputs: object) -> None:
        """Keep a batch.

        Raises:
            TypeError: If the step returned anything but a HeadOutput.
        """
        if not isinstance(outputs, HeadOutput):
            raise TypeError(f"Expected the step to return a HeadOutput but got {type(outputs).__name__}.")
        self.latent.append(outputs.latent.detach())
        self.label.append(outputs.label)
        self.index.append(outputs.index)

    def compute(self) -> tuple[Tensor, Tensor]:
        """Return latents and labels in the order of the dataset, without the copies that samplers pad with."""
        latent, label, index = (dim_zero_cat(x) for x in (self.latent, self.label, self.index))
        order = index.argsort(stable=True)
        ordered = index[order]
        first = torch.ones_like(ordered, dtype=torch.bool)
        first[1:] = ordered[1:] != ordered[:-1]
        rows = order[first]
        return latent[rows], label[rows]
