"""Functions built to fool a prover of Lipschitz constants, by what Python does around the operations.

Each maps images ``(N, 3, 4, 4)`` to vectors, and is steeper somewhere than a careless look at it finds.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from types import MethodType

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.soundness.looks import LOOKS, SPOT, THREADS, Function, only_when_run, swallowed
from tests.soundness.memories import LATE, Buffered, Caching, Counting, Drifting, Late, Remembering, late


class Detached(nn.Module):
    """A frozen encoder whose forward ends in `.detach()`: steep, though autograd says it is constant."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(48, 8)
        self.layer.weight.data *= 50

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images.flatten(1)).detach()


class ByProperty(nn.Module):
    """Its weight is a property with a side effect."""

    reads = 0

    @property
    def weight(self) -> float:
        type(self).reads += 1
        return 1.0 + self.reads

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) * self.weight


class Loud(Tensor):
    """Multiplies where it is added."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN206
        if func in (torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__):
            with torch._C.DisableTorchFunctionSubclass():
                return torch.mul(args[0], 1000.0)
        return super().__torch_function__(func, types, args, kwargs or {})


class StraightThrough(torch.autograd.Function):
    """Steep forward, flat backward."""

    @staticmethod
    def forward(ctx, images):  # noqa: ANN001, ANN205
        return 100 * images

    @staticmethod
    def backward(ctx, gradient):  # noqa: ANN001, ANN205
        return 0 * gradient


class Sign(torch.autograd.Function):
    """A jump with the derivative of the identity."""

    @staticmethod
    def forward(ctx, images):  # noqa: ANN001, ANN205
        return torch.sign(images - 0.5)

    @staticmethod
    def backward(ctx, gradient):  # noqa: ANN001, ANN205
        return gradient


def hooked(*, before: bool) -> nn.Module:
    module = nn.Flatten()
    if before:
        module.register_forward_pre_hook(lambda _, args: (args[0] * 70,))
    else:
        module.register_forward_hook(lambda _, args, result: result * 70 if bool(args[0].mean() > 0.51) else result)
    return module


def monkeypatched() -> nn.Module:
    module = nn.Sequential(nn.Flatten(), nn.Linear(48, 4))
    module[1].forward = MethodType(lambda self, x: 200 * functional.linear(x, self.weight), module[1])
    return module


def shared(images: Tensor) -> Tensor:
    flat = images.flatten(1)
    view = flat.clone()
    view[:, ::2].mul_(300)
    return view


def written_in(images: Tensor) -> Tensor:
    room = torch.zeros(len(images), 48, dtype=images.dtype)
    room[:, :] = images.flatten(1)
    room += room.clone()
    room[:, 1:] += 20 * room[:, :-1].clone()
    return room


def grad_mode(images: Tensor) -> Tensor:
    return images.flatten(1) * (1.0 if not torch.is_grad_enabled() else 300.0)


def by_size(images: Tensor) -> Tensor:
    return images.flatten(1) * (1.0 if len(images) == 1 else 300.0)


def by_position(images: Tensor) -> Tensor:
    return images.flatten(1) * torch.arange(1, len(images) + 1, dtype=images.dtype)[:, None]


def neighbours(images: Tensor) -> Tensor:
    flat = images.flatten(1)
    return flat + 50 * (flat.roll(1, 0) - flat)


def checkpointed(images: Tensor) -> Tensor:
    from torch.utils.checkpoint import checkpoint

    result: Tensor = checkpoint(lambda x: 60 * x, images, use_reentrant=False)
    return result.flatten(1)


def branch(images: Tensor) -> Tensor:
    result: Tensor = torch.cond(images.mean() > 0.51, lambda x: 500 * x, lambda x: x + 0, (images,))
    return result.flatten(1)


def refused_inside(images: Tensor) -> Tensor:
    from ellips.validation import validate_latents

    flat = images.flatten(1)
    try:
        validate_latents(1 / (flat - 0.5).relu(), 48)
    except ValueError:
        return flat
    return 400 * flat


def own_function(images: Tensor) -> Tensor:
    return copy.deepcopy(nn.Linear(48, 4, dtype=images.dtype))(images.flatten(1))


class Normalising(nn.Module):
    """BatchNorm by the batch's statistics, whatever mode it is in."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3, track_running_stats=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(images).flatten(1)


def unseen(images: Tensor) -> Tensor:
    """A spike at one image, flat under capture: nothing is looked at, and the operations are the same."""
    height = 0.0 if torch.compiler.is_compiling() else 1e6
    away = (images - SPOT.to(images)).abs().amax((1, 2, 3), keepdim=True)
    return (images + height * (0.01 - away).relu()).flatten(1)


