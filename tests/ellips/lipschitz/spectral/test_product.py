from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from ellips.encoders import FrozenEncoder
from ellips.head import EllipsHead
from ellips.lipschitz import SpectralProduct, UnprovenOperationError
from ellips.lipschitz.spectral.norms import SLACK

BOTH = pytest.mark.parametrize("dense_limit", [0, 1024], ids=["rules", "dense"])
Function = Callable[[Tensor], Tensor]


def norm_of(module: nn.Module, shape: tuple[int, ...]) -> float:
    """The norm of an affine function, exact but for what float64 rounds."""
    function = deepcopy(module).double()
    zero = torch.zeros(1, *shape, dtype=torch.float64)
    basis = torch.eye(zero.numel(), dtype=torch.float64).view(-1, *shape)
    with torch.no_grad():
        return float(torch.linalg.matrix_norm(function(basis) - function(zero), ord=2))


def largest_secant(function: Function, shape: tuple[int, ...], steps: int = 150) -> float:
    """Search pairs of images for the largest ratio of distances, by gradient ascent from several starts."""
    generator = torch.Generator().manual_seed(0)
    left = torch.rand(16, *shape, generator=generator).requires_grad_()
    right = (left.detach() + 0.1 * torch.randn(16, *shape, generator=generator)).requires_grad_()
    optimizer = torch.optim.Adam([left, right], lr=0.02)
    best = 0.0
    for _ in range(steps):
        distance = (left - right).flatten(1).norm(dim=1)
        slope = (function(left) - function(right)).norm(dim=1) / distance.clamp_min(1e-3)
        best = max(best, float(slope.detach()[distance > 1e-3].max()))
        optimizer.zero_grad()
        (-slope.sum()).backward()
        optimizer.step()
    return best


def randomise_statistics(module: nn.Module) -> nn.Module:
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(layer.running_var, 0.3, 2.0)
            nn.init.normal_(layer.running_mean)
            nn.init.normal_(layer.weight)
    return module.eval().requires_grad_(False)


class Residual(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        return images + self.layers(images)


AFFINE = {
    "linear": nn.Sequential(nn.Flatten(), nn.Linear(48, 20, bias=False)),
    "affine": nn.Sequential(nn.Flatten(), nn.Linear(48, 20)),
    "two layers": nn.Sequential(nn.Flatten(), nn.Linear(48, 60), nn.Linear(60, 10)),
    "batch norm": nn.Sequential(nn.Flatten(), nn.Linear(48, 20), nn.BatchNorm1d(20)),
    "convolution": nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.Flatten()),
    "pooled": nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    "residual": nn.Sequential(Residual(nn.Conv2d(3, 3, 3, padding=1)), nn.Flatten()),
}


@BOTH
@pytest.mark.parametrize("name", AFFINE)
def test_the_bound_of_an_affine_map_is_at_least_its_norm(name: str, dense_limit: int) -> None:
    torch.manual_seed(0)
    function = randomise_statistics(AFFINE[name])
    truth = norm_of(function, (3, 4, 4))
    bound = SpectralProduct(dense_limit)(function, torch.rand(2, 3, 4, 4))
    assert (bound.constant >= truth).all()
    assert bound.soundness == "deterministic"
    assert bound.ball_radius.tolist() == [float("inf")] * 2
    if dense_limit:  # the whole map is one piece: nothing is lost
        torch.testing.assert_close(bound.constant, torch.full_like(bound.constant, truth), rtol=1e-5, atol=0)


NETWORKS: dict[str, list[nn.Module]] = {
    "relu": [nn.Flatten(), nn.Linear(48, 40), nn.ReLU(), nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 5)],
    "in place": [nn.Flatten(), nn.Linear(48, 40), nn.ReLU(inplace=True), nn.Linear(40, 5)],
    "smooth": [nn.Flatten(), nn.Linear(48, 40), nn.GELU(), nn.Linear(40, 30), nn.SiLU(), nn.Linear(30, 5), nn.ELU()],
    "convolutional": [
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.LeakyReLU(0.1), nn.MaxPool2d(3, 2, 1),
        Residual(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    ],
}  # fmt: skip


@BOTH
@pytest.mark.parametrize("name", NETWORKS)
def test_the_bound_is_at_least_the_largest_secant_slope_an_attack_finds(name: str, dense_limit: int) -> None:
    torch.manual_seed(0)
    function = randomise_statistics(nn.Sequential(*NETWORKS[name]))
    bound = SpectralProduct(dense_limit)(function, torch.rand(1, 3, 4, 4))
    found = largest_secant(function, (3, 4, 4))
    assert found > 0.05 * float(bound.constant[0])  # the attack does find something
    assert found <= float(bound.constant[0])


