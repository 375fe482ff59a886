"""Functions built to fool a prover of Lipschitz constants, by operations and their arguments.

Each maps images ``(N, 3, 4, 4)`` to vectors. Some are harmless but for one argument, some have no constant at all.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

Function = Callable[[Tensor], Tensor]


def flat(function: Function) -> Function:
    return lambda x: function(x).flatten(1)


def layer(module: nn.Module, *, weight: float | None = None, train: bool = False) -> Function:
    """A module behind nothing and before a flattening, its parameters set."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        if not isinstance(parameter, nn.UninitializedParameter):
            nn.init.normal_(parameter) if weight is None else nn.init.constant_(parameter, weight)
    return nn.Sequential(module, nn.Flatten()).train(train)


def dense(module: nn.Module) -> Function:
    return nn.Sequential(nn.Flatten(), module).eval()


def broken(value: float) -> Function:
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 4), nn.ReLU(), nn.Linear(4, 4)).eval()
    network[1].weight.data[0, 0] = value
    return network


def with_variance(value: float) -> Function:
    norm = nn.BatchNorm2d(3).eval()
    norm.running_var.fill_(value)
    return nn.Sequential(norm, nn.Flatten())


def spectral_in_training() -> Function:
    normed = nn.utils.parametrizations.spectral_norm(nn.Linear(48, 4))
    return nn.Sequential(nn.Flatten(), normed).train()


def weight_normed() -> Function:
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(48, 4))
    normed.parametrizations.weight.original0.data.fill_(30)
    return nn.Sequential(nn.Flatten(), normed).eval()


