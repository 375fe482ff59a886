from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ellips.lipschitz import JacobianNorm
from ellips.lipschitz.jacobian import spectral_norms
from ellips.lipschitz.sampling import sample_ball
from ellips.randomness import image_generator


def network(seed: int = 0, width: int = 24) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, width), nn.Tanh(), nn.Linear(width, 7)
    ).eval()


def exact_norms(function: nn.Module, images: Tensor) -> Tensor:
    jacobians = torch.stack([torch.func.jacrev(lambda x: function(x[None])[0])(image) for image in images])
    return torch.linalg.matrix_norm(jacobians.flatten(2), ord=2).double()


def test_spectral_norms_equal_the_svd_of_the_full_jacobian() -> None:
    function, images = network().double(), torch.rand(5, 1, 6, 6, dtype=torch.float64)
    found = spectral_norms(function, images, torch.randn(5, 7).double(), num_iterations=7)
    torch.testing.assert_close(found.norm, exact_norms(function, images), rtol=1e-9, atol=0)
    assert (found.residual < 1e-3).all()


def test_norms_approach_from_below_and_the_residual_tells_how_far_they_are() -> None:
    function, images = network(1).double(), torch.rand(6, 1, 6, 6, dtype=torch.float64)
    start, truth = torch.randn(6, 7).double(), exact_norms(network(1).double(), images)
    norms = torch.stack([spectral_norms(function, images, start, num_iterations=k).norm for k in (1, 2, 3, 5)])
    assert (norms <= truth * (1 + 1e-12)).all()
    assert (norms.diff(dim=0) >= -1e-12).all()
    coarse = spectral_norms(function, images, start, num_iterations=1, tolerance=0.0)
    assert (coarse.residual > 1e-2).all()


def test_the_returned_vectors_are_singular_vectors() -> None:
    function, images = network(2).double(), torch.rand(3, 1, 6, 6, dtype=torch.float64)
    found = spectral_norms(function, images, torch.randn(3, 7).double(), num_iterations=7)
    product = torch.func.jvp(function, (images,), (found.right,))[1]
    torch.testing.assert_close(product, found.norm[:, None] * found.left)
    torch.testing.assert_close(torch.linalg.vector_norm(found.right.flatten(1), dim=1), torch.ones(3).double())
    again = spectral_norms(function, images, found.left, num_iterations=1)
    torch.testing.assert_close(again.norm, found.norm)


def test_a_constant_function_has_norm_zero() -> None:
    found = spectral_norms(lambda x: 0 * x.flatten(1), torch.rand(2, 1, 3, 3), torch.rand(2, 9), num_iterations=3)
    assert found.norm.tolist() == [0.0, 0.0]
    assert found.left.norm(dim=1).allclose(torch.ones(2))  # it may start a neighbour's iteration
    assert torch.isfinite(found.right).all()
    assert found.residual.tolist() == [0.0, 0.0]


def test_a_function_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(2, d\)"):
        spectral_norms(lambda x: x, torch.rand(2, 1, 3, 3), torch.rand(2, 9))
    with pytest.raises(ValueError, match=r"start vector.*\(2, 9\).*got \(2, 4\)"):
        spectral_norms(lambda x: x.flatten(1), torch.rand(2, 1, 3, 3), torch.rand(2, 4))
    with pytest.raises(ValueError, match=r"shape \(1, d\)"):
        JacobianNorm()(lambda x: x, torch.rand(2, 1, 3, 3))


@pytest.mark.parametrize("bias", [False, True], ids=["linear", "affine"])
def test_jacobian_norm_is_within_one_percent_below_the_truth(bias: bool) -> None:
    torch.manual_seed(0)
    function = nn.Sequential(nn.Flatten(), nn.Linear(48, 20, bias=bias)).eval()
    truth = torch.linalg.matrix_norm(function[1].weight.double(), ord=2)
    bound = JacobianNorm()(function, torch.rand(4, 3, 4, 4))
    assert (bound.constant >= 0.99 * truth).all()
    assert (bound.constant <= truth * (1 + 1e-5)).all()
    assert bound.soundness == "estimated"
    assert bound.ball_radius.tolist() == [1.0] * 4


