from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ellips.lipschitz import Clever, JacobianNorm
from ellips.lipschitz.products import FrozenLayers, linearize, record


def randomised(*layers: nn.Module) -> nn.Sequential:
    """Layers in float64 whose running statistics are not those of a new layer."""
    torch.manual_seed(0)
    network = nn.Sequential(*layers)
    for layer in network.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(layer.running_mean)
            nn.init.uniform_(layer.running_var, 0.5, 2.0)
            if layer.affine:
                nn.init.normal_(layer.weight)
                nn.init.normal_(layer.bias)
    return network.double().eval()


NETWORKS: dict[str, tuple[Callable[[], nn.Sequential], tuple[int, ...]]] = {
    "conv2d, stride that skips rows": (
        lambda: randomised(nn.Conv2d(2, 4, 3, stride=2), nn.ReLU(inplace=True), nn.Flatten()),
        (2, 8, 6),
    ),
    "conv2d, uneven settings": (
        lambda: randomised(
            nn.Conv2d(4, 6, (3, 2), stride=(3, 2), padding=(2, 0), dilation=(1, 2), groups=2, bias=False), nn.Flatten()
        ),
        (4, 9, 8),
    ),
    "padding by name": (lambda: randomised(nn.Conv2d(1, 2, 3, padding="same"), nn.Flatten()), (1, 5, 5)),
    "reflected padding": (
        lambda: randomised(nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect"), nn.Flatten()),
        (1, 5, 5),
    ),
    "batch norm": (
        lambda: randomised(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.Flatten()),
        (2, 5, 5),
    ),
    "batch norm without scale": (
        lambda: randomised(nn.BatchNorm2d(2, affine=False), nn.Tanh(), nn.Flatten()),
        (2, 3, 3),
    ),
    "batch norm without statistics in one dimension": (
        lambda: randomised(nn.Flatten(2), nn.InstanceNorm1d(2, affine=True), nn.Flatten()),
        (2, 3, 3),
    ),
    "conv1d and batch norm of rows": (
        lambda: randomised(nn.Flatten(2), nn.Conv1d(2, 3, 4, stride=3), nn.Flatten(), nn.BatchNorm1d(6)),
        (2, 3, 3),
    ),
    "conv3d": (
        lambda: randomised(nn.Unflatten(1, (1, 3)), nn.Conv3d(1, 2, (2, 3, 3), stride=(1, 2, 1)), nn.Flatten()),
        (3, 6, 5),
    ),
    "transposed convolution": (lambda: randomised(nn.ConvTranspose2d(1, 2, 3, stride=2), nn.Flatten()), (1, 4, 4)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_products_equal_those_of_torch_func(name: str) -> None:
    make, shape = NETWORKS[name]
    network = make()
    points = torch.randn(3, *shape, dtype=torch.float64)
    direction = torch.randn_like(points)
    value, expected_push = torch.func.jvp(network, (points,), (direction,))
    first, second = torch.randn_like(value), torch.randn_like(value)
    _, transpose = torch.func.vjp(network, points)
    found = linearize(network, points, first)
    torch.testing.assert_close(found.pulled, transpose(first)[0])
    for _ in range(2):  # as often as one likes
        torch.testing.assert_close(found.pull_back(second), transpose(second)[0])
        torch.testing.assert_close(found.push_forward(direction), expected_push)
    _, recorded = record(network, points)
    torch.testing.assert_close(recorded, value)


def test_layers_in_training_mode_and_single_images_are_left_to_torch() -> None:
    batch_norm, convolution = nn.BatchNorm2d(2).double(), nn.Conv2d(2, 3, 3).double()
    points = torch.randn(4, 2, 5, 5, dtype=torch.float64)
    with FrozenLayers():
        trained = batch_norm(points)
        single = convolution(points[0])
    torch.testing.assert_close(trained, nn.functional.batch_norm(points, None, None, training=True))
    torch.testing.assert_close(single, convolution(points)[0])


def test_trainable_layers_get_no_gradients() -> None:
    network = randomised(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(18, 4))
    linearize(network, torch.rand(2, 1, 5, 5).double(), torch.rand(2, 4).double())
    assert all(parameter.grad is None for parameter in network.parameters())


def detached(images: Tensor) -> Tensor:
    return images.detach().flatten(1)


@pytest.mark.parametrize(
    "function",
    [detached, lambda x: detached(x) * nn.Parameter(torch.ones(9))],
    ids=["no graph", "a graph to the weights only"],
)
@pytest.mark.parametrize(
    "source", [JacobianNorm(), Clever(num_batches=5, num_samples=4)], ids=lambda s: type(s).__name__
)
def test_a_function_that_hides_its_derivative_is_refused(
    source: JacobianNorm | Clever, function: Callable[[Tensor], Tensor]
) -> None:
    with pytest.raises(ValueError, match="taken for 0"):
        source(function, torch.rand(2, 1, 3, 3))
