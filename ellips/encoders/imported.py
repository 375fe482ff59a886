"""What 1-Lipschitz networks of others share: how their checkpoints are read, and layers that they have in common.

Only numbers and settings are read of a checkpoint. What it says of its own Lipschitz constant is not believed.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ellips.checkpoints import load_checkpoint
from ellips.encoders.architecture import EncoderArchitecture
from ellips.encoders.weights import load_file

_GREY = 0.5  # what is subtracted of pixels: a translation
_WRAPPED = "module."  # what torch's training on several devices puts before all names


class ImportedArchitecture(EncoderArchitecture):
    """Plain layers of a network that is trained elsewhere; the last two are a linear layer and MinMax."""

    dense_limit: ClassVar[int] = 512  # so that no convolution over all pixels is written out
    gram_iterations: ClassVar[int] = 16  # many singular values of these convolutions are nearly the largest

    def trainable(self) -> nn.Module:
        """Refuse: these networks are trained elsewhere.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(
            f"Networks of the kind {self.kind!r} are brought in from their authors' checkpoints "
            f"(ellips.encoders.import_{self.kind}), not trained here; train LipNeXtArchitecture."
        )

    def plain(self, trained: nn.Module) -> nn.Module:
        """Return a copy of the layers, which are plain."""
        return copy.deepcopy(trained).eval()

    def scaled(self, plain: nn.Module) -> Iterable[nn.Parameter]:
        """Return the last linear layer's weight and bias: MinMax behind it passes factors through."""
        assert isinstance(plain, nn.Sequential)
        return plain[-2].parameters()


class Centred(nn.Module):
    """Subtract a half of all pixels."""

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(N, C, H, W)`` to the same shape."""
        return images - _GREY


class MinMax(nn.Module):
    """The larger of channels i and i + C/2, for all i, and then the smaller ones: sorted pairs, so 1-Lipschitz."""

    def forward(self, values: Tensor) -> Tensor:
        """Map ``(N, C, ...)`` with even C to the same shape."""
        pairs: Tensor = values.unflatten(1, (2, -1)).sort(dim=1, descending=True).values
        return pairs.flatten(1, 2)


def linear_layers(inner: int, width: int, depth: int) -> list[nn.Module]:
    """Return linear layers of one width with MinMax behind each.

    Args:
        inner: Numbers that go into the first.
        width: Numbers that come out of each, even.
        depth: How many.
    """
    layers: list[nn.Module] = []
    for size in (inner, *[width] * (depth - 1)):
        layers += [nn.Linear(size, width), MinMax()]
    return layers


class Checkpoint(NamedTuple):
    """What a training program saved.

    Attributes:
        state: The network's tensors by name, in float64.
        settings: What the program was told, by section; empty where the file does not say.
    """

    state: dict[str, Tensor]
    settings: Mapping[str, Any]


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint as data; nothing in it is executed.

    Args:
        path: A file of torch.save: a dictionary with the network under ``backbone`` and the settings under
            ``configs``, or the network's state dict; or a ``.safetensors`` file of the latter.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds something else, or numbers that are not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"Expected a checkpoint at {path} but there is no such file; correct the path.")
    loaded: Any = load_file(path).state if path.suffix == ".safetensors" else load_checkpoint(path)
    state = loaded.get("backbone", loaded) if isinstance(loaded, Mapping) else None
    if not isinstance(state, Mapping) or not any(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(
            f"Expected {path} to hold a state dict, by itself or under `backbone`, but got {type(loaded).__name__}."
        )
    tensors = {str(name): value.double() for name, value in state.items() if isinstance(value, Tensor)}
    if all(name.startswith(_WRAPPED) for name in tensors):
        tensors = {name.removeprefix(_WRAPPED): value for name, value in tensors.items()}
    if lost := [name for name, value in tensors.items() if not bool(torch.isfinite(value).all())]:
        raise ValueError(f"Expected finite numbers in {path} but {', '.join(lost[:3])} has others; fetch it again.")
    settings = loaded.get("configs", {})
    return Checkpoint(tensors, settings if isinstance(settings, Mapping) else {})


def section(settings: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a section of a checkpoint's settings, empty if there is none."""
    found = settings.get(name)
    return found if isinstance(found, Mapping) else {}


class StateTensors:
    """The tensors of a checkpoint, of the shapes that they have to be of."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.state = state

    def shape(self, name: str, axes: int) -> torch.Size:
        """Return a tensor's shape."""
        if name not in self.state or self.state[name].ndim != axes:
            found = f"one of {self.state[name].ndim}" if name in self.state else f"only {sorted(self.state)[:8]}"
            raise ValueError(f"Expected a tensor `{name}` of {axes} axes but got {found}.")
        return self.state[name].shape

    def take(self, name: str, *shape: int) -> Tensor:
        """Return a tensor."""
        if (found := self.shape(name, len(shape))) != shape:
            raise ValueError(f"Expected `{name}` to be of shape {shape} but got {tuple(found)}.")
        return self.state[name]

    def residual(self, prefix: str, identity: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Return the stack ``identity + weights gamma / sqrt(depth)``.

        The identity is a tensor of the checkpoint, under ``identity`` or ``residual_identity``.
        """
        depth, width, *rest = shape
        name = f"{prefix}.residual_identity" if f"{prefix}.residual_identity" in self.state else f"{prefix}.identity"
        if not torch.equal(self.take(name, *identity.shape), identity):
            raise ValueError(f"Expected `{name}` to hold ones on its diagonal and zeros but got others.")
        gamma = self.take(f"{prefix}.gamma", depth, width, *[1] * len(rest))
        branches: Tensor = self.take(f"{prefix}.weights", *shape) * gamma * depth**-0.5
        return identity + branches

    def require_identity(self, name: str, size: int, axes: int) -> None:
        """Refuse a checkpoint in which an identity matrix is none: it would take part in what the network computes."""
        if not torch.equal(self.take(name, *[1] * (axes - 2), size, size).view(size, size), torch.eye(size).double()):
            raise ValueError(f"Expected `{name}` to be an identity matrix but it is none.")

    def biases(self, prefix: str, depth: int, width: int) -> Tensor:
        """Return what is added in eval mode, behind a stack of convolutions."""
        return self.take(f"{prefix}.bias", depth, width) - self.take(f"{prefix}.running_mean", depth, width)


def fill(network: nn.Sequential, weights: Iterable[Mapping[str, Tensor]]) -> None:
    """Load the tensors of each layer that has any, in order, in the precision of the layers.

    Raises:
        RuntimeError: If names or shapes are others.
        ValueError: If there are more or fewer layers.
    """
    with torch.no_grad():
        for layer, tensors in zip((x for x in network if x.state_dict()), weights, strict=True):
            layer.load_state_dict(dict(tensors))


def orthonormal_rows(matrices: Tensor, ridge: float = 1e-3) -> Tensor:
    """Return ``L⁻¹ V`` with ``L Lᴴ = V Vᴴ + ε I``, whose rows are nearly orthonormal.

    Args:
        matrices: V, shape ``(..., m, n)``, real or complex.
        ridge: ε as a share of the mean diagonal of ``V Vᴴ``.

    Raises:
        ValueError: If all of V is zero.
    """
    gram = matrices @ matrices.mH
    addend = ridge * gram.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    factor, failed = torch.linalg.cholesky_ex(gram + addend * torch.eye(gram.shape[-1]).to(gram))
    if bool(failed.any()):
        raise ValueError("Expected rows that can be made orthonormal but they are all zero.")
    rows: Tensor = torch.linalg.solve_triangular(factor, matrices, upper=False)
    return rows
