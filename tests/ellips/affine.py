"""Encoders that are affine maps of the image, written in different ways, and their true Lipschitz constant."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from ellips.encoders import FrozenEncoder

SHAPE = (3, 4, 4)
ENCODERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(48, 12, bias=False)),
    "affine": lambda: nn.Sequential(nn.Flatten(), nn.Linear(48, 12)),
    "affine convolution": lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Flatten()),
    "frozen encoder": lambda: FrozenEncoder(
        nn.Sequential(nn.Flatten(), nn.Linear(147, 12)), input_size=7, in_channels=3, std=(0.3, 0.4, 0.5)
    ),
}


def affine_encoder(name: str) -> tuple[nn.Module, float]:
    """An encoder of :data:`ENCODERS` on images of :data:`SHAPE`, and the spectral norm of its matrix."""
    torch.manual_seed(0)
    function = ENCODERS[name]().eval().requires_grad_(False)
    matrix = function(torch.eye(48).view(-1, *SHAPE)) - function(torch.zeros(1, *SHAPE))
    return function, float(torch.linalg.matrix_norm(matrix.double(), ord=2))
