"""Small classifiers to certify."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ellips import Ellips
from ellips.certificates import Certificate, Method
from ellips.input_certifiers import Chain

FEW = {"num_batches": 10, "num_samples": 16, "chunk_size": 32}
"""Settings of CLEVER that take no time."""


class Case(NamedTuple):
    """What :meth:`ellips.input_certifiers.InputCertifier.certify` takes."""

    chain: Chain
    images: Tensor
    latents: Tensor
    certificate: Certificate


def case(chain: Chain, images: Tensor, method: Method = "exact") -> Case:
    """Encode images and certify their latents."""
    with torch.no_grad():
        latents = chain.latents(images)
        return Case(chain, images, latents, chain.ellips.certify(latents, method))


def gaussians(dim: int = 5, num_classes: int = 4, seed: int = 0) -> Ellips:
    generator = torch.Generator().manual_seed(seed)
    means = 0.3 * torch.randn(num_classes, dim, generator=generator, dtype=torch.float64)
    factors = torch.randn(num_classes, dim, dim, generator=generator, dtype=torch.float64)
    covariances = torch.eye(dim, dtype=torch.float64) + factors @ factors.mT / dim
    return Ellips.from_parameters(means, covariances, torch.full((num_classes,), 1 / num_classes))


def relu_chain() -> Chain:
    """Images ``(N, 1, 6, 6)`` through a ReLU network to four Gaussians."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(36, 30), nn.ReLU(), nn.Linear(30, 5)).eval().requires_grad_(False)
    return Chain(network, gaussians())
