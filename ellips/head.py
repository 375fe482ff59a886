"""EllipsHead: a trained projector and the Gaussian classifier on its latents, the part that plugs into other models."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from os import PathLike
from typing import Any, Final

import torch
from torch import Tensor, nn

from ellips.checkpoints import HEAD, check_head, load_checkpoint
from ellips.classifier import Ellips
from ellips.distributed import broadcast_
from ellips.gaussians import CovarianceType, Mixture, collector
from ellips.precision import HALF_TYPES
from ellips.projector import LatentNorm, PowerTransform, Projector
from ellips.validation import validate_labels, validate_latents

_QUANTISED: Final = re.compile(r"torch\.(ao|nn)\..*quantized|torchao\.")  # packages of quantised layers and weights


class EllipsHead(nn.Module):
    """Features of a frozen encoder in, scores with certificates out.

    The projector is an ordinary module to train with any loss (:mod:`ellips.losses` has the paper's); the Gaussians
    are fitted to its eval-mode latents, from tensors (:meth:`fit`) or batch by batch (:meth:`reset`, :meth:`update`,
    :meth:`finalize`). They live in buffers, so ``state_dict`` carries them. In eval mode latents are computed with
    autocast off, so that the mixture and the certificates belong to the same map whatever the training precision was.
    Once the Gaussians are fitted a cast to half precision (``.to(torch.bfloat16)``, of a whole model, too) leaves the
    head as it is, and a projector that was quantised, or cast by itself, is refused until they are fitted to it.

    ``torch.compile(fullgraph=True)``, ``torch.export``, ONNX and ``torch.vmap`` take :meth:`forward` of a fitted head
    in eval mode. What they make of it does not look at values: features that are NaN give scores that are NaN. Scores
    are float64 there, too. Certificates are computed by :attr:`ellips`, outside of any graph.

    Args:
        in_features: Width of the features.
        num_classes: K.
        latent_dim: Width d of the latents, or None to classify the features themselves (no projector).
        hidden_dim: Width of the projector's hidden layers; 0 makes the projector one linear map.
        latent_norm: ``"none"``, ``"ball"`` (1-Lipschitz) or ``"sphere"`` (not); see
            :func:`ellips.projector.normalize_latents` for what each means for a certificate.
        feature_power: Exponent of the features before anything else, at most 1; 0.5 takes their roots, which makes
            features behind a ReLU more Gaussian, and leaves no Lipschitz constant: see
            :class:`ellips.projector.PowerTransform`.
        covariance_type: ``"full"``, ``"diagonal"`` or ``"low_rank"``.
        rank: Of ``"low_rank"`` alone; see :class:`ellips.Ellips`.
        pooling: See :class:`ellips.Ellips`.
        shrinkage: See :class:`ellips.Ellips`.
        sync_batchnorm: Whether BatchNorm uses the global batch's statistics when several processes train.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> head = EllipsHead(in_features=96, num_classes=10, latent_dim=16, hidden_dim=64, shrinkage=0.1)
        >>> features, labels = torch.randn(400, 96), torch.arange(400) % 10
        >>> scores = head.fit(features, labels)(features)
        >>> certificate = head.ellips.certify(head.latents(features))
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        latent_dim: int | None = 128,
        hidden_dim: int = 4096,
        *,
        latent_norm: LatentNorm = "none",
        feature_power: float = 1.0,
        covariance_type: CovarianceType = "full",
        rank: int | None = None,
        pooling: float = 0.0,
        shrinkage: float = 0.0,
        sync_batchnorm: bool = True,
    ) -> None:
        super().__init__()
        self._config: dict[str, Any] = {
            "in_features": in_features,
            "num_classes": num_classes,
            "latent_dim": latent_dim,
            "hidden_dim": hidden_dim,
            "latent_norm": latent_norm,
            "feature_power": feature_power,
            "covariance_type": covariance_type,
            "rank": rank,
            "sync_batchnorm": sync_batchnorm,
        }
        self.in_features = in_features
        self.num_classes = num_classes
        self.latent_dim = in_features if latent_dim is None else latent_dim
        self.projector: nn.Module = nn.Identity()
        if latent_dim is not None:
            self.projector = Projector(
                in_features, latent_dim, hidden_dim, latent_norm=latent_norm, sync_batchnorm=sync_batchnorm
            )
        elif latent_norm != "none":
            raise ValueError(f"Expected latent_norm='none' without a projector but got {latent_norm!r}.")
        if feature_power != 1:
            self.projector = nn.Sequential(PowerTransform(feature_power), self.projector)
        self.ellips = Ellips(
            num_classes,
            self.latent_dim,
            covariance_type=covariance_type,
            rank=rank,
            pooling=pooling,
            shrinkage=shrinkage,
        )
        self._fitted_to: tuple[str, ...] | None = None  # the projector's arithmetic when the Gaussians were fitted
        self.moments = collector(num_classes, self.latent_dim, covariance_type, rank, self.ellips.regularization)

    @property
    def config(self) -> dict[str, Any]:
        """The arguments that build this head again, with the regularisation as it is now."""
        return {**self._config, **asdict(self.ellips.regularization)}

    @classmethod
    def from_checkpoint(cls, path: str | PathLike[str]) -> EllipsHead:
        """Load the head out of a checkpoint that GenEllips' trainer wrote, without Lightning; in eval mode.

        Args:
            path: The ``.ckpt`` file. It is read as data only; no code in it is run.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file holds no head, is damaged or was altered.
        """
        return cls.from_loaded(load_checkpoint(path), path)

    @classmethod
    def from_loaded(cls, checkpoint: Any, path: str | PathLike[str]) -> EllipsHead:  # noqa: ANN401 - whatever the file holds
        """Do what :meth:`from_checkpoint` does with what :func:`load_checkpoint` has read from a file."""
        check_head(checkpoint, path)
        state = {k.removeprefix(HEAD): v for k, v in checkpoint["state_dict"].items() if k.startswith(HEAD)}
        try:
            head = cls(**checkpoint["head"])
            head.load_state_dict(state)
        except (TypeError, RuntimeError, AttributeError) as error:
            raise ValueError(f"{path}: expected a head of this project but it could not be built: {error}") from error
        return head.eval()

    def latents(self, features: Tensor) -> Tensor:
        """Return latents, differentiable in the features.

        Args:
            features: Shape ``(N, in_features)``, floating point.

        Returns:
            Shape ``(N, latent_dim)``, float32 (float64 if projector and features are float64).

        Raises:
            ValueError: If the features have another width or are not finite, or the projector was quantised or cast
                after the Gaussians were fitted.
        """
        if not self.training:
            self._check_projector()
        return self._project(features)

    def _project(self, features: Tensor) -> Tensor:
        validate_latents(features, self.in_features, "features")
        if self.training:
            latents: Tensor = self.projector(features)
            return latents
        with torch.autocast(features.device.type, enabled=False):
            weight = next(self.projector.parameters(), features)
            latents = self.projector(features.to(weight.dtype))
            return latents

    def forward(self, features: Tensor) -> Tensor:
        """Return scores, shape ``(N, K)``, float64.

        Args:
            features: Shape ``(N, in_features)``.

        Raises:
            ValueError: If the features have another width or are not finite.
            NotFittedError: If the Gaussians were not fitted.
        """
        scores: Tensor = self.ellips(self.latents(features))
        return scores

    def _check_projector(self) -> None:
        """Refuse a projector that computes otherwise than the one that the Gaussians were fitted to."""
        if self._fitted_to is None or torch.compiler.is_compiling():
            return
        if (present := arithmetic(self.projector)) != self._fitted_to:
            raise ValueError(
                f"Expected the projector that the Gaussians were fitted to ({', '.join(self._fitted_to) or 'float32'}) "
                f"but it was quantised or cast since ({', '.join(present) or 'float32'}), which moves its latents; fit "
                "the Gaussians to it: fit(features, labels), or reset(), update(...) and finalize()."
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> EllipsHead:
        """Move to another device, and cast: once fitted not to half precision, nor back, which would move latents."""
        fitted = self.ellips.is_fitted

        def keep(tensor: Tensor) -> Tensor:
            result = fn(tensor)
            halved = fitted and (_is_half(tensor) or _is_half(result)) and result.dtype != tensor.dtype
            return tensor.to(device=result.device) if halved else result

        super()._apply(keep, recurse)  # type: ignore[no-untyped-call]
        return self

    def _load_from_state_dict(self, *args: Any) -> None:
        """Load; what is loaded into is taken to be the projector that the Gaussians belong to."""
        super()._load_from_state_dict(*args)
        self._fitted_to = arithmetic(self.projector)

    def reset(self) -> None:
        """Forget what :meth:`update` collected; the mixture stays until :meth:`finalize`."""
        self.moments.reset()

    def update(self, features: Tensor, labels: Tensor) -> None:
        """Add a batch to the moments of the latents, in eval mode and without gradients.

        Covariances of low rank of many classes take several passes over the same data (``moments.passes``), each ended
        by ``moments.end_pass()``.

        Args:
            features: Shape ``(N, in_features)``.
            labels: Shape ``(N,)``, integers in ``[0, K)``.

        Raises:
            ValueError: If the features have another width or are not finite, or labels do not fit; nothing is added.
        """
        validate_latents(features, self.in_features, "features")
        validate_labels(labels, self.num_classes, features.shape[0])
        with eval_mode(self), torch.no_grad():
            self.moments.update(self._project(features), labels)

    def finalize(self, added: Tensor | None = None) -> EllipsHead:
        """Fit the Gaussians to everything collected since the last :meth:`reset`, over all processes.

        Every process must call it, and all hold the first one's mixture afterwards, to the last bit. The moments stay
        readable in :attr:`moments`, so that another regularisation can be tried without a new pass.

        Args:
            added: A covariance that is added to that of every class, as :func:`ellips.vote_search.select_by_votes`
                chooses one (``Candidate.added``).

        Returns:
            Itself, fitted.

        Raises:
            ValueError: If a class has no samples or its covariance is singular; the message names the class and cure.
        """
        self.ellips.fit_collected(self.moments.held(), added)
        broadcast_(self.ellips.state_dict().values())
        self._fitted_to = arithmetic(self.projector)
        return self

    def fit(self, features: Tensor, labels: Tensor, batch_size: int = 4096) -> EllipsHead:
        """Fit the Gaussians to labelled features in one go.

        Args:
            features: Shape ``(N, in_features)``, on any device.
            labels: Shape ``(N,)``, integers in ``[0, K)``.
            batch_size: Rows that go through the projector at once; bounds memory, changes nothing else.

        Returns:
            Itself, fitted.

        Raises:
            ValueError: As :meth:`update` and :meth:`finalize`.
        """
        validate_labels(labels, self.num_classes, features.shape[0])
        device = self.ellips.means.device
        self.reset()
        for _ in range(self.moments.passes):
            for part, target in zip(torch.split(features, batch_size), torch.split(labels, batch_size), strict=True):
                self.update(part.to(device), target.to(device))
            self.moments.end_pass()
        return self.finalize()


def arithmetic(projector: nn.Module) -> tuple[str, ...]:
    """Return what a projector computes in beside float32 and float64: half precisions, kinds of quantised layers."""
    halves = {str(p.dtype) for p in projector.parameters() if _is_half(p)}
    weights = {type(p.data) for p in projector.parameters()}
    quantised = {kind for kind in (*map(type, projector.modules()), *weights) if _QUANTISED.match(kind.__module__)}
    return tuple(sorted(halves | {f"{kind.__module__}.{kind.__qualname__}" for kind in quantised}))


def _is_half(tensor: Tensor) -> bool:
    return tensor.dtype in HALF_TYPES.values()


class _MixtureBuffers:
    """Names of the buffers of all mixtures in a module, as they are when they are asked for.

    Mixtures may be made trainable after the module was built: their parameters' gradients must not be left out.
    """

    def __init__(self, module: nn.Module, others: Iterable[str]) -> None:
        self.module, self.others = module, sorted(others)

    def __iter__(self) -> Iterator[str]:
        mixtures = [(prefix, part) for prefix, part in self.module.named_modules() if isinstance(part, Mixture)]
        names = {f"{prefix}.{name}".removeprefix(".") for prefix, part in mixtures for name, _ in part.named_buffers()}
        return iter(sorted(names.union(self.others)))


def keep_from_broadcasts(module: nn.Module) -> None:
    """Keep DistributedDataParallel from sending mixtures from process to process at every training step.

    A mixture changes when it is fitted, which leaves the same one in every process (:meth:`EllipsHead.finalize`), and
    not from step to step. With K full covariances in d dimensions its buffers are K d² float64 numbers: 8.4 GB for
    ImageNet's 1,000 classes in 1,024 dimensions. Buffers of others, such as BatchNorm's statistics, are sent as before,
    and what is trained of a mixture is parameters, whose gradients are averaged as any others.
    :class:`lightning_modules.GenEllips` calls it for itself; a module of your own that holds an :class:`EllipsHead`
    calls it at the end of its ``__init__``. When the module is wrapped, mixtures are no longer made the same in all
    processes: one that was fitted before is the same if it comes from the same file or fit.

    Args:
        module: What will be wrapped: the outermost module.
    """
    # The attribute by which torch lets a module say so. Its own argument, broadcast_buffers, is all or nothing, and
    # belongs to the strategy, which a module does not choose.
    others = getattr(module, "_ddp_params_and_buffers_to_ignore", ())
    module._ddp_params_and_buffers_to_ignore = _MixtureBuffers(module, others)  # type: ignore[assignment]  # no submodule


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Put a module into eval mode and every part of it back into the mode it had."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True
