"""CLEVER on score margins."""

from __future__ import annotations

import torch
from torch import nn

from ellips import Ellips
from ellips.input_certifiers import ByConstant, Chain, MarginClever
from ellips.input_certifiers.margin_clever import Margins
from ellips.lipschitz import Clever
from ellips.types import Series
from tests.ellips.input_certifiers.chains import FEW, case, relu_chain


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


def test_the_margin_certificate_is_larger_than_the_latent_one_divided_by_the_constant() -> None:
    given, settings = case(relu_chain(), torch.rand(4, 1, 6, 6)), {"radius": 0.3, **FEW}
    margin = MarginClever(**settings).certify(*given)
    latent = ByConstant(Clever(**settings)).certify(*given)
    assert (margin.soundness, margin.space, margin.method) == ("estimated", "input", "margin")
    assert torch.equal(margin.prediction, latent.prediction)
    assert (margin.radius >= 0.999 * latent.radius).all()
    assert (margin.radius > latent.radius).any()
    assert (margin.radius <= 0.3).all()
    assert (margin.rival != margin.prediction).all()
    torch.testing.assert_close(margin.radius, (margin.margin / margin.lipschitz).clamp_max(0.3))


def test_the_certificate_gives_the_constant_of_the_deciding_margin() -> None:
    # Of equal covariances, margins are linear in the latent: 2 (mu_j - mu_k) is their gradient.
    ellips = Ellips.from_parameters(torch.eye(3), torch.eye(3).expand(3, 3, 3), torch.full((3,), 1 / 3))
    given = case(Chain(lambda images: images.flatten(1)[:, :3], ellips), torch.rand(2, 1, 2, 2))
    certificate = MarginClever(**FEW).certify(*given)
    torch.testing.assert_close(certificate.lipschitz, torch.full((2,), 8.0, dtype=torch.float64).sqrt())
    scores = given.chain.scores(given.images)
    rows = torch.arange(2)
    torch.testing.assert_close(
        certificate.margin, scores[rows, certificate.prediction] - scores[rows, certificate.rival]
    )


def test_the_series_says_margin_whatever_the_latent_method() -> None:
    assert MarginClever().series("pairwise") == Series("input", "margin", "clever")
