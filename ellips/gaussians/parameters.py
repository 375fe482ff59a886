"""The stored numbers of a Gaussian mixture, and what follows from them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn

from ellips.errors import NotFittedError
from ellips.gaussians.fingerprint import fingerprint
from ellips.gaussians.regularization import Regularization
from ellips.precision import keep_dtype
from ellips.validation import at_least, one_of

CovarianceType = Literal["full", "diagonal"]


class MixtureParameters(nn.Module):
    """Means, precision factors and priors of K Gaussians.

    The precision factors A_k (lower triangular, A_k = L_k⁻¹ for Σ_k = L_kL_kᵀ, so P_k = A_kᵀA_k) are what is stored:
    they *define* the mixture, so neither its scores nor its certificates contain the error of an inversion. The state
    is float64 whatever the module is cast to, and lives in buffers, so checkpoints carry it.

    Args:
        num_classes: K, at least 2.
        dim: Width d of the latents.
        covariance_type: ``"full"`` or ``"diagonal"``.
        pooling: See :class:`ellips.gaussians.Regularization`.
        shrinkage: See :class:`ellips.gaussians.Regularization`.

    Raises:
        ValueError: If an argument is out of its range.
    """

    means: Tensor
    precision_factors: Tensor
    log_priors: Tensor
    fitted: Tensor

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        covariance_type: CovarianceType = "full",
        pooling: float = 0.0,
        shrinkage: float = 0.0,
    ) -> None:
        super().__init__()
        at_least(2, num_classes=num_classes)
        at_least(1, dim=dim)
        one_of(get_args(CovarianceType), covariance_type=covariance_type)
        self.num_classes = num_classes
        self.dim = dim
        self.covariance_type: CovarianceType = covariance_type
        self.regularization = Regularization(pooling, shrinkage)
        shape = (num_classes, dim) if covariance_type == "diagonal" else (num_classes, dim, dim)
        self.register_buffer("means", torch.zeros(num_classes, dim, dtype=torch.float64))
        self.register_buffer("precision_factors", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("log_priors", torch.zeros(num_classes, dtype=torch.float64))
        self.register_buffer("fitted", torch.tensor(False))
        # Derived quantities of the current mixture (see `derived`); never part of the state.
        self._derived: dict[str, Any] = {}
        self._derived_key: tuple[tuple[Tensor, int, int], ...] = ()
        self._derived_content: tuple[int, ...] = ()

    def _set(self, means: Tensor, factors: Tensor, priors: Tensor) -> None:
        """Store a mixture; everything was checked but the priors."""
        if priors.shape != (self.num_classes,):
            raise ValueError(f"Expected `priors` to have shape ({self.num_classes},) but got {tuple(priors.shape)}.")
        if not bool((priors > 0).all()) or abs(float(priors.sum()) - 1) > 1e-6:
            raise ValueError(f"Expected `priors` to be positive and to sum to 1 but got {priors.tolist()}.")
        if means.shape != self.means.shape or factors.shape != self.precision_factors.shape:
            raise ValueError(
                f"Expected means of shape {tuple(self.means.shape)} and factors of shape "
                f"{tuple(self.precision_factors.shape)} but got {tuple(means.shape)} and {tuple(factors.shape)}."
            )
        with torch.no_grad():
            self.means.copy_(means)
            self.precision_factors.copy_(factors)
            self.log_priors.copy_((priors / priors.sum()).log())
            self.fitted.fill_(True)
        self._derived, self._derived_key = {}, ()

    def trainable_(self) -> Self:
        """Turn means, precision factors and log-priors into parameters, to be trained end to end.

        Names in the state dict stay as they are. Only the factors' lower triangle is read, any nonzero diagonal gives
        a positive definite precision, and the log-priors are normalised where they are used, so that no step of an
        optimiser can leave the family. Call it before the optimiser is built, usually on a fitted mixture.
        """
        for name in ("means", "precision_factors", "log_priors"):
            value = getattr(self, name)
            if not isinstance(value, nn.Parameter):
                del self._buffers[name]
                self.register_parameter(name, nn.Parameter(value.clone()))
        return self

    @property
    def is_fitted(self) -> bool:
        """Whether there is a mixture to classify with."""
        return bool(self.fitted)

    @property
    def factors(self) -> Tensor:
        """Precision factors A_k, shape ``(K, d, d)`` lower triangular or ``(K, d)``; P_k = A_kᵀA_k."""
        return self.precision_factors if self.covariance_type == "diagonal" else self.precision_factors.tril()

    @property
    def precisions(self) -> Tensor:
        """Precision matrices P_k, shape ``(K, d, d)``."""
        return gram(self.factors)

    @property
    def covariances(self) -> Tensor:
        """Covariance matrices Σ_k, shape ``(K, d, d)``."""
        roots = self._roots()
        return torch.diag_embed(roots.square()) if roots.ndim == 2 else roots @ roots.mT

    def _roots(self) -> Tensor:
        """A_k⁻¹, whose product with its transpose is Σ_k."""
        factors = self.factors
        if factors.ndim == 2:
            return factors.reciprocal()
        eye = torch.eye(self.dim, dtype=factors.dtype, device=factors.device)
        roots: Tensor = torch.linalg.solve_triangular(factors, eye.expand_as(factors), upper=False)
        return roots

    @property
    def log_dets(self) -> Tensor:
        """Log-determinants of the covariances, log det Σ_k, shape ``(K,)``."""
        factors = self.precision_factors
        diagonal = factors if factors.ndim == 2 else factors.diagonal(dim1=-2, dim2=-1)
        log_dets: Tensor = -2 * diagonal.abs().log().sum(-1)
        return log_dets

    @property
    def scale(self) -> Tensor:
        """Root of the mixture's total variance, √E‖z − E z‖², a scalar: a unit in which radii do not depend on it."""

        def compute() -> Tensor:
            between = (self.means - self.priors @ self.means).square().sum(1)
            within = self._roots().square().flatten(1).sum(1)
            return (self.priors @ (between + within)).sqrt()

        scale: Tensor = self.derived("scale", compute)
        return scale

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
        factors = self.precision_factors
        diagonal = factors if factors.ndim == 2 else factors.diagonal(dim1=-2, dim2=-1)
        logs = diagonal.abs().log().abs().sum(-1)
        return 2 * (logs + self.log_priors.abs() + self.log_priors.log_softmax(0).abs())

    def digest(self) -> str:
        """SHA-256 of the mixture: equal for two mixtures if and only if they compute the same."""
        self._require_fitted()
        sha = hashlib.sha256(f"ellips-1 {self.covariance_type} {self.num_classes} {self.dim}\n".encode())
        for tensor in (self.means, self.factors, self.log_priors):
            sha.update(tensor.detach().cpu().contiguous().numpy().astype("<f8").tobytes())
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
        tensors = (self.means, self.precision_factors, self.log_priors)
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

    def __getstate__(self) -> dict[str, Any]:
        """Leave the derived quantities out of copies and pickles."""
        return {**self.__dict__, "_derived": {}, "_derived_key": (), "_derived_content": ()}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move to another device but stay in float64: a certificate in half precision would not be one."""
        super()._apply(keep_dtype(fn), recurse)  # type: ignore[no-untyped-call]
        return self

    def extra_repr(self) -> str:
        """Describe the mixture in ``repr``."""
        return (
            f"num_classes={self.num_classes}, dim={self.dim}, covariance_type={self.covariance_type!r}, "
            f"pooling={self.regularization.pooling}, shrinkage={self.regularization.shrinkage}, fitted={self.is_fitted}"
        )


def gram(factors: Tensor) -> Tensor:
    """Return AᵀA of factors ``(N, d, d)``, or diagonal ones ``(N, d)``; shape ``(N, d, d)``."""
    return torch.diag_embed(factors.square()) if factors.ndim == 2 else factors.mT @ factors