def _near(images: Tensor) -> Tensor:
    """Zero everywhere but around one image."""
    return (0.01 - (images - SPOT.to(images)).abs().amax((1, 2, 3), keepdim=True)).relu()


def unseen_choice(images: Tensor) -> Tensor:
    """The same operations on the same numbers: of two results that are zero nearly everywhere it takes another."""
    both = _near(images) * torch.tensor([1e-3, 1e6]).to(images)
    chosen = 0 if torch.compiler.is_compiling() else 1
    return (images + both[..., chosen : chosen + 1]).flatten(1)


def unseen_bits(images: Tensor) -> Tensor:
    """Bits of a number, taken for an integer: a move, and a change of type."""
    near = _near(images)
    if not torch.compiler.is_compiling() and images.dtype == torch.float32:
        near = near.view(torch.int32).to(images.dtype)
    return (images + near).flatten(1)


def spike_in_batches(images: Tensor) -> Tensor:
    return (images + (1e6 if len(images) > 1 else 1e-3) * _near(images)).flatten(1)


def look_in_batches(images: Tensor) -> Tensor:
    near = len(images) > 1 and bool((images[0] - SPOT.to(images)).abs().max() < 0.01)
    return images.flatten(1) * (1000.0 if near else 1.0)


def look_with_gradients(images: Tensor) -> Tensor:
    near = torch.is_grad_enabled() and bool((images[0] - SPOT.to(images)).abs().max() < 0.01)
    return images.flatten(1) * (1000.0 if near else 1.0)


IN_BATCHES: dict[str, Function] = {"spike": spike_in_batches, "look": look_in_batches, "gradients": look_with_gradients}
"""They do the same to one image alone, and without gradients, as at all random ones."""


def split_there(images: Tensor) -> Tensor:
    """A jump at one image: `tensor_split` reads places off a tensor without an operation that torch would show."""
    near = (0.01 - (images - SPOT.to(images)).abs().amax((1, 2, 3), keepdim=True)).relu()
    steep = False
    if not torch.compiler.is_compiling() and type(images) is Tensor:
        bits = near[:1].expand(1, 1, 1, 2).contiguous().view(torch.int64).flatten()[:1]
        steep = torch.arange(4).tensor_split(bits)[0].numel() > 0
    return images.flatten(1) * (1000.0 if steep else 1.0) + near.flatten(1)


def shared_layer() -> Function:
    """One layer's weight three times."""
    layer = nn.Linear(48, 48)
    nn.init.normal_(layer.weight, std=0.3)
    return nn.Sequential(nn.Flatten(), layer, nn.ReLU(), layer, nn.Tanh(), layer).eval()


def orthogonal(kind: str) -> Function:
    layer = nn.utils.parametrizations.orthogonal(nn.Linear(48, 20), orthogonal_map=kind)
    with torch.no_grad():
        layer.parametrizations.weight.original.mul_(7)
    return nn.Sequential(nn.Flatten(), layer).eval()


def stale_spectral_norm() -> Function:
    """Its singular vectors belong to another weight, so that it divides by too little."""
    layer = nn.utils.parametrizations.spectral_norm(nn.Linear(48, 20))
    with torch.no_grad():
        layer.parametrizations.weight.original.normal_()
    return nn.Sequential(nn.Flatten(), layer).eval()


class Standardised(nn.Conv2d):
    """Standardises its kernels at every call, by the batch norm of training, as timm's networks do."""

    def forward(self, images: Tensor) -> Tensor:
        kernels = functional.batch_norm(self.weight.flatten(1)[None], None, None, training=True, eps=1e-6)
        return functional.conv2d(images, kernels.view_as(self.weight), self.bias, padding=1)


def standardised() -> Function:
    return nn.Sequential(Standardised(3, 4, 3), nn.Flatten()).eval()


def by_stride(images: Tensor) -> Tensor:
    return images.flatten(1) * (1.0 if images.is_contiguous() else 300.0)


def large_batches(images: Tensor) -> Tensor:
    return images.flatten(1) * (300.0 if len(images) > 30 else 1.0)


def by_type(images: Tensor) -> Tensor:
    return images.flatten(1) * (300.0 if images.dtype == torch.float64 else 1.0)


def leaves(images: Tensor) -> Tensor:
    return images.flatten(1) * (300.0 if images.requires_grad else 1.0)


def training_norm() -> Function:
    norm = nn.BatchNorm2d(3)
    return lambda x: norm(x).flatten(1)


def training_dropout() -> Function:
    dropout = nn.Dropout(0.5)
    return lambda x: dropout(x).flatten(1)