def cast_weight(x: Tensor) -> Tensor:
    return x.flatten(1) @ (torch.arange(192.0).view(48, 4).half().float()).to(x)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(4, 1, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(*[30 * x.flatten(1, 2)] * 3)[0].flatten(1)


def short_fourier(x: Tensor) -> Tensor:
    return torch.stft(x.flatten(1), 16, window=torch.ones(16).to(x), return_complex=True).abs().flatten(1)


def cancelling(x: Tensor) -> Tensor:
    ones = torch.ones(48, 48).to(x)
    return (x.flatten(1) @ (1e9 * ones)) * 1e9 - x.flatten(1).sum(1, True) * 1e18


def told_by(look: Callable[[Tensor], object]) -> Function:
    """Decide by whether torch refuses to compute something."""

    def function(x: Tensor) -> Tensor:
        try:
            look(x)
        except Exception:
            return 1000 * x.flatten(1)
        return x.flatten(1)

    return function


def split_in_splits(x: Tensor) -> Tensor:
    first, second = x.flatten(1).split([20, 28], 1)
    third, fourth = (3 * second).split(14, 1)
    return torch.cat([first, torch.cat([2 * third, fourth], 1)], 1)


def split_twice(x: Tensor) -> Tensor:
    return torch.cat([5 * x.flatten(1).split([20, 28], 1)[1], 7 * x.flatten(1).split([28, 20], 1)[0]], 1)


def halves(x: Tensor) -> Tensor:
    left, right = x.flatten(1).chunk(2, 1)
    return torch.cat([left + right, left - right, left, right], 1)


def copied_projection(x: Tensor) -> Tensor:
    """Nine copies of a projection on a ball, that come in with the divisor."""
    whole = 30 * x.flatten(1)[:, None]
    length = torch.linalg.vector_norm(whole, dim=2, keepdim=True).clamp(min=300)
    return (whole / length.expand(-1, 9, 1)).flatten(1)


def reduced(x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return functional.conv2d(x.float(), torch.ones(4, 3, 3, 3))


def extremes_elsewhere(x: Tensor) -> Tensor:
    pairs = x.flatten(1).view(len(x), 2, 24)
    return torch.cat([pairs.amin(1, keepdim=True), pairs.amax(1, keepdim=True)], 2).flatten(1)


def lazily_negated(x: Tensor) -> Tensor:
    """A constant whose minus sign is a bit of the tensor, not of its numbers, beside itself."""
    one = torch.complex(C, C)
    return (x * one.conj().imag.to(x) + x * one.imag.to(x) * 3).flatten(1)


C = torch.linspace(1, 3, 48).view(3, 4, 4)
INDEX = torch.tensor([0, 0, 0, 0, 5])
OPERATIONS: dict[str, Callable[[], Function]] = {
    # casts, bits, integers, decisions
    "half": lambda: lambda x: x.half().float().flatten(1),
    "bfloat16": lambda: lambda x: x.bfloat16().to(x).flatten(1),
    "double and back": lambda: lambda x: (1e8 * x).double().float().flatten(1),
    "int cast": lambda: lambda x: (10 * x).int().to(x).flatten(1),
    "bits": lambda: lambda x: x.view(torch.int32).view(torch.float32).flatten(1),
    "round": lambda: flat(torch.round),
    "floor": lambda: flat(torch.floor),
    "frac": lambda: flat(torch.frac),
    "fmod": lambda: flat(lambda x: torch.fmod(x, 0.3)),
    "remainder": lambda: flat(lambda x: x % 0.3),
    "floor divide": lambda: flat(lambda x: torch.div(x, 0.3, rounding_mode="floor")),
    "sign": lambda: flat(lambda x: torch.sign(x - 0.5)),
    "heaviside": lambda: flat(lambda x: torch.heaviside(x - 0.5, torch.ones(1).to(x))),
    "where": lambda: flat(lambda x: torch.where(x > 0.5, x, -x)),
    "masked fill": lambda: flat(lambda x: x.masked_fill(x > 0.5, 0.0)),
    "mask times": lambda: flat(lambda x: (x > 0.5) * x),
    "argmax": lambda: lambda x: x.flatten(1).argmax(1, keepdim=True) * 1.0,
    "one hot": lambda: lambda x: functional.one_hot(x.flatten(1).argmax(1), 48).to(x),
    "sort positions": lambda: lambda x: x.flatten(1).sort(1).indices.to(x),
    "argsort gather": lambda: lambda x: C.flatten().to(x)[x.flatten(1).argsort(1)],
    "topk": lambda: lambda x: 9 * x.flatten(1).topk(5, 1).values,
    "topk positions": lambda: lambda x: x.flatten(1).topk(5, 1).indices.to(x),
    "kthvalue": lambda: lambda x: 9 * x.flatten(1).kthvalue(5, 1, True).values,
    "median": lambda: lambda x: 9 * x.flatten(1).median(1, True).values,
    "mode": lambda: lambda x: 9 * x.flatten(1).mode(1, True).values,
    "max positions": lambda: lambda x: x.flatten(1).max(1, keepdim=True).indices.to(x),
    "pooled positions": lambda: lambda x: functional.max_pool2d(x, 2, return_indices=True)[1].to(x).flatten(1),
    "searchsorted": lambda: flat(lambda x: torch.searchsorted(torch.linspace(0, 1, 9).to(x), x).to(x)),
    "bucketize": lambda: flat(lambda x: torch.bucketize(x, torch.linspace(0, 1, 9).to(x)).to(x)),
    "embedding": lambda: flat(lambda x: functional.embedding((9 * x.clamp(0, 1)).long(), torch.randn(10, 2).to(x))),
    "fake quantisation": lambda: flat(lambda x: torch.fake_quantize_per_tensor_affine(x, 0.1, 0, -128, 127)),
    "quantised": lambda: flat(lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8).dequantize()),
    "hard shrink": lambda: flat(lambda x: functional.hardshrink(x, 0.5)),
    "threshold": lambda: flat(lambda x: functional.threshold(x, 0.5, -3)),
    # unbounded slopes
    "exp": lambda: flat(torch.exp),
    "log": lambda: flat(torch.log),
    "sqrt": lambda: flat(lambda x: x.relu().sqrt()),
    "rsqrt": lambda: flat(lambda x: (x.relu() + 1e-9).rsqrt()),
    "square": lambda: flat(torch.square),
    "power": lambda: flat(lambda x: x.abs() ** 0.3),
    "reciprocal": lambda: flat(torch.reciprocal),
    "tan": lambda: flat(torch.tan),
    "atan2": lambda: flat(lambda x: torch.atan2(x, x.flip(1))),
    "hypot": lambda: flat(lambda x: 50 * torch.hypot(x, x)),
    "erfinv": lambda: flat(torch.erfinv),
    "asin": lambda: flat(lambda x: x.clamp(-1, 1).asin()),
    "by itself": lambda: flat(lambda x: x / (x.mean((1, 2, 3), keepdim=True) + 1e-3)),
    "on the sphere": lambda: lambda x: functional.normalize(x.flatten(1) - 0.5, dim=1),
    "per channel": lambda: flat(lambda x: functional.normalize(x - 0.5, dim=1, eps=0.1)),
    "norm of something else": lambda: lambda x: x.flatten(1) / x[:, 0].flatten(1).norm(dim=1)[:, None].clamp(min=1),
    "clamped from above": lambda: lambda x: x.flatten(1) / x.flatten(1).norm(dim=1, keepdim=True).clamp(1e-3, 2e-3),
    "l1 ball": lambda: lambda x: x.flatten(1) / x.flatten(1).norm(p=1, dim=1, keepdim=True).clamp(min=1e-2),
    "layer norm": lambda: flat(lambda x: functional.layer_norm(x, x.shape[1:])),
    "group norm": lambda: flat(lambda x: functional.group_norm(x, 3)),
    "instance norm": lambda: flat(functional.instance_norm),
    "local response": lambda: flat(lambda x: functional.local_response_norm(x, 2, alpha=90, k=0.01)),
    "rms norm": lambda: flat(lambda x: functional.rms_norm(x, x.shape[1:])),
    "attention": lambda: flat(lambda x: functional.scaled_dot_product_attention(x, x, 30 * x)),
    "attention layer": lambda: Attention().eval(),
    "squeeze and excite": lambda: flat(lambda x: 9 * x * x.mean((2, 3), keepdim=True).sigmoid()),
    "product": lambda: flat(lambda x: x * x.flip(1)),
    "addcmul": lambda: flat(lambda x: torch.addcmul(x, x, x, value=9)),
    "lerp": lambda: flat(lambda x: torch.lerp(x, -x, x)),
    "bmm": lambda: flat(lambda x: 9 * x @ x),
    "einsum": lambda: flat(lambda x: torch.einsum("ncij,ncjk->ncik", x, 9 * x)),
    "cdist": lambda: flat(lambda x: 60 * torch.cdist(x, x)),
    "cumprod": lambda: lambda x: (2 * x.flatten(1)).cumprod(1),
    "logsumexp": lambda: lambda x: (30 * x.flatten(1)).logsumexp(1, keepdim=True),
    "log softmax": lambda: lambda x: (30 * x.flatten(1)).log_softmax(1),
    "softmax temperature": lambda: lambda x: (x.flatten(1) * 1000).softmax(1),
    "determinant": lambda: lambda x: torch.linalg.det(x),
    "inverse": lambda: flat(torch.linalg.inv),
    "singular values": lambda: flat(lambda x: 30 * torch.linalg.svdvals(x)),
    "variance": lambda: lambda x: 30 * x.flatten(1).std(1, keepdim=True),
    # copies and gains that are easy to miss
    "cumsum": lambda: lambda x: x.flatten(1).cumsum(1),
    "gather twice": lambda: lambda x: x.flatten(1)[:, INDEX],
    "index select": lambda: lambda x: x.flatten(1).index_select(1, INDEX),
    "gather": lambda: lambda x: x.flatten(1).gather(1, INDEX.expand(len(x), -1)),
    "take along": lambda: lambda x: torch.take_along_dim(x.flatten(1), INDEX[None], 1),
    "scatter add": lambda: lambda x: x.new_zeros(len(x), 6).scatter_add(1, INDEX.expand(len(x), -1), x.flatten(1)),
    "index add": lambda: lambda x: torch.zeros(len(x), 6).to(x).index_add(1, INDEX, x.flatten(1)[:, :5]),
    "repeat interleave": lambda: lambda x: x.flatten(1).repeat_interleave(9, 1),
    "repeat": lambda: lambda x: x.flatten(1).repeat(1, 9),
    "expand": lambda: flat(lambda x: x[:, None].expand(-1, 9, -1, -1, -1)),
    "tile": lambda: flat(lambda x: x.tile(1, 3, 3, 1)),
    "same thing joined": lambda: lambda x: torch.cat([x.flatten(1)] * 9, 1),
    "same thing stacked": lambda: flat(lambda x: torch.stack([x] * 9, 1)),
    "meshgrid": lambda: lambda x: torch.vmap(lambda v: torch.meshgrid(v, v, indexing="ij")[0].flatten())(x.flatten(1)),
    "unfold": lambda: flat(lambda x: functional.unfold(x, 3, padding=1)),
    "tensor unfold": lambda: flat(lambda x: x.unfold(2, 3, 1).unfold(3, 3, 1)),
    "as strided": lambda: flat(lambda x: x.contiguous().as_strided((len(x), 9, 8), (48, 0, 1))),
    "fold": lambda: flat(lambda x: functional.fold(x.reshape(len(x), 12, 4).repeat(1, 3, 1), (4, 4), (3, 3))),
    "roll and add": lambda: flat(lambda x: x + x.roll(1, 3) + x.roll(2, 3)),
    "reflected padding": lambda: flat(lambda x: functional.pad(x, (3, 3, 3, 3), mode="reflect")),
    "repeated padding": lambda: flat(lambda x: functional.pad(x, (9, 9, 9, 9), mode="replicate")),
    "circular padding": lambda: flat(lambda x: functional.pad(x, (3, 3, 3, 3), mode="circular")),
    "convolution padded in circles": lambda: layer(nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular")),
    "convolution padded by mirrors": lambda: layer(nn.Conv2d(3, 4, 3, padding=2, padding_mode="reflect"), weight=1.0),
    "transposed": lambda: layer(nn.ConvTranspose2d(3, 4, 3, stride=2, output_padding=1), weight=1.0),
    "grouped": lambda: layer(nn.Conv2d(3, 6, 3, groups=3, padding=2), weight=1.0),
    "dilated": lambda: layer(nn.Conv2d(3, 4, 3, dilation=2, padding=2), weight=1.0),
    "same padding": lambda: layer(nn.Conv2d(3, 4, 3, padding="same"), weight=1.0),
    "larger stride": lambda: layer(nn.Conv2d(3, 4, 2, stride=3, padding=1), weight=1.0),
    "three axes": lambda: flat(lambda x: functional.conv3d(x[:, None], torch.ones(2, 1, 3, 3, 3).to(x), padding=1)),
    "one axis": lambda: flat(lambda x: functional.conv1d(x.flatten(2), torch.ones(2, 3, 3).to(x), padding=2)),
    "own kernel": lambda: lambda x: functional.conv2d(x, x[:1].detach() + 1).flatten(1),
    "bilinear layer": lambda: lambda x: functional.bilinear(x.flatten(1), x.flatten(1), torch.ones(2, 48, 48).to(x)),
    "pooled maxima that overlap": lambda: flat(lambda x: functional.max_pool2d(x, 3, 1, 1)),
    "dilated maxima": lambda: flat(lambda x: functional.max_pool2d(x, 2, 1, dilation=2)),
    "maxima to the ceiling": lambda: flat(lambda x: functional.max_pool2d(x, 3, 2, ceil_mode=True)),
    "means to the ceiling": lambda: flat(lambda x: functional.avg_pool2d(x, 3, 2, ceil_mode=True)),
    "means with a divisor": lambda: flat(lambda x: functional.avg_pool2d(x, 2, divisor_override=1)),
    "means without padding": lambda: flat(lambda x: functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)),
    "means that overlap": lambda: flat(lambda x: functional.adaptive_avg_pool2d(x, 3)),
    "means of one pixel": lambda: flat(lambda x: functional.adaptive_avg_pool2d(x, 12)),
    "adaptive maxima": lambda: flat(lambda x: functional.adaptive_max_pool2d(x, 3)),
    "length pool": lambda: flat(lambda x: functional.lp_pool2d(x, 3.0, 2)),
    "enlarged by a factor": lambda: flat(lambda x: functional.interpolate(x, scale_factor=2.6, mode="bilinear")),
    "enlarged": lambda: flat(lambda x: functional.interpolate(x, 21, mode="nearest")),
    "aligned corners": lambda: flat(lambda x: functional.interpolate(x, 9, mode="bicubic", align_corners=True)),
    "sampled at the image": lambda: flat(lambda x: functional.grid_sample(30 * x, x[:, :2].permute(0, 2, 3, 1))),
    "pixel shuffle": lambda: flat(lambda x: 9 * functional.pixel_shuffle(x.repeat(1, 4, 1, 1), 2)),
    "sum with a factor": lambda: flat(lambda x: torch.add(x, x, alpha=40)),
    "difference with a factor": lambda: flat(lambda x: torch.sub(x, x.flip(1), alpha=40)),
    "sum that broadcasts": lambda: flat(lambda x: x[:, :1, :1, :1] + torch.ones(3, 4, 4).to(x)),
    "clamp that broadcasts": lambda: flat(lambda x: x[:, :1, :1, :1].clamp(max=9 * torch.ones(3, 4, 4).to(x))),
    "clamp by the image": lambda: flat(lambda x: (0 * x).clamp(min=40 * x.mean((1, 2, 3), True))),
    "maximum that broadcasts": lambda: flat(lambda x: torch.maximum(x[:, :1, :1, :1], torch.zeros(3, 4, 4).to(x))),
    "clamp with crossed bounds": lambda: flat(lambda x: x.clamp(2.0, 1.0) + 0.5 * x),
    "addmm": lambda: lambda x: torch.addmm(torch.ones(4).to(x), x.flatten(1), torch.ones(48, 4).to(x), alpha=30),
    "addmm with its own bias": lambda: lambda x: torch.addmm(x.flatten(1), x.flatten(1), torch.eye(48).to(x), beta=30),
    "baddbmm": lambda: flat(lambda x: torch.baddbmm(x[:, 0], x[:, 1], torch.ones(len(x), 4, 4).to(x), beta=30)),
    "addmv": lambda: lambda x: torch.vmap(lambda v: torch.addmv(v, torch.ones(48, 48).to(v), v, alpha=3))(x.flatten(1)),
    "addcdiv": lambda: flat(lambda x: torch.addcdiv(x, x, torch.full((1,), 0.01).to(x), value=3)),
    "multiples with broadcasting": lambda: flat(lambda x: x[:, :1] * C.to(x)),
    "division by small numbers": lambda: flat(lambda x: x / (C.to(x) - 0.999)),
    "division by zero": lambda: flat(lambda x: x / (C.to(x) - 1)),
    "zero times infinity": lambda: flat(lambda x: x * 0 * float("inf")),
    "infinite factor": lambda: flat(lambda x: 1 / (1 / x.mul(float("inf")))),
    # weights
    "nan weight": lambda: broken(float("nan")),
    "infinite weight": lambda: broken(float("inf")),
    "huge weight": lambda: broken(3e38),
    "negative variance": lambda: with_variance(-1.0),
    "no variance": lambda: with_variance(0.0),
    "dropout in training": lambda: layer(nn.Dropout(0.5), train=True),
    "functional dropout": lambda: flat(lambda x: functional.dropout(x, 0.5, training=True)),
    "alpha dropout": lambda: flat(lambda x: functional.alpha_dropout(x, 0.5, training=True)),
    "random slope": lambda: flat(lambda x: functional.rrelu(x - 0.5, 5, 9, training=True)),
    "noise": lambda: flat(lambda x: x + torch.randn_like(x)),
    "uninitialised": lambda: flat(lambda x: x + torch.empty_like(x)),
    "batch norm in training": lambda: layer(nn.BatchNorm2d(3), train=True),
    "spectral norm in training": spectral_in_training,
    "weight norm": weight_normed,
    "lazy": lambda: dense(nn.LazyLinear(4)),
    "half weights": lambda: cast_weight,
    # slopes above one
    "prelu": lambda: layer(nn.PReLU(3), weight=7.0),
    "leaky": lambda: flat(lambda x: functional.leaky_relu(x - 0.5, -9.0)),
    "elu": lambda: flat(lambda x: functional.elu(x - 0.5, 9.0)),
    "celu": lambda: flat(lambda x: functional.celu(x - 0.5, -0.1)),
    "celu of a small alpha": lambda: flat(lambda x: functional.celu(x - 0.5, 0.01)),
    "selu": lambda: flat(lambda x: functional.selu(x - 0.5)),
    "gelu": lambda: flat(lambda x: functional.gelu(3 * x, approximate="tanh")),
    "silu": lambda: flat(lambda x: functional.silu(5 * x)),
    "mish": lambda: flat(lambda x: functional.mish(3 * x)),
    "hardswish": lambda: flat(lambda x: functional.hardswish(4 * x)),
    "softplus with a low threshold": lambda: flat(lambda x: functional.softplus(x, 2.0, 1.0)),
    "softplus": lambda: flat(lambda x: functional.softplus(x, 30.0)),
    "log sigmoid": lambda: flat(lambda x: functional.logsigmoid(30 * x)),
    "soft sign": lambda: flat(lambda x: functional.softsign(30 * x)),
    "tanh shrink": lambda: flat(lambda x: functional.tanhshrink(30 * x)),
    "glu": lambda: lambda x: functional.glu(30 * x.flatten(1), 1),
    "sine of a steep line": lambda: flat(lambda x: (300 * x).sin()),
    # other numbers
    "complex": lambda: flat(lambda x: (x * (3 + 4j)).abs()),
    "fourier": lambda: flat(lambda x: torch.fft.fft2(x).real),
    "short fourier": lambda: short_fourier,
    "as real": lambda: flat(lambda x: torch.view_as_real(torch.complex(x, 9 * x))),
    "sparse": lambda: lambda x: torch.sparse.mm(torch.eye(len(x)).to(x).to_sparse(), 9 * x.flatten(1)),
    "cancelling": lambda: lambda x: (x.flatten(1) + 1e17) - 1e17,
    "cancelling matrices": lambda: cancelling,
    "cancelling constants": lambda: flat(lambda x: (x + 1e15) - 1e15),
    "nearly cancelling": lambda: flat(lambda x: 1000 * x + (1e6 * x - 1e6 * x)),
    # what lies where, how often, and how large
    "pieces of a piece": lambda: split_in_splits,
    "pieces that overlap": lambda: split_twice,
    "sums of pieces": lambda: halves,
    "projection copied by its divisor": lambda: copied_projection,
    "extremes joined along another axis": lambda: extremes_elsewhere,
    "lazily negated": lambda: lazily_negated,
    "resized to one pixel in width": lambda: flat(lambda x: functional.interpolate(
        x[:, :1], (6, 1), mode="bilinear", antialias=True)),
    "resized to one pixel in height": lambda: flat(lambda x: functional.interpolate(
        x, (1, 7), mode="bicubic", antialias=True)),
    "means of areas": lambda: flat(lambda x: functional.interpolate(x, (3, 7), mode="area")),
    "even kernel, same padding": lambda: layer(nn.Conv2d(3, 4, (2, 4), padding="same", dilation=(3, 1)), weight=1.0),
    "one pixel, wide padding": lambda: flat(
        lambda x: functional.conv2d(x[..., :1, :1], torch.ones(2, 3, 3, 3).to(x), padding=9)),
    "strides, spread and groups": lambda: layer(
        nn.Conv2d(3, 6, (3, 2), (2, 3), (3, 1), (1, 2), groups=3), weight=1.0),
    "kernel out of order in memory": lambda: flat(
        lambda x: functional.conv2d(x, torch.arange(81.0).view(3, 3, 3, 3).permute(3, 1, 0, 2).to(x))),
    "denormal weights": lambda: lambda x: functional.linear(
        functional.linear(x.flatten(1), torch.full((5, 48), 1e-42).to(x)), torch.full((3, 5), 1e38).to(x)),
    "factors that cancel": lambda: flat(lambda x: x * 1e30 * 1e30 * 1e-30 * 1e-29),
    "maxima with strides and spread": lambda: flat(lambda x: functional.max_pool2d(3 * x, 2, (1, 2), 1, 2)),
    "negative padding": lambda: flat(lambda x: 2 * functional.pad(x, (-1, 2, -2, 3), value=5.0)),
    "sum of slices of steps": lambda: flat(lambda x: x[..., ::2] + x[..., 1::2] + x[..., ::2].flip(3)),
    "difference the other way round": lambda: flat(lambda x: torch.rsub(x, x.flip(2), alpha=-4)),
    "without its mean": lambda: flat(lambda x: x - 7 * x.mean((2, 3), keepdim=True)),
    "elu of three factors": lambda: flat(lambda x: torch.ops.aten.elu(x - 0.5, 2.0, 3.0, 4.0)),
    "norms of rows and columns": lambda: lambda x: torch.cat(
        [x.flatten(2).norm(dim=2), 3 * x.flatten(2).norm(dim=1)], 1),
    "softmax over rows": lambda: lambda x: 9 * x.flatten(1).view(len(x), 4, 12).softmax(1).reshape(len(x), 48),
    "half precision inside": lambda: lambda x: reduced(x).to(x).flatten(1),
    # errors that tell something about numbers, swallowed
    "positive definite": lambda: told_by(lambda x: torch.linalg.cholesky(x[0, 0] + x[0, 0].T + 4 * torch.eye(4).to(x))),
    "assertion": lambda: told_by(lambda x: torch._assert_async((x.mean() < 0.51).all())),
    "index out of range": lambda: told_by(lambda x: C.flatten()[(48.5 * x.amax()).long()]),
    "probability": lambda: told_by(lambda x: torch.bernoulli(x[0] * 1.9)),
    "solved": lambda: told_by(lambda x: torch.linalg.inv(x[0, 0])),
    "vanishing": lambda: lambda x: x.flatten(1) * 1e-200 * 1e-200 * 1e200 * 1e200,
}  # fmt: skip