def test_jacobian_norm_depends_on_the_image_and_the_seed_only() -> None:
    function, images = network(3), torch.rand(4, 1, 6, 6)
    source = JacobianNorm(num_iterations=1)
    together, backwards = source(function, images), source(function, images.flip(0))
    torch.testing.assert_close(together.constant, backwards.constant.flip(0))
    assert not torch.allclose(together.constant, JacobianNorm(num_iterations=1, seed=1)(function, images).constant)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_jacobian_norm_works_where_gradients_are_off(mode: type[torch.no_grad]) -> None:
    function = network(4).requires_grad_(False)
    with mode():
        images = torch.rand(2, 1, 6, 6)
        bound = JacobianNorm()(function, images)
    torch.testing.assert_close(bound.constant, exact_norms(function, images.clone()), rtol=1e-2, atol=0)
    assert all(parameter.grad is None for parameter in function.parameters())


def test_jacobian_norm_goes_through_fused_attention() -> None:
    torch.manual_seed(0)

    def attend(images: Tensor) -> Tensor:
        tokens = images.flatten(2)
        return nn.functional.scaled_dot_product_attention(tokens, tokens, tokens).flatten(1)

    bound = JacobianNorm(tolerance=1e-4)(attend, torch.rand(2, 3, 4, 4))
    assert (bound.constant > 0).all()


def test_no_images_give_no_constants() -> None:
    assert len(JacobianNorm()(network(), torch.empty(0, 1, 6, 6))) == 0


@pytest.mark.parametrize(
    "setting", [{"num_iterations": 0}, {"tolerance": -1.0}, {"ball_radius": 0.0}, {"ball_radius": float("nan")}]
)
def test_settings_out_of_range_are_refused(setting: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        JacobianNorm(**setting)  # type: ignore[arg-type]


def test_ball_samples_are_uniform_by_volume() -> None:
    points = sample_ball(20000, torch.Size([1, 2, 2]), 3.0, torch.Generator().manual_seed(0))
    norms = points.flatten(1).norm(dim=1)
    assert norms.max() <= 3.0
    # P(norm <= r) = (r / 3) ** 4; the tolerance is five standard errors.
    assert abs(float((norms <= 2.0).double().mean()) - (2 / 3) ** 4) < 5 * 0.5 / 20000**0.5
    assert points.flatten(1).mean(dim=0).abs().max() < 0.06


def test_an_images_generator_knows_the_image_and_the_seed() -> None:
    image, other = torch.rand(1, 3, 3), torch.rand(1, 3, 3)
    states = {image_generator(x, seed).initial_seed() for x in (image, other) for seed in (0, 1)}
    assert len(states) == 4
    assert image_generator(image, 0).initial_seed() == image_generator(image.clone(), 0).initial_seed()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("rank", "width"), [(3, 3), (2, 6)])
def test_more_iterations_than_the_rank_do_not_enlarge_the_norm(dtype: torch.dtype, rank: int, width: int) -> None:
    g = torch.Generator().manual_seed(1)
    matrix = torch.randn(width, rank, generator=g, dtype=dtype) @ torch.randn(rank, 9, generator=g, dtype=dtype)
    images = torch.rand(5, 1, 3, 3, generator=g, dtype=dtype)
    start = torch.randn(5, width, generator=g, dtype=dtype)
    found = spectral_norms(lambda x: x.flatten(1) @ matrix.mT, images, start, num_iterations=20)
    truth = torch.linalg.matrix_norm(matrix.double(), 2).expand(5)
    torch.testing.assert_close(found.norm, truth, rtol=1e-5 if dtype == torch.float32 else 1e-12, atol=0)
