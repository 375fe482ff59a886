"""How Gaussian the latents are, at validation and test: Mardia's tests, KL to the fitted mixture, what it may cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import lightning as L
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from ellips.certificates import METHODS, Method
from ellips.classifier import Ellips
from ellips.metrics import DistinctRows
from ellips.metrics.functional import check_radii
from ellips.metrics.radii import radii_of_data
from ellips.reporting.curves import radius_text
from ellips.theory.degradation import Degradation, Estimator, degradation
from ellips.theory.divergence import TooFewLatentsError
from ellips.theory.normality import MardiaResult, mardia
from ellips.types import DEFAULT_RADII, HeadOutput, Series
from ellips.validation import at_least, fraction, one_of

from .certification import CertificationCallback
from .evaluation import EvaluationCallback, Stage, head_of


class GaussianityCallback(EvaluationCallback):
    """Tests the evaluated latents against the fitted Gaussians.

    It reads the :class:`ellips.types.HeadOutput` that the steps of a module with a ``head``
    (:class:`ellips.EllipsHead`) return, and logs per stage (``val``, ``test``): ``val/mardia_pass_rate`` over the
    ``val/mardia_tested_classes`` classes with more samples than dimensions; ``val/kl`` with ``val/kl_lower`` and
    ``val/kl_upper``; ``val/total_variation_bound``; and the degradation bound, e.g.
    ``val/degradation_bound/latent-exact@0.5`` with ``val/degradation_bound_lower/latent-exact@0.5``, to be read beside
    ``val/certified_accuracy/latent-exact@0.5``. In high dimension KL is biased: see :mod:`ellips.theory.divergence`.
    Where a class has too few samples for KL, it and what follows from it are left out, with a warning.

    Args:
        radii: Latent radii of the degradation bound; None: those of a :class:`CertificationCallback` beside it, or else
            those of the data at the first evaluation, as that callback decides them.
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
        radii: Sequence[float] | None = None,
        method: Method = "exact",
        alpha: float = 0.05,
        estimator: Estimator = "knn",
        max_per_class: int = 1000,
        num_samples: int = 4000,
        confidence: float = 0.95,
        every_n_epochs: int = 1,
    ) -> None:
        super().__init__()
        self.radii = None if radii is None else check_radii(radii)
        self._given = radii is not None
        one_of(METHODS, method=method)
        one_of(get_args(Estimator), estimator=estimator)
        fraction(alpha=alpha, confidence=confidence, ends=False)
        at_least(1, max_per_class=max_per_class, num_samples=num_samples, every_n_epochs=every_n_epochs)
        self.method: Method = method
        self.alpha = alpha
        self.estimator: Estimator = estimator
        self.max_per_class = max_per_class
        self.num_samples = num_samples
        self.confidence = confidence
        self.every_n_epochs = every_n_epochs
        self.mardia: MardiaResult | None = None
        self.degradation: Degradation | None = None
        self._warned = False

    def state_dict(self) -> dict[str, Any]:
        """Return the radii that were decided, for the checkpoint."""
        return {} if self._given or self.radii is None else {"radii": list(self.radii)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the radii that a checkpoint was made with, unless others are given."""
        if not self._given and "radii" in state_dict:
            self.radii = check_radii(state_dict["radii"])

    def due(self, trainer: L.Trainer) -> bool:
        """Whether this validation counts: in a fit, every so many epochs."""
        in_turn = trainer.state.fn != "fit" or (trainer.current_epoch + 1) % self.every_n_epochs == 0
        return super().due(trainer) and in_turn

    def start(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: Stage) -> None:
        """Start collecting."""
        empty = torch.empty(0, head_of(pl_module).ellips.dim, dtype=torch.float64)
        self._rows = DistinctRows(latent=empty, label=torch.empty(0, dtype=torch.int64)).to(pl_module.device)

    def count(self, trainer: L.Trainer, pl_module: L.LightningModule, output: HeadOutput, stage: Stage) -> None:
        """Keep a batch's latents."""
        self._rows.update(output.index, latent=output.latent, label=output.label)

    def finish(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: Stage) -> None:
        """Test and log."""
        rows = self._rows.rows()
        z, labels = rows["latent"], rows["label"]
        self._rows.reset()
        ellips = head_of(pl_module).ellips
        self.mardia = mardia(z, labels, ellips.num_classes)
        values = {
            f"{stage}/mardia_pass_rate": self.mardia.pass_rate(self.alpha),
            f"{stage}/mardia_tested_classes": float(self.mardia.tested.sum()),
        }
        if self.radii is None:
            self.radii = self._decided(trainer, ellips, z, labels)
        self.degradation = self._degradation(ellips, z, labels, self.radii)
        if self.degradation is not None:
            values |= self._named(self.degradation, stage)
        # Every process has the same numbers from the same gathered latents; see CertificationCallback.
        pl_module.log_dict(values, sync_dist=True, reduce_fx="max", batch_size=1)

    def _decided(self, trainer: L.Trainer, ellips: Ellips, z: Tensor, labels: Tensor) -> tuple[float, ...]:
        """Return radii that the latents reach; every process has the same latents, and decides the same."""
        beside = [c.radii.get("latent") for c in trainer.callbacks if isinstance(c, CertificationCallback)]  # type: ignore[attr-defined]
        decided = next(filter(None, beside), None)
        if decided is None:
            found = [(c.radius, c.prediction, labels) for c in (ellips.certify(z, method) for method in METHODS)]
            decided = radii_of_data(found, DEFAULT_RADII["latent"])
        return check_radii([radius for radius in decided if radius > 0])

    def _degradation(self, ellips: Ellips, z: Tensor, labels: Tensor, radii: tuple[float, ...]) -> Degradation | None:
        try:
            return degradation(
                ellips,
                z,
                labels,
                radii,
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
        series = Series("latent", self.method)
        for radius, bound, lower in zip(
            self.radii or (), found.bound.tolist(), found.bound_lower.tolist(), strict=True
        ):
            values[f"{stage}/degradation_bound/{series.name}@{radius_text(radius, 6)}"] = bound
            values[f"{stage}/degradation_bound_lower/{series.name}@{radius_text(radius, 6)}"] = lower
        return values
