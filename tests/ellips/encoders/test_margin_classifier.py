from __future__ import annotations

import pytest
import torch
from scipy.optimize import minimize

from ellips.encoders import MarginClassifier
from ellips.encoders.margin_classifier import simplex


def test_a_simplex_has_equal_angles_and_unit_corners() -> None:
    corners = simplex(5, 7).double()
    products = corners @ corners.T
    torch.testing.assert_close(products, torch.eye(5).double() * 1.25 - 0.25, atol=1e-6, rtol=0)
    classifier = MarginClassifier(5, 7)
    assert not list(classifier.parameters())
    torch.testing.assert_close(classifier.edges(), 2.5**0.5 * (1 - torch.eye(5)), atol=1e-6, rtol=0)


def test_too_few_features_for_a_simplex_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 9"):
        MarginClassifier(10, 8)
    assert len(list(MarginClassifier(10, 8, learned=True).parameters())) == 2


def test_the_radius_is_the_distance_to_the_nearest_other_region() -> None:
    torch.manual_seed(0)
    classifier = MarginClassifier(4, 3, learned=True).double()
    with torch.no_grad():
        classifier.weight.mul_(torch.tensor([[2.0], [0.5], [1.0], [3.0]]))  # lengths do not count
        classifier.bias.copy_(torch.tensor([0.1, 0.0, -0.2, 0.05]))
    features = torch.randn(6, 3, dtype=torch.float64)
    scores = classifier(features).detach()
    prediction, radius = classifier.certify(scores)
    directions, bias = classifier.directions.detach().numpy(), classifier.bias.detach().numpy()
    assert torch.equal(prediction, scores.argmax(1))
    for z, own, found in zip(features.numpy(), prediction.tolist(), radius.tolist(), strict=True):
        distances = []
        for rival in set(range(4)) - {own}:
            lead = {
                "type": "eq",
                "fun": lambda y, r=rival, o=own: (directions[o] - directions[r]) @ y + bias[o] - bias[r],
            }
            distances.append(minimize(lambda y, z=z: ((y - z) ** 2).sum(), z, constraints=[lead]).fun ** 0.5)
        assert found == pytest.approx(min(distances), rel=1e-5)


def test_scores_are_float32_under_autocast() -> None:
    classifier = MarginClassifier(3, 4)
    features = torch.rand(2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(classifier(features), classifier(features))
        assert classifier(features.bfloat16()).dtype == torch.float32
    torch.testing.assert_close(classifier(features), features @ simplex(3, 4).T)