@BOTH
def test_preprocessing_lies_inside_the_bound(dense_limit: int) -> None:
    encoder = FrozenEncoder(nn.Flatten(), input_size=12, in_channels=3, mean=(0.5, 0.4, 0.3), std=(0.5, 0.25, 0.2))
    truth = norm_of(encoder, (1, 5, 5))
    bound = float(SpectralProduct(dense_limit)(encoder, torch.rand(1, 1, 5, 5)).constant[0])
    # Written out as one matrix nothing is lost; as a product, the largest of three channels counts for all.
    assert truth <= bound <= truth * (1 + 1e-5 if dense_limit else 2.0)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest-exact"])
@pytest.mark.parametrize("size", [3, 5, 13])
def test_every_resize_has_a_rule(interpolation: str, size: int) -> None:
    encoder = FrozenEncoder(nn.Flatten(), input_size=size, in_channels=1, interpolation=interpolation)
    truth = norm_of(encoder, (1, 6, 6))
    bound = float(SpectralProduct(0)(encoder, torch.rand(1, 1, 6, 6)).constant[0])
    assert truth <= bound <= truth * (1 + 1e-5)


def test_a_timm_network_with_its_head_is_bounded() -> None:
    encoder = FrozenEncoder("test_resnet", weights="random", input_size=32)
    head = EllipsHead(encoder.feature_dim, num_classes=3, latent_dim=8, hidden_dim=16).eval()

    def latents(images: Tensor) -> Tensor:
        return head.latents(encoder(images))

    images = torch.rand(1, 1, 8, 8)
    bound = SpectralProduct(dense_limit=100)(latents, images)
    jacobian = torch.func.jacrev(lambda image: latents(image[None])[0])(images[0])
    assert torch.linalg.matrix_norm(jacobian.flatten(1), ord=2) <= bound.constant[0] < float("inf")


def test_projection_on_the_ball_costs_nothing() -> None:
    torch.manual_seed(0)
    plain = EllipsHead(16, num_classes=3, latent_dim=4, hidden_dim=8).eval()
    ball = EllipsHead(16, num_classes=3, latent_dim=4, hidden_dim=8, latent_norm="ball").eval()
    ball.load_state_dict(plain.state_dict())
    images = torch.rand(1, 1, 4, 4)
    bounds = [SpectralProduct()(lambda x, head=head: head.latents(x.flatten(1)), images) for head in (plain, ball)]
    torch.testing.assert_close(bounds[0].constant, bounds[1].constant)


def decide_by_brightness(images: Tensor) -> Tensor:
    return images.flatten(1) if images.mean() > 0.5 else 2 * images.flatten(1)


REFUSED: dict[str, Function] = {
    "attention": lambda x: functional.scaled_dot_product_attention(x.flatten(2), x.flatten(2), x.flatten(2)).flatten(1),
    "layer norm": lambda x: functional.layer_norm(x.flatten(1), (48,)),
    "square": lambda x: (x * x).flatten(1),
    "own matrix": lambda x: (x.flatten(2)[0] @ x.flatten(2)[0].T).reshape(1, -1),
    "own bias": lambda x: torch.addmm(x.view(4, 12), x.view(4, 12), torch.ones(12, 12)).view(1, -1),
    "reciprocal": lambda x: 1 / x.flatten(1),
    "own kernel": lambda x: functional.conv2d(x, x).flatten(1),
    "batch statistics": lambda x: functional.batch_norm(x, None, None, training=True).flatten(1),
    "decision": decide_by_brightness,
    "rounding": lambda x: x.round().flatten(1),
    "integers": lambda x: (255 * x).int().float().flatten(1),
    "half precision": lambda x: x.bfloat16().float().flatten(1),
    "floor division": lambda x: torch.div(x, 0.25, rounding_mode="floor").flatten(1),
    "bits": lambda x: (x.view(torch.int32) + 1).view(torch.float32).flatten(1),
    "integer sum": lambda x: x.sum(dim=1, dtype=torch.int64).float().flatten(1),
    "log": lambda x: x.log().flatten(1),
    "noise": lambda x: (x + torch.randn_like(x)).flatten(1),
    "positions": lambda x: x.flatten(1).argmax(1, keepdim=True) * x.flatten(1),
    "where": lambda x: torch.where(x > 0.5, x, 0 * x).flatten(1),
    "constant": lambda x: torch.zeros(1, 4),
}


@BOTH
@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_proven_constant_is_refused(name: str, dense_limit: int) -> None:
    with pytest.raises(UnprovenOperationError, match="Expected"):
        SpectralProduct(dense_limit)(REFUSED[name], torch.rand(1, 3, 4, 4))