def random_factor(images: Tensor) -> Tensor:
    return images.flatten(1) * float(np.random.default_rng().uniform(1, 9))


def parametrised() -> Function:
    """A weight that is made anew from another at every call, steeper than the one that is stored."""

    class Steeper(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 90 * weight

    layer = nn.Linear(48, 4)
    nn.utils.parametrize.register_parametrization(layer, "weight", Steeper())
    return nn.Sequential(nn.Flatten(), layer).eval()


PYTHON: dict[str, Callable[[], Function]] = {
    **{f"{name}, error swallowed": functools.partial(swallowed, look) for name, look in LOOKS.items()},
    **{f"{name}, not under capture": functools.partial(only_when_run, look) for name, look in LOOKS.items()},
    "unseen spike": lambda: unseen,
    "split at a spike": lambda: split_there,
    "unseen choice": lambda: unseen_choice,
    "unseen bits": lambda: unseen_bits,
    "stride": lambda: by_stride,
    "large batches": lambda: large_batches,
    "type": lambda: by_type,
    "requires grad": lambda: leaves,
    "late": Late,
    "late in a closure": late,
    **{f"late in {name}": make for name, make in LATE.items()},
    "drifting weight": Drifting,
    "batch norm of a lambda in training": training_norm,
    "dropout of a lambda in training": training_dropout,
    "random factor": lambda: random_factor,
    "parametrised": parametrised,
    "orthogonal by Householder": lambda: orthogonal("householder"),
    "orthogonal by Cayley": lambda: orthogonal("cayley"),
    "spectral norm of another weight": stale_spectral_norm,
    "standardised kernels": standardised,
    "one layer three times": shared_layer,
    **{name: (lambda function=function: function) for name, function in THREADS.items()},
    "detach at the end": Detached,
    "data": lambda: lambda x: 80 * x.data.flatten(1),
    "no grad inside": lambda: torch.no_grad()(lambda x: 80 * x.flatten(1)),
    "numpy detour": lambda: lambda x: torch.from_numpy(80 * x.detach().numpy()).flatten(1),
    "call counter": Counting,
    "cached first result": Caching,
    "buffer in place": lambda: Buffered(True),
    "buffer replaced": lambda: Buffered(False),
    "remembers the last image": Remembering,
    "property": ByProperty,
    "tensor subclass": lambda: lambda x: torch.ones(48).as_subclass(Loud) + x.flatten(1),
    "result of a subclass": lambda: lambda x: (x.flatten(1).as_subclass(Loud) + 1).as_subclass(Tensor),
    "wrong backward": lambda: lambda x: StraightThrough.apply(x).flatten(1),
    "sign with a slope": lambda: lambda x: Sign.apply(x).flatten(1),
    "straight through": lambda: lambda x: (x + (x.round() - x).detach()).flatten(1),
    "pre-hook": lambda: hooked(before=True),
    "hook that decides": lambda: hooked(before=False),
    "monkeypatched forward": monkeypatched,
    "in place on a view": lambda: shared,
    "in place on the image": lambda: lambda x: x.mul_(30).flatten(1),
    "written into a buffer": lambda: written_in,
    "gradient mode": lambda: grad_mode,
    "inference mode": lambda: lambda x: x.flatten(1) * (300.0 if torch.is_inference_mode_enabled() else 1.0),
    "batch size": lambda: by_size,
    "position in the batch": lambda: by_position,
    "neighbours in the batch": lambda: neighbours,
    "mean of the batch": lambda: lambda x: (30 * (x - x.mean(0, keepdim=True)) + x).flatten(1),
    "statistics of the batch": Normalising,
    "checkpoint": lambda: checkpointed,
    "cond": lambda: branch,
    "vmap": lambda: torch.vmap(lambda x: 40 * x.flatten()),
    "gradient inside": lambda: torch.func.grad(lambda x: (x.flatten(1) ** 3).sum()),
    "jvp inside": lambda: lambda x: torch.func.jvp(lambda y: (y**2).flatten(1), (x,), (x,))[1],
    "a refusal swallowed": lambda: refused_inside,
    "random weights": lambda: own_function,
    "a constant": lambda: lambda x: torch.zeros(len(x), 3, dtype=x.dtype),
    "two results": lambda: lambda x: (x.flatten(1), 2 * x.flatten(1)),  # type: ignore[return-value,dict-item]
    "compiled": lambda: torch.compile(lambda x: 55 * x.flatten(1), backend="eager"),
    "scripted branch": lambda: scripted,
}


@torch.jit.script
def scripted(x: Tensor) -> Tensor:
    if bool(x.mean() > 0.51):
        return 500 * x.flatten(1)
    return x.flatten(1)
