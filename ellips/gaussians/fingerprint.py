"""A fingerprint of tensors, as fast as they can be read, to notice that they changed in whatever way."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

_CHUNK = 2**16  # elements that stay in the processor's caches


def fingerprint(tensors: Sequence[Tensor]) -> tuple[int, ...]:
    """Return a number for each float64 tensor that changes with its bits.

    Bits are stirred and added modulo 2^64 with random odd weights by position: a change of one element always shows,
    one of several elements but with a probability of at most about 2^-32. Nothing that nobody could undo on purpose:
    for that there is :meth:`ellips.gaussians.MixtureParameters.digest`.
    """
    return tuple(_add(tensor.detach().contiguous().view(torch.int64)) for tensor in tensors)


def _add(bits: Tensor) -> int:
    if not bits.numel():
        return 0
    bits = bits.reshape(-1, bits.shape[-1])
    parts = [_weigh(_stir(part), 1) for part in bits.split(max(1, _CHUNK // bits.shape[1]))]
    return int(_weigh(torch.cat(parts).unsqueeze(0), 2))


def _stir(bits: Tensor) -> Tensor:
    """Bring the high half, which a product with a weight would push out, down into the low one; reversibly."""
    return (bits >> 32).bitwise_and_(0xFFFFFFFF).bitwise_xor_(bits)


def _weigh(bits: Tensor, seed: int) -> Tensor:
    """Return the weighted sum of each row."""
    weights = _weights(bits.shape[1], seed, bits.device)
    if bits.device.type == "cpu":
        return bits @ weights
    return (bits * weights).sum(-1)  # there is no product of integer matrices on a GPU


@cache
def _weights(size: int, seed: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    with torch.inference_mode(False):
        return (2 * torch.randint(-(2**62), 2**62, (size,), generator=generator) + 1).to(device)
