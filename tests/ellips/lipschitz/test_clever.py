from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ellips.lipschitz import Clever

FEW = {"num_batches": 10, "num_samples": 16, "chunk_size": 32}


def relu_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 30), nn.ReLU(), nn.Linear(30, 5)).eval()


@pytest.mark.parametrize("bias", [False, True], ids=["linear", "affine"])
def test_clever_is_within_one_percent_of_a_known_constant(bias: bool) -> None:
    torch.manual_seed(0)
    function = nn.Sequential(nn.Flatten(), nn.Linear(48, 20, bias=bias)).eval()
    truth = float(torch.linalg.matrix_norm(function[1].weight.detach().double(), ord=2))
    bound = Clever(**FEW)(function, torch.rand(3, 3, 4, 4))
    assert (bound.constant >= 0.99 * truth).all()
    assert (bound.constant <= 1.0001 * truth).all()
    assert bound.soundness == "estimated"
    assert bound.ball_radius.tolist() == [0.5] * 3


def test_clever_is_at_least_the_largest_jacobian_norm_it_saw() -> None:
    function, images = relu_network(), torch.rand(2, 1, 6, 6)
    source = Clever(radius=1.0, num_iterations=4, **FEW)
    bound = source(function, images)
    assert (bound.constant >= bound.diagnostics["sample_maximum"]).all()
    norms, residuals = source.norms(function, images[0])
    assert norms.shape == residuals.shape == (160,)
    assert float(norms.max()) == float(bound.diagnostics["sample_maximum"][0])


def test_sampled_norms_equal_those_of_full_jacobians() -> None:
    function, image = relu_network(), torch.rand(1, 6, 6)
    source = Clever(radius=0.25, num_iterations=3, **FEW)
    points = torch.cat(list(source.points(image)))
    jacobians = torch.stack([torch.func.jacrev(lambda x: function(x[None])[0])(point) for point in points]).detach()
    truth = torch.linalg.matrix_norm(jacobians.flatten(2).double(), ord=2)
    norms, _ = source.norms(function, image)
    assert (norms <= truth * (1 + 1e-5)).all()
    assert float(((truth - norms) / truth).max()) < 0.01
    assert len(points.unique(dim=0)) == 160  # drawn afresh, not from a pool
    assert (points - image).flatten(1).norm(dim=1).max() <= 0.25 + 1e-6


def test_clever_does_not_depend_on_batch_or_order() -> None:
    function, images = relu_network(), torch.rand(3, 1, 6, 6)
    source = Clever(**FEW)
    whole, single = source(function, images), source(function, images[2:])
    assert whole.constant[2] == single.constant[0]
    assert whole.source == single.source
    other = Clever(**FEW, seed=1)(function, images)
    assert (other.constant != whole.constant).any()
    assert other.source != whole.source


def test_clever_survives_points_where_the_function_is_flat() -> None:
    function = nn.Sequential(nn.Flatten(), nn.Linear(36, 4), nn.ReLU())
    nn.init.constant_(function[1].bias, -100.0)
    assert Clever(**FEW)(function, torch.rand(1, 1, 6, 6)).constant.tolist() == [0.0]


def test_a_neighbours_vector_that_says_nothing_here_does_not_hide_the_norm() -> None:
    """One output is steep beyond a kink only, the other before it only: each is dead at the other's points."""

    def function(images: Tensor) -> Tensor:
        pixel = images.flatten(1)[:, 0]
        return torch.stack([(0.5 - pixel).clamp_min(0), 3 * (pixel - 0.5).clamp_min(0)], dim=1)

    image = torch.full((1, 2, 2), 0.49)
    norms, _ = Clever(radius=0.25, **FEW).norms(function, image)
    beyond = torch.cat(list(Clever(radius=0.25, **FEW).points(image))).flatten(1)[:, 0] > 0.5
    assert 0 < int(beyond.sum()) < 160
    torch.testing.assert_close(norms, torch.where(beyond, 3.0, 1.0).double(), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    "setting",
    [
        {"radius": 0.0},
        {"radius": float("inf")},
        {"num_batches": 0},
        {"num_samples": 0},
        {"num_iterations": 0},
        {"chunk_size": 0},
        {"sampling": "cube"},
        {"max_stretch": 0.5},
    ],
)
def test_settings_out_of_range_are_refused(setting: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        Clever(**setting)  # type: ignore[arg-type]
