"""Networks in the styles that people build: no slope exceeds the bound, and what is refused is refused by its name."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from timm.layers import BlurPool2d
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torchvision.transforms import Normalize

from ellips.lipschitz import SpectralProduct, UnprovenOperationError
from tests.soundness.test_ordinary_networks import randomised

SHAPE = (3, 8, 8)
IMAGES = torch.rand(1, *SHAPE, generator=torch.Generator().manual_seed(0))


class Sum(nn.Module):
    """A shortcut around layers."""

    def __init__(self, *layers: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.layers, self.shortcut = nn.Sequential(*layers), shortcut or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.layers(x)


class Joined(Sum):
    """The same, side by side."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.shortcut(x), self.layers(x)], 1)


class Shuffled(nn.Module):
    """Half of the channels goes through layers, then both halves are interleaved."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1)
        joined = torch.cat([left, self.layers(right)], 1)
        return joined.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)


class Sorted(nn.Module):
    """The larger and the smaller of two channels."""

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1)
        return torch.cat([torch.maximum(left, right), torch.minimum(left, right)], 1)


def conv(inner: int, out: int, kernel: int = 3, stride: int = 1, groups: int = 1, mode: str = "zeros") -> nn.Sequential:
    layer = nn.Conv2d(inner, out, kernel, stride, kernel // 2, groups=groups, bias=False, padding_mode=mode)
    return nn.Sequential(layer, nn.BatchNorm2d(out))


STYLES: dict[str, Callable[[], list[nn.Module]]] = {
    "wide, activated before": lambda: [
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"),
        Sum(nn.BatchNorm2d(4), nn.ReLU(inplace=False), nn.Conv2d(4, 4, 3, padding=1), nn.Dropout(0.3)),
        nn.BatchNorm2d(4), nn.LeakyReLU(-1.5), nn.MaxPool2d(3, 2, 1),
    ],
    "dense": lambda: [
        Joined(conv(3, 4), nn.SiLU()), nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False),
        Joined(conv(7, 2), nn.ELU(2.0)),
    ],
    "inverted and shuffled": lambda: [
        conv(3, 4, stride=2, mode="replicate"), nn.Hardswish(),
        Sum(conv(4, 8, 1), nn.ReLU6(), conv(8, 8, groups=8), nn.PReLU(8), conv(8, 4, 1)),
        Shuffled(nn.Sequential(conv(2, 2), nn.Mish())),
    ],
    "mixed": lambda: [
        nn.Conv2d(3, 6, 2, 2), nn.GELU(), nn.BatchNorm2d(6),
        Sum(nn.Conv2d(6, 6, 5, groups=6, padding="same"), nn.GELU("tanh"), nn.BatchNorm2d(6)),
    ],
    "sorted": lambda: [
        parametrizations.spectral_norm(nn.Conv2d(3, 6, 3, padding=1, padding_mode="circular")), Sorted(),
        BlurPool2d(6), parametrizations.weight_norm(nn.Conv2d(6, 4, 1)), Sorted(),
    ],
    "hourglass": lambda: [
        Joined(
            conv(3, 4, stride=2), nn.CELU(0.5), nn.Upsample(scale_factor=2, mode="bilinear"), conv(4, 3),
            shortcut=nn.Upsample(size=(8, 8)),
        ),
        nn.PixelUnshuffle(2), nn.Hardtanh(-0.5, 2.0),
    ],
}  # fmt: skip


def steepest_jacobian(function: nn.Module) -> float:
    """The largest norm of the Jacobian at images of many kinds, and where climbing from them leads, float64."""
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(3, *SHAPE, generator=generator, dtype=torch.float64)
    board = ((torch.arange(8)[:, None] + torch.arange(8)) % 2).double().expand(1, *SHAPE)
    points = torch.cat([random.sigmoid(), 3 * random, 100 * random[:1], board, 0 * board, board + 1e-9 * random])
    best = 0.0
    for _ in range(4):
        # One row of the Jacobian per number of the result; images do not see each other.
        images = points.expand(4, *points.shape).flatten(0, 1).requires_grad_()
        row = torch.arange(4).repeat_interleave(len(points))
        (rows,) = torch.autograd.grad(function(images)[torch.arange(len(images)), row].sum(), images)
        jacobians = rows.view(4, len(points), -1).transpose(0, 1)
        _, lengths, right = torch.linalg.svd(jacobians, full_matrices=False)
        best = max(best, float(lengths.max()))
        points = points + 0.3 * points.flatten(1).norm(dim=1).view(-1, 1, 1, 1) * right[:, 0].view(points.shape)
    return best


@pytest.mark.parametrize("style", STYLES)
def test_no_jacobian_exceeds_the_bound_of_a_network(style: str) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(*STYLES[style](), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.LazyLinear(4)).eval()
    network(IMAGES)
    network = randomised(network).requires_grad_(False)
    bound = float(SpectralProduct()(network, IMAGES).constant[0])
    found = steepest_jacobian(network.double())
    assert 0.1 * bound < found <= bound * (1 + 1e-9)


REFUSED = {
    "group_norm": nn.GroupNorm(1, 3),
    "scaled_dot_product_attention": nn.Sequential(
        nn.Flatten(2), nn.TransformerEncoderLayer(64, 2, 8, batch_first=True)
    ),
    "softplus": nn.Softplus(),  # it jumps by 2e-9 where it turns into the identity
    "whether its std is 0": Normalize((0.5,) * 3, (0.2,) * 3),
    "computes in torch.float16": nn.Conv2d(3, 2, 1).half(),
}


@pytest.mark.parametrize("named", REFUSED)
def test_what_is_refused_is_named_and_not_what_follows_from_it(named: str) -> None:
    network = nn.Sequential(REFUSED[named], nn.Flatten()).eval()
    images = IMAGES.half() if "float16" in named else IMAGES
    with pytest.raises(UnprovenOperationError, match=named):
        SpectralProduct()(network, images)


def test_scripted_modules_are_refused_by_their_kind() -> None:
    network = nn.Sequential(torch.jit.trace(nn.Conv2d(3, 2, 1), IMAGES), nn.Flatten()).eval()
    with pytest.raises(UnprovenOperationError, match=r"Traced.*\(0\)"):
        SpectralProduct()(network, IMAGES)