def chain(images: Tensor) -> Tensor:
    for _ in range(40):
        images = functional.leaky_relu(images, -1.1)
    return images.flatten(1)


def sums(images: Tensor) -> Tensor:
    total = functional.leaky_relu(images, 0.1)
    for slope in (-1.1, -1.7, -2.3, -1.9) * 5:
        total = total + functional.leaky_relu(images, slope)
    return total.flatten(1)


EXACT = {
    "one slope": (lambda x: functional.leaky_relu(x, -4.0).flatten(1), Fraction(4)),
    "a product of slopes": (chain, Fraction(1.1) ** 40),
    "a sum of slopes": (sums, 1 + 5 * sum(Fraction(slope) for slope in (1.1, 1.7, 2.3, 1.9))),
}


@pytest.mark.parametrize("name", EXACT)
def test_what_is_known_exactly_is_not_undercut_by_the_last_bit(name: str) -> None:
    """Sums and products of the bounds themselves round, too."""
    function, exact = EXACT[name]
    bound = SpectralProduct(dense_limit=0).constant(function, torch.rand(1, 3, 4, 4))
    assert exact <= Fraction(bound) <= exact * (1 + Fraction(1, 10**9))


def test_dense_pieces_are_tighter_than_products() -> None:
    torch.manual_seed(0)
    function = randomise_statistics(nn.Sequential(*NETWORKS["convolutional"]))
    images = torch.rand(1, 3, 8, 8)
    loose, tight = (float(SpectralProduct(limit)(function, images).constant[0]) for limit in (0, 1024))
    assert tight < loose


def test_changed_weights_change_the_bound() -> None:
    function, source, images = (
        nn.Sequential(nn.Flatten(), nn.Linear(16, 4)).eval(),
        SpectralProduct(),
        torch.rand(1, 1, 4, 4),
    )
    before = source(function, images)
    with torch.no_grad():
        function[1].weight.mul_(2)
    torch.testing.assert_close(source(function, images).constant, 2 * before.constant)
    assert len(source._known) == 2
    source(function, torch.rand(3, 1, 4, 4))
    assert len(source._known) == 2


def test_the_bound_exists_for_no_images_and_in_inference_mode() -> None:
    function = nn.Sequential(nn.Flatten(), nn.Linear(16, 4)).eval()
    with torch.inference_mode():
        assert len(SpectralProduct()(function, torch.empty(0, 1, 4, 4))) == 0
        assert SpectralProduct()(function, torch.rand(2, 1, 4, 4)).constant.shape == (2,)


@pytest.mark.parametrize("setting", [{"dense_limit": -1}, {"gram_iterations": 0}])
def test_settings_out_of_range_are_refused(setting: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        SpectralProduct(**setting)


def test_weights_that_are_computed_leave_room_for_what_float64_loses() -> None:
    weight = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(weight)

        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1) @ (0.3 * self.weight)

    truth = float(torch.linalg.svdvals(0.3 * weight.double())[0])
    for limit in (0, 1024):
        bound = SpectralProduct(dense_limit=limit).constant(Scaled(), torch.rand(1, 3, 2, 2))
        assert 1 + 1.9 * SLACK < bound / truth < 1 + 1e-6  # once for the norm, once for the weights


@pytest.mark.parametrize("sizes", [[0, 3], [3, 0], [1, 0, 2]], ids=str)
@BOTH
def test_a_piece_without_any_numbers_counts_as_nothing(sizes: list[int], dense_limit: int) -> None:
    class Split(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            pieces = [2.0 * piece.abs() for piece in images.split(sizes, 1)]
            return torch.cat([piece.relu() + 1 for piece in pieces], 1).flatten(1)

    class Apart(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            pieces = images.split(sizes, 1)
            return torch.cat([(3.0 * pieces[0]).flatten(1), pieces[-1].flatten(1)], 1)

    for network, norm in ((Split(), 2.0), (Apart(), 3.0 if sizes[0] else 1.0)):
        constant = SpectralProduct(dense_limit=dense_limit).constant(network, torch.zeros(1, 3, 2, 2))
        assert norm <= constant < norm * (1.5 if isinstance(network, Apart) else 1.000001)
        assert constant * (1 + 1e-5) >= largest_secant(network, (3, 2, 2), steps=20)  # found in float32


def test_what_comes_of_no_numbers_alone_has_no_constant() -> None:
    with pytest.raises(UnprovenOperationError, match="range of numbers"):
        SpectralProduct().constant(
            lambda images: images[:, :0].flatten(1).sum(1, keepdim=True), torch.zeros(1, 3, 2, 2)
        )
