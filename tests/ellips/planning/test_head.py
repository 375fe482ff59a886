"""Operations against torch's own count, where it counts them."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from ellips.planning import fit_flops, projector_numbers, search_flops, training_flops
from ellips.projector import Projector


def test_training_is_about_what_torch_counts() -> None:
    projector, features = Projector(60, 20, 200), torch.randn(50, 60, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        projector(features).sum().backward()
    parameters, _ = projector_numbers(60, 20, 200)
    said = training_flops(parameters, 50, epochs=1)
    assert abs(said - counter.get_total_flops()) < 0.02 * said  # batch normalisation and biases, which it leaves out


def test_fits_and_searches_grow_as_they_do() -> None:
    assert fit_flops(0, 100, 10, 8, fits=2) == 2 * (100 * 2 * 64 + 10 * 512)
    assert search_flops(6, 50, 10, 8, fits=2) == 2 * 6 * 10 * (512 + 2 * 64 * 50)
