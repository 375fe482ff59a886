from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ellips import Ellips
from ellips.input_certifiers import MarginClever
from ellips.lipschitz import Clever
from ellips.lipschitz.clever import Margins
from ellips.types import Soundness

FEW = {"num_batches": 10, "num_samples": 16, "chunk_size": 32}


def relu_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 30), nn.ReLU(), nn.Linear(30, 5)).eval()


def gaussians(dim: int = 5, num_classes: int = 4, seed: int = 0) -> Ellips:
    generator = torch.Generator().manual_seed(seed)
    means = 0.3 * torch.randn(num_classes, dim, generator=generator, dtype=torch.float64)
    factors = torch.randn(num_classes, dim, dim, generator=generator, dtype=torch.float64)
    covariances = torch.eye(dim, dtype=torch.float64) + factors @ factors.mT / dim
    return Ellips.from_parameters(means, covariances, torch.full((num_classes,), 1 / num_classes))


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
    jacobians = torch.stack([torch.func.jacrev(lambda x: function(x[None])[0])(point) for point in points])
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


def test_margin_constants_of_a_linear_score_are_known() -> None:
    torch.manual_seed(0)
    scores = nn.Sequential(nn.Flatten(), nn.Linear(36, 4)).eval()
    images = torch.rand(3, 1, 6, 6)
    margins = MarginClever(**FEW).margins(scores, images)
    weight = scores[1].weight.double()
    truth = (weight[margins.prediction][:, None] - weight).norm(dim=2)
    torch.testing.assert_close(margins.constant, truth, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(margins.prediction, scores(images).argmax(1))
    # The radius of a linear classifier is known: the distance to the nearest of its boundaries.
    ratio = (margins.margin / truth).scatter(1, margins.prediction[:, None], float("inf")).amin(1)
    torch.testing.assert_close(margins.radius(100.0)[0], ratio, rtol=1e-5, atol=1e-7)
    assert (margins.radius(1e-3)[0] <= 1e-3).all()


def test_margin_radius_of_a_tie_is_zero_and_of_a_flat_margin_the_ball() -> None:
    zero = torch.zeros(1, 2, dtype=torch.float64)
    tie = Margins(torch.tensor([0]), zero, zero, zero)
    assert tie.radius(1.0)[0].tolist() == [0.0]
    flat = Margins(torch.tensor([0]), torch.tensor([[0.0, 2.0]], dtype=torch.float64), zero, zero)
    assert flat.radius(1.0)[0].tolist() == [1.0]


def test_margin_certificate_is_larger_than_the_latent_one_divided_by_the_constant() -> None:
    function, images, classifier = relu_network(), torch.rand(4, 1, 6, 6), gaussians()
    settings = {"radius": 0.3, **FEW}
    margin = MarginClever(**settings).certify(classifier, function, images)
    latent = Clever(**settings).certify(classifier, function, images)
    assert (margin.soundness, margin.space, margin.method) == ("estimated", "input", "margin")
    assert torch.equal(margin.prediction, latent.prediction)
    assert (margin.radius >= 0.999 * latent.radius).all()
    assert (margin.radius > latent.radius).any()
    assert (margin.radius <= 0.3).all()
    assert (margin.rival != margin.prediction).all()
    torch.testing.assert_close(margin.radius, (margin.margin / margin.lipschitz).clamp_max(0.3))


def test_clever_certificate_carries_its_kind() -> None:
    function, images, classifier = relu_network(), torch.rand(2, 1, 6, 6), gaussians()
    with torch.inference_mode():
        certificate = Clever(**FEW).certify(classifier, function, images)
    kind: Soundness = "estimated"
    assert certificate.soundness == kind
    assert certificate.space == "input"
    assert "Clever" in str(certificate.source)


def scores_of(images: Tensor) -> Tensor:
    return images.flatten(1)[:, :3]


def test_margin_source_gives_the_constant_of_the_deciding_margin() -> None:
    bound = MarginClever(**FEW)(scores_of, torch.rand(2, 1, 2, 2))
    torch.testing.assert_close(bound.constant, torch.full((2,), 2.0, dtype=torch.float64).sqrt())
