"""The stored numbers of a Gaussian mixture, and what follows from them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn

from ellips.errors import NotFittedError
from ellips.gaussians.fingerprint import fingerprint
from ellips.gaussians.low_rank import LowRank
from ellips.gaussians.regularization import Regularization
from ellips.gaussians.structures import Diagonal, Full
from ellips.precision import keep_dtype
from ellips.validation import at_least, one_of, truth

CovarianceType = Literal["full", "diagonal", "low_rank"]
STRUCTURES: dict[str, type[Full | Diagonal | LowRank]] = {"full": Full, "diagonal": Diagonal, "low_rank": LowRank}


class MixtureParameters(nn.Module):
    """Means, precision factors and priors of K Gaussians.

    The precision factors A_k (lower triangular, A_k = L_k⁻¹ for Σ_k = L_kL_kᵀ, so P_k = A_kᵀA_k) are what is stored:
    they *define* the mixture, so neither its scores nor its certificates contain the error of an inversion. Covariances
    of low rank store the common factor, and directions with scales for each class
    (:class:`ellips.gaussians.low_rank.LowRank`). The state is float64 whatever the module is cast to, and lives in
    buffers, so checkpoints carry it.

    Args:
        num_classes: K, at least 2.
        dim: Width d of the latents.
        covariance_type: ``"full"``, ``"diagonal"`` or ``"low_rank"``.
        rank: In how many directions a class differs from the common covariance, from 0 to d; of ``"low_rank"`` alone.
        pooling: See :class:`ellips.gaussians.Regularization`.
        shrinkage: See :class:`ellips.gaussians.Regularization`.

    Raises:
        ValueError: If an argument is out of its range.
    """

    means: Tensor
    precision_factors: Tensor
    directions: Tensor
    scales: Tensor
    log_priors: Tensor
    fitted: Tensor

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        covariance_type: CovarianceType = "full",
        rank: int | None = None,
        pooling: float = 0.0,
        shrinkage: float = 0.0,
    ) -> None:
        super().__init__()
        at_least(2, num_classes=num_classes)
        at_least(1, dim=dim)
        one_of(get_args(CovarianceType), covariance_type=covariance_type)
        self.num_classes = num_classes
        self.dim = dim
        validate_rank(covariance_type, rank, dim)
        self.covariance_type: CovarianceType = covariance_type
        self.rank = rank
        self.regularization = Regularization(pooling, shrinkage)
        self._structure = STRUCTURES[covariance_type]
        self.register_buffer("means", torch.zeros(num_classes, dim, dtype=torch.float64))
        shapes = self._structure.shapes(num_classes, dim, rank or 0)
        for name, shape in zip(self._structure.stored, shapes, strict=True):
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("log_priors", torch.zeros(num_classes, dtype=torch.float64))
        self.register_buffer("fitted", torch.tensor(False))
        self._known_fitted = False  # what `fitted` held when it was last looked at
        # Derived quantities of the current mixture (see `derived`); never part of the state.
        self._derived: dict[str, Any] = {}
        self._derived_key: tuple[tuple[Tensor, int, int], ...] = ()
        self._derived_content: tuple[int, ...] = ()

    def _set(self, means: Tensor, stored: Sequence[Tensor], priors: Tensor) -> None:
        """Store a mixture; everything was checked but the priors."""
        self._refuse_unfit(means)
        if priors.shape != (self.num_classes,):
            raise ValueError(f"Expected `priors` to have shape ({self.num_classes},) but got {tuple(priors.shape)}.")
        if not bool((priors > 0).all()) or abs(float(priors.sum()) - 1) > 1e-6:
            raise ValueError(f"Expected `priors` to be positive and to sum to 1 but got {priors.tolist()}.")
        mine = tuple(getattr(self, name) for name in self._structure.stored)
        if any(a.shape != b.shape for a, b in zip(mine, stored, strict=True)):
            raise ValueError(
                f"Expected factors of shapes {[tuple(x.shape) for x in mine]} but got "
                f"{[tuple(x.shape) for x in stored]}."
            )
        with torch.no_grad():
            self.means.copy_(means)
            for own, value in zip(mine, stored, strict=True):
                own.copy_(value)
            self.log_priors.copy_((priors / priors.sum()).log())
            self.fitted.fill_(True)
            self._known_fitted = True
        self._forget()

    def _forget(self) -> None:
        """Let go of derived quantities."""
        self._derived, self._derived_key = {}, ()

    def _refuse_unfit(self, means: Tensor) -> None:
        if means.shape != self.means.shape:
            raise ValueError(f"Expected means of shape {tuple(self.means.shape)} but got {tuple(means.shape)}.")

    def trainable_(self) -> Self:
        """Turn means, precision factors and log-priors into parameters, to be trained end to end.

        Names in the state dict stay as they are. Only the factors' lower triangle is read, any nonzero diagonal gives
        a positive definite precision, and the log-priors are normalised where they are used, so that no step of an
        optimiser can leave the family. Of covariances of low rank the common factor and the scales are trained; the
        directions stay. Call it before the optimiser is built, usually on a fitted mixture.
        """
        for name in ("means", *self._structure.trained, "log_priors"):
            value = getattr(self, name)
            if not isinstance(value, nn.Parameter):
                del self._buffers[name]
                self.register_parameter(name, nn.Parameter(value.clone()))
        return self

    @property
    def stored_names(self) -> tuple[str, ...]:
        """Names of the tensors that define the mixture, which all are in its state."""
        return ("means", *self._structure.stored, "log_priors")

    @property
    def stored(self) -> tuple[Tensor, ...]:
        """The tensors that define the mixture."""
        return tuple(getattr(self, name) for name in self.stored_names)

    @property
    def structure(self) -> Full | Diagonal | LowRank:
        """The precisions as they are stored."""
        return self._structure(*(getattr(self, name) for name in self._structure.stored))

    @property
    def is_fitted(self) -> bool:
        """Whether there is a mixture to classify with; while a graph is written down, as it was before."""
        found = truth(self.fitted)
        if found is not None:
            self._known_fitted = found
        return self._known_fitted

    @property
    def factors(self) -> Tensor:
        """Precision factors A_k with P_k = A_kᵀA_k, shape ``(K, d, d)`` or, of diagonal covariances, ``(K, d)``.

        Lower triangular, but for covariances of low rank, whose factors are written out here.
        """
        structure = self.structure
        return structure.factor(self._classes) if isinstance(structure, LowRank) else structure.factors

    @property
    def _classes(self) -> Tensor:
        return torch.arange(self.num_classes, device=self.means.device)

    @property
    def precisions(self) -> Tensor:
        """Precision matrices P_k, shape ``(K, d, d)``."""
        return self.structure.precisions(self._classes)

    @property
    def covariances(self) -> Tensor:
        """Covariance matrices Σ_k, shape ``(K, d, d)``."""
        return self.structure.covariances()

    @property
    def log_dets(self) -> Tensor:
        """Log-determinants of the covariances, log det Σ_k, shape ``(K,)``."""
        return -2 * torch.stack([part.abs().log().sum(-1) for part in self.structure.logs]).sum(0)

    @property
    def scale(self) -> Tensor:
        """Root of the mixture's total variance, √E‖z − E z‖², a scalar: a unit in which radii do not depend on it."""

        def compute() -> Tensor:
            between = (self.means - self.priors @ self.means).square().sum(1)
            return (self.priors @ (between + self.structure.traces())).sqrt()

        scale: Tensor = self.derived("scale", compute)
        return scale.clone()  # what is remembered is nobody's to write to

    @property
    def priors(self) -> Tensor:
        """Class priors π_k, shape ``(K,)``."""
        return self.log_priors.log_softmax(0).exp()

    @property
    def offsets(self) -> Tensor:
        """The constant part of each score, −log det Σ_k + 2 log π_k, shape ``(K,)``."""
        return 2 * self.log_priors.log_softmax(0) - self.log_dets

    @property
    def offset_sizes(self) -> Tensor:
        """Sums of the absolute values that offsets are made of, shape ``(K,)``: their errors do not cancel."""
        logs = torch.stack([part.abs().log().abs().sum(-1) for part in self.structure.logs]).sum(0)
        return 2 * (logs + self.log_priors.abs() + self.log_priors.log_softmax(0).abs())

    def digest(self) -> str:
        """SHA-256 of the mixture: equal for two mixtures if and only if they compute the same."""
        self._require_fitted()
        kind = self.covariance_type if self.rank is None else f"{self.covariance_type} {self.rank}"
        sha = hashlib.sha256(f"ellips-1 {kind} {self.num_classes} {self.dim}\n".encode())
        for tensor in chain((self.means,), self.structure.read, (self.log_priors,)):
            sha.update(tensor.detach().cpu().contiguous().numpy().astype("<f8", copy=False).data)
        return sha.hexdigest()

    def _require_fitted(self) -> None:
        if not self.is_fitted:
            raise NotFittedError(
                f"Expected a fitted mixture but this {type(self).__name__} has none; call `fit(z, labels)` or "
                "`fit_moments(...)`, build it with `from_parameters(...)`, or load a state dict that holds one."
            )

    # ------------------------------------------------------------------ state

    def derived(self, name: str, compute: Callable[[], Any]) -> Any:  # noqa: ANN401 - as the caller computes it
        """Return ``compute()``, remembered under ``name`` until the mixture changes or moves to another device.

        Changes through ``.data`` or NumPy count, too: the tensors are read through at every call, which takes about as
        long as scoring ten points.
        While a trainable mixture is being differentiated nothing is remembered.
        """
        tensors = self.stored
        fresh = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
        if any(tensor.is_inference() for tensor in tensors):  # such tensors do not count their changes
            return compute()
        # The tensors themselves are part of the key: an address alone may come to hold another one.
        key, content = tuple((tensor, tensor.data_ptr(), tensor._version) for tensor in tensors), fingerprint(tensors)
        known = self._derived_key
        same = bool(known) and all(a[0] is b[0] and a[1:] == b[1:] for a, b in zip(key, known, strict=True))
        if not same or content != self._derived_content:
            self._derived, self._derived_key, self._derived_content = {}, key, content
        if not fresh and name in self._derived:
            return self._derived[name]
        # Tensors made in inference mode could not take part in training later.
        with torch.inference_mode(False), torch.no_grad():
            value = compute()
        if not fresh:
            self._derived[name] = value
        return value

    def _load_from_state_dict(self, *args: Any) -> None:
        """Load, and look whether what was loaded is fitted; with ``assign=True``, too, it is float64 from then on."""
        super()._load_from_state_dict(*args)
        for name, value in zip(self.stored_names, self.stored, strict=True):
            if value.dtype != torch.float64:
                wide = value.detach().double()
                trained = isinstance(value, nn.Parameter)
                setattr(self, name, nn.Parameter(wide, value.requires_grad) if trained else wide)
        if not self.fitted.is_meta:
            self._known_fitted = self.is_fitted

    def __getstate__(self) -> dict[str, Any]:
        """Leave the derived quantities out of copies and pickles."""
        return {**self.__dict__, "_derived": {}, "_derived_key": (), "_derived_content": ()}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move to another device but stay in float64: a certificate in half precision would not be one."""
        super()._apply(keep_dtype(fn), recurse)  # type: ignore[no-untyped-call]
        return self

    def extra_repr(self) -> str:
        """Describe the mixture in ``repr``."""
        rank = "" if self.rank is None else f"rank={self.rank}, "
        return (
            f"num_classes={self.num_classes}, dim={self.dim}, covariance_type={self.covariance_type!r}, {rank}"
            f"pooling={self.regularization.pooling}, shrinkage={self.regularization.shrinkage}, fitted={self.is_fitted}"
        )


def validate_rank(covariance_type: str, rank: int | None, dim: int) -> None:
    """Refuse a rank that does not go with the covariances.

    Raises:
        ValueError: If there is none for ``"low_rank"``, one for other covariances, or it is not from 0 to d.
    """
    if covariance_type != "low_rank":
        if rank is not None:
            raise ValueError(
                f"Expected no `rank` with covariance_type={covariance_type!r} but got {rank}; leave it out, or use "
                "covariance_type='low_rank'."
            )
    elif rank is None or not 0 <= rank <= dim:
        raise ValueError(
            f"Expected `rank` to be from 0 to the latent dimension, {dim}, with covariance_type='low_rank' but got "
            f"{rank}."
        )
