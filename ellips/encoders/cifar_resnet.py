"""Residual networks for 32x32 images."""

from __future__ import annotations

from typing import Final

from torch import Tensor, nn
from torch.nn import functional

from ellips.validation import at_least, one_of

CIFAR10_MEAN: Final = (0.4914, 0.4822, 0.4465)
CIFAR10_STD: Final = (0.2470, 0.2435, 0.2616)
_GRIDS: Final = (1, 2, 4, 8)


class CifarResNet(nn.Module):
    """The residual network of He et al. 2016, section 4.2, without its last linear layer.

    A 3x3 convolution, then three stages of ``(depth - 2) / 6`` blocks with ``width``, ``2 width`` and ``4 width``
    channels, the second and the third at half the resolution of the one before, then the mean over all pixels, or over
    each cell of a grid.
    Shortcuts have no parameters (option A). timm's residual networks are for ImageNet: they shrink an image of 32x32
    to 1x1.

    Hand it to :class:`ellips.FrozenEncoder` as its model; it brings CIFAR-10's mean and standard deviation.

    Args:
        depth: Number of layers with weights, 6n + 2: 8, 14, 20, 32, 44, 56, 110.
        width: Channels of the first stage; the paper's is 16.
        grid: Cells of equal size along each side, 1, 2, 4 or 8, over which means are taken; the paper's is 1. Weights
            are the same for all: features of a finer grid tell where things are, too.

    Attributes:
        num_features: Width of the features, four times ``width`` for each cell.
        settings: The arguments, for the record of a training.

    Raises:
        ValueError: If the depth or the grid is none of those, or the width not positive.
    """

    def __init__(self, depth: int = 20, width: int = 16, grid: int = 1) -> None:
        super().__init__()
        at_least(1, width=width)
        one_of(_GRIDS, grid=grid)
        blocks, rest = divmod(depth - 2, 6)
        if blocks < 1 or rest:
            raise ValueError(f"Expected `depth` to be 6n + 2 (8, 14, 20, ...) but got {depth}.")
        self.settings = {"depth": depth, "width": width} | ({"grid": grid} if grid > 1 else {})
        # Layers that differ in arguments alone must differ in a fingerprint, too.
        named = ", ".join(f"{name}={value}" for name, value in self.settings.items())
        self.ARCHITECTURE = f"ellips.encoders.CifarResNet({named})"
        self.grid = grid
        self.stem = _convolution(3, width)
        self.norm = nn.BatchNorm2d(width)
        layers: list[nn.Module] = []
        inner = width
        for stage, outer in enumerate((width, 2 * width, 4 * width)):
            for block in range(blocks):
                layers.append(_Block(inner, outer, stride=2 if stage > 0 and block == 0 else 1))
                inner = outer
        self.stages = nn.Sequential(*layers)
        self.num_features = 4 * width * grid**2
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        # Read by FrozenEncoder, as it reads timm's.
        self.pretrained_cfg = {
            "input_size": (3, 32, 32),
            "mean": CIFAR10_MEAN,
            "std": CIFAR10_STD,
            "interpolation": "bicubic",
        }

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images ``(N, 3, H, W)`` to features ``(N, 4 width)``, ``grid²`` times as many."""
        maps: Tensor = self.stages(functional.relu(self.norm(self.stem(images))))
        return maps.mean((2, 3)) if self.grid == 1 else functional.adaptive_avg_pool2d(maps, self.grid).flatten(1)


class _Block(nn.Module):
    """Two convolutions and a shortcut: every second pixel where the block halves, zeros for channels that are new."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _convolution(inner, outer, stride)
        self.norm1 = nn.BatchNorm2d(outer)
        self.conv2 = _convolution(outer, outer)
        self.norm2 = nn.BatchNorm2d(outer)
        self.stride = stride
        self.new_channels = outer - inner

    def forward(self, maps: Tensor) -> Tensor:
        change = self.norm2(self.conv2(functional.relu(self.norm1(self.conv1(maps)))))
        shortcut = maps[:, :, :: self.stride, :: self.stride]
        if self.new_channels:
            shortcut = functional.pad(shortcut, (0, 0, 0, 0, 0, self.new_channels))
        return functional.relu(shortcut + change)


def _convolution(inner: int, outer: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inner, outer, 3, stride=stride, padding=1, bias=False)
