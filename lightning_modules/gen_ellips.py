"""GenEllips: trains the projector on a frozen encoder's features and fits the Gaussians exactly."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict, replace
from typing import Any, Literal, get_args

import lightning as L
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from ellips.checkpoints import check_head, head_digest
from ellips.distributed import broadcast_, gather_with_gradient
from ellips.gaussians import CovarianceType
from ellips.gaussians.shrinkage import Estimator, fit_shrunk
from ellips.head import EllipsHead, eval_mode, keep_from_broadcasts
from ellips.losses import CodingRateReduction, Isotropy, LatentLoss, Objective
from ellips.projector import LatentNorm
from ellips.regularization_search import RegularizationSearch
from ellips.types import FeatureBatch, HeadOutput
from ellips.validation import one_of

from .optimization import Optimization
from .origin import check_construction, check_origin
from .passes import followed_batches, naming_classes
from .regularizing import AUTO, choose, choose_auto, described, missed

_SHRINKAGE = 0.1  # gives a covariance to a class with fewer images than the latents have dimensions


class GenEllips(L.LightningModule):
    """GEN ELLIPS ([E26] section 5): features of a frozen encoder, a trained projector, one Gaussian per class.

    The datamodule owns the encoder and delivers :class:`ellips.types.FeatureBatch`; this module is small, and so are
    its checkpoints. The loss is that of the global batch: latents of all processes are gathered with gradients. Before
    each validation, and at the end of every epoch whose validation did not, the Gaussians are fitted exactly, in eval
    mode, in one streaming pass over ``datamodule.fit_dataloader()``.

    Logged: ``train/loss`` and every term as ``train/<name>``; ``val/accuracy`` and ``test/accuracy``; ``val/pooling``
    and ``val/shrinkage`` where they were chosen; where votes chose, also ``val/votes/accuracy``,
    ``val/votes/certified_accuracy@<radius>`` and ``val/votes/mean_radius`` of the choice; ``train/sketch_missed``.

    Args:
        in_features: Width of the features (linked from the datamodule in ``train.py``).
        num_classes: K (linked from the datamodule in ``train.py``).
        latent_dim: Width d of the latents; None classifies the features themselves.
        hidden_dim: Width of the projector's hidden layers; 0 makes it one linear map.
        latent_norm: ``"none"``, ``"ball"`` or ``"sphere"``; see :func:`ellips.projector.normalize_latents`.
        feature_power: Exponent of the features; see :class:`ellips.EllipsHead`.
        covariance_type: ``"full"``, ``"diagonal"``, or ``"low_rank"``: a common covariance from which each class
            differs in a few directions, for many classes and wide latents.
        rank: How many directions; of ``"low_rank"`` alone.
        pooling: See :class:`ellips.gaussians.Regularization`; None: 0, until ``regularization`` chooses it.
        shrinkage: See :class:`ellips.gaussians.Regularization`; None: 0.1, until ``regularization`` chooses it.
        sync_batchnorm: Whether BatchNorm uses the global batch's statistics when several processes train.
        objective: The losses; None: MCR² (50 warm-up steps) with isotropy after it, as [E26] for CIFAR-10.
        optimization: Optimiser and schedule; None: those published for CPP.
        regularization: How pooling and shrinkage are chosen after every exact fit, on the validation split. ``"auto"``:
            without a grid to type, in a way that does not depend on the latents' scale
            (:func:`ellips.automatic_regularization.choose_automatically`), unless one of them is given: then both
            stay. A grid: by certified accuracy, of latent certificates or, with a ``sigma``,
            of the votes of noisy copies. None: they stay.
        covariance_estimator: ``"moments"``, or scikit-learn's ``"ledoit_wolf"`` or ``"oas"``, which take the place of
            pooling and shrinkage and hold all latents of the training split in memory.
        train_mixture: Make the Gaussians parameters: fitted exactly once, before the first step, then trained with the
            objective, which must have a loss with ``gaussians="fitted"``.
        slow_fit_seconds: A pass for the exact fit that takes longer than this is warned about, once.

    Raises:
        ValueError: If an argument is out of its range, or two exclude each other.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        latent_dim: int | None = 128,
        hidden_dim: int = 4096,
        latent_norm: LatentNorm = "none",
        feature_power: float = 1.0,
        covariance_type: CovarianceType = "full",
        rank: int | None = None,
        pooling: float | None = None,
        shrinkage: float | None = None,
        sync_batchnorm: bool = True,
        objective: list[LatentLoss] | None = None,
        optimization: Optimization | None = None,
        regularization: RegularizationSearch | Literal["auto"] | None = AUTO,
        covariance_estimator: Literal["moments", "ledoit_wolf", "oas"] = "moments",
        train_mixture: bool = False,
        slow_fit_seconds: float = 30.0,
    ) -> None:
        super().__init__()
        # What concerns training alone is not needed to use a checkpoint; the run's config.yaml has it.
        self.save_hyperparameters(ignore=["objective", "optimization", "regularization", "train_mixture"])
        self.head = EllipsHead(
            in_features,
            num_classes,
            latent_dim,
            hidden_dim,
            latent_norm=latent_norm,
            feature_power=feature_power,
            covariance_type=covariance_type,
            rank=rank,
            pooling=0.0 if pooling is None else pooling,
            shrinkage=_SHRINKAGE if shrinkage is None else shrinkage,
            sync_batchnorm=sync_batchnorm,
        )
        if objective is None:
            objective = [CodingRateReduction(warmup_steps=50), Isotropy(start_step=50)]
        self.objective = Objective(objective)
        self.optimization = optimization or Optimization()
        fixed = covariance_estimator != "moments" or pooling is not None or shrinkage is not None
        self.regularization = None if regularization == AUTO and fixed else regularization
        self.covariance_estimator = covariance_estimator
        self.train_mixture = train_mixture
        self._check_mixture_settings()
        if train_mixture:
            self.head.ellips.trainable_()
        keep_from_broadcasts(self)
        self.slow_fit_seconds = slow_fit_seconds
        self.val_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.test_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.encoder_fingerprint: dict[str, Any] | None = None
        self.data_description: dict[str, Any] | None = None
        # Optimiser steps made when the Gaussians were last fitted; None: never.
        self.mixture_step: int | None = None

    def forward(self, features: Tensor) -> Tensor:
        """Return scores ``(N, K)``, float64, of features ``(N, in_features)``."""
        scores: Tensor = self.head(features)
        return scores

    # ------------------------------------------------------------------ steps

    def training_step(self, batch: FeatureBatch, batch_idx: int) -> dict[str, Tensor] | None:
        """Return the objective on the latents of the global batch; None for a head with nothing to train."""
        if not self._trains:
            return None
        self.objective.validate_index(batch.index)
        latents = gather_with_gradient(self.head.latents(batch.feature))
        labels = gather_with_gradient(batch.label)
        terms = self.objective(latents, labels, self.head.ellips, self.global_step)
        # Every process holds the global value already: nothing to reduce.
        self.log_dict(
            {f"train/{name}": value.detach() for name, value in terms.items()},
            on_step=True,
            on_epoch=False,
            prog_bar=True,
            batch_size=latents.shape[0],
        )
        return {"loss": terms["loss"]}

    # Lightning's own annotation knows tensors and mappings; it hands whatever an evaluation step returns to callbacks.
    def validation_step(self, batch: FeatureBatch, batch_idx: int) -> HeadOutput:  # type: ignore[override]  # see above
        """Return latents and scores of a validation batch."""
        return self._evaluate(batch, "val", self.val_accuracy)

    def test_step(self, batch: FeatureBatch, batch_idx: int) -> HeadOutput:  # type: ignore[override]  # see above
        """Return latents and scores of a test batch."""
        return self._evaluate(batch, "test", self.test_accuracy)

    def predict_step(self, batch: FeatureBatch, batch_idx: int) -> HeadOutput:
        """Return latents and scores of any batch."""
        latents = self.head.latents(batch.feature)
        return HeadOutput(latents, self.head.ellips(latents), batch.label, batch.index, batch.image)

    def _evaluate(self, batch: FeatureBatch, stage: str, accuracy: Metric) -> HeadOutput:
        output = self.predict_step(batch, 0)
        accuracy.update(output.scores.argmax(1), output.label)
        self.log(f"{stage}/accuracy", accuracy, on_step=False, on_epoch=True, prog_bar=True)
        return output

    @property
    def _trains(self) -> bool:
        """Whether the head has parameters: without a projector it is Gaussians, which are fitted, not trained."""
        return any(True for _ in self.head.parameters())

    def configure_optimizers(self) -> Any:  # noqa: ANN401 - one of the many types that Lightning takes
        """Return optimiser and schedule as :class:`Optimization` says; None for a head with nothing to train."""
        if not self._trains:
            return None
        optimizer = self.optimization.build_optimizer(self.head)
        schedule = self.optimization.build_schedule(optimizer, lambda: self.trainer.estimated_stepping_batches)
        lr_scheduler = {"scheduler": schedule, "interval": "step"}
        return optimizer if schedule is None else {"optimizer": optimizer, "lr_scheduler": lr_scheduler}

    # ------------------------------------------------------------------ the exact fit

    def fit_mixture(self) -> None:
        """Fit the Gaussians to the whole training split, in eval mode, in one pass (three where a sketch is taken).

        Every process must call it.

        Raises:
            TypeError: If the trainer has no datamodule with a ``fit_dataloader``.
            ValueError: If a class has no samples or its covariance is singular.
        """
        datamodule = getattr(self.trainer, "datamodule", None)
        if datamodule is None or not hasattr(datamodule, "fit_dataloader"):
            raise TypeError(
                "Expected the trainer to have a datamodule with `fit_dataloader()` (the training split, unshuffled and "
                f"unaugmented) but got {type(datamodule).__name__}; pass `datamodule=` to `trainer.fit`."
            )
        start = time.monotonic()
        if self.covariance_estimator != "moments":
            latents, labels, _ = self._all_latents(datamodule.fit_dataloader())
            estimator: Any = self.covariance_estimator
            fit_shrunk(self.head.ellips, gather_with_gradient(latents), gather_with_gradient(labels), estimator)
            broadcast_(self.head.ellips.state_dict().values())
        else:
            self.head.reset()
            for _ in range(self.head.moments.passes):
                for batch in followed_batches(self.trainer, datamodule.fit_dataloader(), "Fitting the Gaussians"):
                    if self.trainer.received_sigterm:  # which Lightning itself looks at between training batches alone
                        raise SIGTERMException
                    batch = self.trainer.strategy.batch_to_device(batch, self.device)
                    self.head.update(batch.feature, batch.label)
                self.head.moments.end_pass()
            self.head.finalize(self._choose_regularization(datamodule))
        self.mixture_step = self.trainer.global_step
        self._warn_if_slow(time.monotonic() - start)

    def _all_latents(self, loader: Iterable[Any]) -> tuple[Tensor, Tensor, Tensor]:
        """Return this process's eval-mode latents, labels and positions of a whole split."""
        latents, labels, index = [], [], []
        with eval_mode(self.head), torch.no_grad():
            for batch in followed_batches(self.trainer, loader, "Computing latents"):
                batch = self.trainer.strategy.batch_to_device(batch, self.device)
                latents.append(self.head.latents(batch.feature))
                labels.append(batch.label)
                index.append(batch.index)
        return torch.cat(latents), torch.cat(labels), torch.cat(index)

    def _choose_regularization(self, datamodule: Any) -> Tensor | None:  # noqa: ANN401 - any datamodule
        """Set pooling and shrinkage to the best on the validation split; return what is added to the covariances."""
        search, values, chosen = self.regularization, missed(self.head), None
        if search == AUTO:
            chosen = choose_auto(self.head, datamodule, self._all_latents, self.trainer)
        elif search is not None:
            chosen = choose(search, self.head, datamodule, self._all_latents, self.trainer)
            values |= described(chosen, search) if search.sigma is not None else {}
        if chosen is not None:
            self.head.ellips.regularization = chosen.regularization
            values |= {f"val/{name}": value for name, value in asdict(chosen.regularization).items()}
        # The values are the same in every process; not reduced at all, Lightning would warn of them.
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=1, sync_dist=True, reduce_fx="max")
        return None if chosen is None else chosen.added

    def _refresh_mixture(self) -> None:
        """Fit the Gaussians if they are older than the projector; trained ones are fitted once, to start from."""
        stale = self.mixture_step != self.trainer.global_step
        if not self.head.ellips.is_fitted if self.train_mixture else stale:
            with naming_classes(getattr(getattr(self.trainer, "datamodule", None), "class_names", ())):
                self.fit_mixture()

    def _check_mixture_settings(self) -> None:
        one_of(("moments", *get_args(Estimator)), covariance_estimator=self.covariance_estimator)
        if isinstance(self.regularization, RegularizationSearch) and self.covariance_estimator != "moments":
            raise ValueError(
                f"Expected no `regularization` with covariance_estimator={self.covariance_estimator!r}, which sets the "
                "shrinkage itself; leave one of them out."
            )
        if isinstance(self.regularization, RegularizationSearch):
            self.regularization.require_covariances(self.head.ellips.covariance_type)
        if self.train_mixture and not self.objective.needs_fitted_mixture:
            raise ValueError(
                "Expected an objective that trains the mixture for train_mixture=True but no loss reads it; add "
                "ScoreCrossEntropy or CertifiedRadius with gaussians='fitted'."
            )

    def _warn_if_slow(self, seconds: float) -> None:
        if seconds > self.slow_fit_seconds:
            rank_zero_warn(
                f"The exact Gaussian fit took {seconds:.0f} s and is repeated before every validation; cache the "
                "features, or validate less often (trainer.check_val_every_n_epoch)."
            )
            self.slow_fit_seconds = float("inf")

    def on_validation_start(self) -> None:
        """Fit the Gaussians first if this validation is part of a fit."""
        self._check_encoder()
        if self.trainer.state.fn == "fit":
            self._refresh_mixture()

    def on_train_start(self) -> None:
        """Fit the Gaussians first if the objective reads them."""
        if self.objective.needs_fitted_mixture and not self.head.ellips.is_fitted:
            self.fit_mixture()

    def on_train_batch_start(self, batch: FeatureBatch, batch_idx: int) -> None:
        """Say that the epoch has begun, which Lightning forgets when it resumes from the last batch of the one before.

        Resumed a second time within that epoch, it would otherwise begin it anew.
        """
        progress = self.trainer.fit_loop.epoch_progress
        current: Any = progress.current  # declared as a base class of what it is
        if current.ready == current.processed:
            progress.increment_ready()
            progress.increment_started()

    def on_train_epoch_end(self) -> None:
        """Leave no epoch with Gaussians older than the projector: checkpoints are written right after this."""
        self._refresh_mixture()

    # ------------------------------------------------------------------ checkpoints and the encoder

    def on_fit_start(self) -> None:
        """Refuse to train on with another encoder, and start from one mixture in all processes."""
        self._check_encoder()
        broadcast_([self.head.ellips.fitted])
        if self.head.ellips.is_fitted:
            broadcast_(self.head.ellips.state_dict().values())

    def on_test_start(self) -> None:
        """Refuse to test with another encoder."""
        self._check_encoder()

    on_predict_start = on_test_start

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Record what is needed to use the head elsewhere: its construction, the encoder it belongs to, a digest."""
        checkpoint["head"] = dict(self.head.config)
        checkpoint["encoder_fingerprint"] = self.encoder_fingerprint
        checkpoint["data"] = self.data_description
        checkpoint["mixture_step"] = self.mixture_step
        checkpoint["head_digest"] = head_digest(checkpoint["state_dict"], checkpoint["head"], self.encoder_fingerprint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over the encoder's fingerprint, unless it or the head was changed since the checkpoint was written."""
        check_head(checkpoint, "the checkpoint")
        check_construction(checkpoint["head"], self.head.config)
        self.encoder_fingerprint, self.data_description = checkpoint.get("encoder_fingerprint"), checkpoint.get("data")
        kept = {k: v for k, v in checkpoint["head"].items() if k in asdict(self.head.ellips.regularization)}
        self.head.ellips.regularization = replace(self.head.ellips.regularization, **kept)
        self.mixture_step = checkpoint.get("mixture_step")

    def _check_encoder(self) -> None:
        """Compare encoder and images with those this head was made for, or adopt them; see :mod:`.origin`."""
        check_origin(self, getattr(self.trainer, "datamodule", None))
