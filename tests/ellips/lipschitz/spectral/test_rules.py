from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from ellips.lipschitz import SpectralProduct, UnprovenOperationError
from ellips.lipschitz.spectral.norms import gram_norm, matrix_norm, pooling_matrix
from ellips.lipschitz.spectral.rules import RULES

Function = Callable[[Tensor], Tensor]

SCALARS: dict[str, Function] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "sine": torch.sin,
    "cosine": torch.cos,
    "arctangent": torch.atan,
    "sigmoid": torch.sigmoid,
    "hard sigmoid": functional.hardsigmoid,
    "gelu": functional.gelu,
    "gelu by tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "silu": functional.silu,
    "mish": functional.mish,
    "hard swish": functional.hardswish,
    "elu": lambda x: functional.elu(x, 3.0),
    "selu": functional.selu,
    "celu": lambda x: functional.celu(x, 0.2),
    "clipped": functional.relu6,
    "leaky": lambda x: functional.leaky_relu(x, -2.0),
    "hard tanh": lambda x: functional.hardtanh(x, -0.3, 0.4),
}


@pytest.mark.parametrize("name", SCALARS)
def test_slopes_are_the_largest_derivatives_and_hardly_more(name: str) -> None:
    points = torch.linspace(-8, 8, 400_001, dtype=torch.float64)
    values = SCALARS[name](points)
    steepest = float(((values[1:] - values[:-1]) / (points[1:] - points[:-1])).abs().max())
    bound = float(SpectralProduct()(lambda x: SCALARS[name](x).flatten(1), torch.rand(1, 1, 2, 2)).constant[0])
    assert steepest - 1e-9 <= bound <= steepest * 1.002


def test_softmax_has_slope_one_half() -> None:
    torch.manual_seed(0)
    points = torch.cat([torch.randn(300, 4, dtype=torch.float64), torch.tensor([[9.0, 9, 0, 0]]).double()])
    jacobians = torch.func.vmap(torch.func.jacrev(lambda v: v.softmax(0)))(points)
    bound = SpectralProduct()(lambda x: x.flatten(1).softmax(1), torch.rand(1, 1, 2, 2)).constant[0]
    assert 0.49 < torch.linalg.matrix_norm(jacobians, ord=2).max() <= bound <= 0.5 + 1e-6


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_norms_of_numbers_that_are_none_are_refused(value: float) -> None:
    matrix = torch.ones(2, 2, dtype=torch.float64)
    matrix[0, 0] = value
    with pytest.raises(UnprovenOperationError, match="finite"):
        matrix_norm(matrix)
    with pytest.raises(UnprovenOperationError, match="finite"):
        gram_norm(matrix[None], 5)


@pytest.mark.parametrize(("size", "out"), [(7, 3), (4, 4), (3, 7), (1, 5), (12, 5)])
def test_adaptive_pooling_is_its_matrix(size: int, out: int) -> None:
    values = torch.rand(1, 1, size, dtype=torch.float64)
    pooled = functional.adaptive_avg_pool1d(values, out)[0, 0]
    torch.testing.assert_close(pooling_matrix(size, out) @ values[0, 0], pooled)


class PartlyDetached(nn.Module):
    """Autograd sees the identity; the function is three times as steep."""

    def forward(self, images: Tensor) -> Tensor:
        flat = images.flatten(1)
        return torch.cat([flat, 0 * flat], 1)[:, :3] + 2 * flat[:, :3].detach()


@pytest.mark.parametrize("dense_limit", [0, 1024])
def test_what_is_hidden_from_autograd_counts(dense_limit: int) -> None:
    bound = SpectralProduct(dense_limit)(PartlyDetached().eval(), torch.rand(1, 1, 4, 4)).constant[0]
    assert 3 <= bound < 3.00001


@pytest.mark.parametrize("factor", [1e-60, 1e60])
def test_numbers_beyond_float32_keep_their_size(factor: float) -> None:
    bound = SpectralProduct()(lambda x: (x.double() * factor).flatten(1), torch.rand(1, 1, 2, 2)).constant[0]
    assert factor <= bound <= factor * 1.00001


def test_a_constant_of_zero_is_refused() -> None:
    layer = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval()
    nn.init.zeros_(layer[1].weight)
    with pytest.raises(UnprovenOperationError, match="positive"):
        SpectralProduct()(layer, torch.rand(1, 1, 2, 2))


def test_every_rule_says_why() -> None:
    assert len(RULES) > 60
    assert all(rule.__doc__ for rule, _ in RULES.values())


def test_rules_look_at_nothing_that_no_operation_has() -> None:
    known = {argument.name for operation in RULES for argument in operation._schema.arguments}
    named = {x.name for _, signature in RULES.values() for x in signature if x.kind is not x.VAR_KEYWORD}
    assert named - known == {"iterations"}
