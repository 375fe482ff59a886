"""Training of 1-Lipschitz encoders, of any architecture that the project can prove."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from safetensors.torch import save
from torch import Tensor

from ellips.distributed import gather_with_gradient
from ellips.encoders import (
    EncoderArchitecture,
    LipschitzArchitecture,
    LipschitzEncoder,
    MarginClassifier,
    OrthogonalMuon,
)
from ellips.encoders.augmentation import add_noise, cut_out, flip_and_shift, step_generator
from ellips.encoders.lipschitz import export_encoder
from ellips.encoders.weights import file_digest
from ellips.files import replacing
from ellips.gaussians import Mixture
from ellips.losses import LatentLoss, Objective, emma, offset_cross_entropy
from ellips.metrics import CertifiedAccuracy
from ellips.types import FeatureBatch, ImageBatch
from ellips.validation import at_least, one_of, positive

from .encoder_training import EncoderTraining, images_of


class LipschitzEncoderTraining(EncoderTraining):
    """Trains a 1-Lipschitz encoder, and writes it in plain layers at the end of fit.

    Classes are told apart by unit directions: the corners of a regular simplex, or learned ones. On 1-Lipschitz
    features a lead over a rival is a distance between images, and the losses ask for such distances. The encoder that
    comes out is for :class:`ellips.encoders.LipschitzEncoder`, with Gaussians fitted to its features;
    ``<export_name>-head.safetensors`` is the linear classifier, for :class:`ellips.encoders.LinearHead`.

    Matrices that have to stay orthogonal do so by :class:`ellips.encoders.OrthogonalMuon`, with a learning rate that
    rises and falls along lines; architectures without them have Adam with a one-cycle schedule.

    Logged: ``train/loss``; ``val/accuracy`` and ``val/certified_accuracy/linear@<radius>`` of the linear classifier.

    Args:
        num_classes: K (linked from the datamodule in ``train_encoder.py``).
        architecture: The layers; None: those of the shipped encoder of digits.
        objective: ``"cross_entropy"`` with the label's score lowered by ``margin``, or ``"emma"``
            (:func:`ellips.losses.emma`) with ``margin`` as its radius.
        temperature: Factor of the scores before the softmax; the larger, the more the closest images count.
        margin: Distance by which a score is asked to lead; it sets accuracy against radius.
        learned_directions: Learn directions and biases, instead of a simplex.
        latent_losses: Losses on the features besides, such as the exact certified radius of the Gaussians themselves,
            fitted to each global batch (:class:`ellips.losses.CertifiedRadius`); left out where a batch lacks a class.
        pooling: Of the Gaussians of ``latent_losses``.
        shrinkage: Of the Gaussians of ``latent_losses``.
        noise: Standard deviation of Gaussian noise on the [0, 1] pixels of training images.
        flip: Mirror training images left to right at random.
        shift: Move training images by up to so many pixels.
        cutout: Side, in pixels, of a square to blank in each training image; 0: none.
        learning_rate: Peak of the schedule; for orthogonal matrices the angle of a step, 0.02 or so at any width.
        other_rate: Factor of the learning rate for what is no orthogonal matrix, where there are any.
        radii: Radii above 0, in ascending order, at which validation logs the certified accuracy.
        compile: Let torch.compile translate the encoder; on a CPU it needs a C++ compiler.
        export_name: Stem of the files written to the run folder at the end of fit.

    Raises:
        ValueError: If there are fewer features than a simplex needs, or an argument is out of its range.
    """

    packages: ClassVar[tuple[str, ...]] = ("torch", "lightning")

    def __init__(
        self,
        num_classes: int,
        architecture: EncoderArchitecture | None = None,
        objective: Literal["cross_entropy", "emma"] = "cross_entropy",
        temperature: float = 10.0,
        margin: float = 1.0,
        learned_directions: bool = False,
        latent_losses: Sequence[LatentLoss] = (),
        pooling: float = 0.8,
        shrinkage: float = 0.5,
        noise: float = 0.15,
        flip: bool = False,
        shift: int = 0,
        cutout: int = 0,
        learning_rate: float = 5e-3,
        other_rate: float = 0.1,
        radii: Sequence[float] = (0.25, 0.5, 1.0),
        compile: bool = False,
        export_name: str = "encoder",
    ) -> None:
        super().__init__()
        positive(temperature=temperature, learning_rate=learning_rate, other_rate=other_rate)
        at_least(0, noise=noise, shift=shift, cutout=cutout)
        one_of(("cross_entropy", "emma"), objective=objective)
        self.architecture = LipschitzArchitecture() if architecture is None else architecture
        self.settings = {
            "objective": objective,
            "temperature": temperature,
            "margin": margin,
            "learned_directions": learned_directions,
            "latent_losses": [_described(loss) for loss in latent_losses],
            "pooling": pooling,
            "shrinkage": shrinkage,
            "noise": noise,
            "flip": flip,
            "shift": shift,
            "cutout": cutout,
            "learning_rate": learning_rate,
            "other_rate": other_rate,
        }
        self.recipe = {"architecture": self.architecture.to_record(), **self.settings}
        self.save_hyperparameters(ignore=["architecture", "latent_losses"])
        self.encoder = self.architecture.trainable()
        self.classifier = MarginClassifier(num_classes, self.architecture.feature_dim, learned_directions)
        self.latent_objective = Objective(latent_losses) if latent_losses else None
        if self.latent_objective is not None and self.latent_objective.needs_fitted_mixture:
            raise ValueError("Expected `latent_losses` of gaussians='batch' but got 'fitted', which nothing fits here.")
        self.num_classes = num_classes
        self.pooling = pooling
        self.shrinkage = shrinkage
        self.objective = objective
        self.temperature = temperature
        self.margin = margin
        self.noise = noise
        self.flip = flip
        self.shift = shift
        self.cutout = cutout
        self.learning_rate = learning_rate
        self.other_rate = other_rate
        self.radii = tuple(radii)
        self.export_name = export_name
        self.certified = CertifiedAccuracy((0.0, *self.radii))
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        self.compiled = compile
        if compile:
            self.encoder.compile()

    def on_fit_start(self) -> None:
        """Refuse to translate for a CPU where nothing can.

        Raises:
            RuntimeError: If there is no C++ compiler.
        """
        compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
        if self.compiled and self.device.type == "cpu" and sys.platform != "win32" and shutil.which(compiler) is None:
            raise RuntimeError(
                f"Expected a C++ compiler for compile=True on a CPU but found no {compiler}; install one, name one in "
                "CXX, or give --model.compile=false, which is slower."
            )

    def forward(self, images: Tensor) -> Tensor:
        """Return scores ``(N, K)`` of images ``(N, C, H, W)``."""
        scores: Tensor = self.classifier(self.encoder(images))
        return scores

    def changed(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return images ``(N, C, H, W)`` as training sees them: mirrored, moved, with a square blanked, noisy."""
        images = flip_and_shift(images, self.flip, self.shift, generator)
        images = cut_out(images, self.cutout, generator)
        return add_noise(images, self.noise, generator) if self.noise else images

    def loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Return the objective of scores ``(N, K)`` with labels ``(N,)``."""
        if self.objective == "emma":
            return emma(scores, labels, self.classifier.edges(), self.temperature, self.margin)
        return offset_cross_entropy(scores, labels, self.temperature, self.margin)

    def latent_loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return the weighted sum of the losses on features ``(N, D)``; 0 if the global batch lacks a class."""
        every, labels = gather_with_gradient(features), gather_with_gradient(labels)
        if self.latent_objective is None or len(labels.unique()) < self.num_classes:
            return 0.0 * every.sum()
        # Nothing but its settings is read: each batch has its own Gaussians.
        like = Mixture(self.num_classes, every.shape[1], pooling=self.pooling, shrinkage=self.shrinkage)
        terms: dict[str, Tensor] = self.latent_objective(every, labels, like.to(every.device), self.global_step)
        return terms["loss"]

    def training_step(self, batch: FeatureBatch | ImageBatch, batch_idx: int) -> Tensor:
        """Return the objective of changed images."""
        generator = step_generator(self.device, self.seed, self.global_step, self.global_rank)
        features = self.encoder(self.changed(images_of(batch), generator))
        loss = self.loss(self.classifier(features), batch.label)
        if self.latent_objective is not None:
            own = self.latent_loss(features, batch.label)
            self.log("train/latent_loss", own.detach())
            loss = loss + own
        self.log("train/loss", loss.detach(), prog_bar=True)
        return loss

    def validation_step(self, batch: FeatureBatch | ImageBatch, batch_idx: int) -> None:
        """Count what the linear classifier gets right, and how far around."""
        prediction, radius = self.classifier.certify(self(images_of(batch)))
        self.certified.update(radius, prediction, batch.label)

    def on_validation_epoch_end(self) -> None:
        """Log clean and certified accuracy of the linear classifier."""
        names = ("accuracy", *(f"certified_accuracy/linear@{limit:g}" for limit in self.radii))
        for name, value in zip(names, self.certified.compute(), strict=True):  # of all processes
            self.log(f"val/{name}", value, prog_bar=name == "accuracy", rank_zero_only=False, sync_dist=False)
        self.certified.reset()

    def make_optimizer(self, dtype: torch.dtype = torch.float32) -> torch.optim.Optimizer:
        """Return Muon on the manifold where the architecture has one, and Adam elsewhere, at the peak rate.

        Args:
            dtype: Of the products by which Muon chooses its direction.
        """
        matrices = self.architecture.manifold(self.encoder)
        known = {id(parameter) for parameter in matrices}
        others = [parameter for parameter in self.parameters() if id(parameter) not in known]
        if not matrices:
            return torch.optim.Adam(others, lr=self.learning_rate)
        groups = [
            {"params": matrices, "orthogonal": True},
            {"params": others, "lr": self.other_rate * self.learning_rate},
        ]
        return OrthogonalMuon(groups, lr=self.learning_rate, dtype=dtype)

    def configure_optimizers(self) -> Any:  # noqa: ANN401 - one of the many types that Lightning takes
        """Return the optimiser with its schedule."""
        optimizer = self.make_optimizer(torch.bfloat16 if "bf16" in str(self.trainer.precision) else torch.float32)
        return (self.linear_decay if isinstance(optimizer, OrthogonalMuon) else self.one_cycle)(optimizer)

    def export(self, path: Path) -> dict[str, Any]:
        """Write the encoder in plain layers and prove it; the record has both constants."""
        self.encoder.eval()
        with replacing(path) as partial:
            before = export_encoder(self.encoder, self.architecture, partial)
        head = path.with_stem(f"{path.stem}-head")
        linear = {"weight": self.classifier.directions, "bias": self.classifier.bias}
        with replacing(head) as partial:
            partial.write_bytes(save({name: value.detach().cpu().contiguous() for name, value in linear.items()}))
        return {
            "architecture": "ellips.encoders.LipschitzEncoder",
            "proven_constant": LipschitzEncoder(path).constant,
            "proven_constant_before_division": before,
            "head": {"file": head.name, "sha256": file_digest(head), "num_classes": len(self.classifier.bias)},
        }


def _described(loss: LatentLoss) -> dict[str, Any]:
    """Return a loss's class and numbers, for the record."""
    given = {
        name: value for name, value in vars(loss).items() if isinstance(value, int | float | str) and name != "training"
    }
    return {"class_path": f"{type(loss).__module__}.{type(loss).__qualname__}", **given}
