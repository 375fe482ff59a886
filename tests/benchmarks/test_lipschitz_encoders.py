from __future__ import annotations

import importlib.util
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import _lipschitz, lipschitz_encoders
from ellips.encoders import LipNeXtArchitecture, LipschitzArchitecture, LipschitzEncoder
from ellips.gaussians.moments import ClassMoments
from ellips.gaussians.regularization import Regularization
from ellips.losses import CertifiedRadius


@pytest.mark.skipif(
    importlib.util.find_spec("deel") is None, reason="deel-torchlip is not installed (extra `lipschitz`)"
)
def test_both_architectures_are_trained_proven_and_certified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = lipschitz_encoders.digits_task()
    small = {
        "lipnext": LipNeXtArchitecture((1, 8, 8), (2, 1), (16, 20), (1, 1), 0.25, 10, 1, (1, 2), mirrored=True),
        "torchlip": LipschitzArchitecture((1, 8, 8), (), (16,), 10),
    }
    task = lipschitz_encoders.Task(task.parts, small, task.rates, task.training, task.batch_sizes, (0.5,))
    monkeypatch.setattr(lipschitz_encoders, "digits_task", lambda: task)
    monkeypatch.setattr(_lipschitz, "SEARCH", {"pooling": (1.0,), "shrinkage": (0.1, 0.5)})
    monkeypatch.setattr(_lipschitz, "SHOWN", (0.0, 36 / 255, 1.0))
    monkeypatch.setattr(_lipschitz, "TRAINED", ((0.5, None), (0.5, 0.1)))
    monkeypatch.setattr(_lipschitz, "_STEPS", 3)
    # A clock by which every step takes a second, so that a busy machine trains as far as any.
    clock = SimpleNamespace(perf_counter=map(float, count()).__next__)
    monkeypatch.setattr(lipschitz_encoders, "time", clock)
    arguments = ["--quick", "--full", "--minutes", "1", "--json", str(tmp_path / "result.json")]
    arguments += ["--keep", str(tmp_path / "kept")]
    result = lipschitz_encoders.main(arguments)
    assert result["ratios"].keys() == {
        "certified_36_over_torchlip",
        "ellips_over_margin_36",
        "ellips_over_margin_mean_radius",
        "orthogonal_over_plain_step",
    }
    networks = result["measurements"]["networks"]
    assert networks.keys() == {"lipnext", "torchlip", "lipnext_0.5"}
    for found in networks.values():
        assert found["steps"] == found["seconds"] == 60
        for each in (found["margin"], *found["ellips_chosen_for"].values()):
            values = list(each["certified_accuracy"].values())
            assert values == sorted(values, reverse=True)
            assert 100 >= values[0] > 15
    first = [networks[name]["margin"]["certified_accuracy"]["0.1412"] for name in ("lipnext", "torchlip")]
    assert result["ratios"]["certified_36_over_torchlip"] == pytest.approx(first[0] / first[1])
    assert result["measurements"]["points_ahead"] == _lipschitz.ahead(networks)
    assert (tmp_path / "result.json").is_file()
    for name in networks:
        kept = tmp_path / "kept" / f"{name}.safetensors"
        assert 0.99 < LipschitzEncoder(kept).constant <= 1.00001
        again = lipschitz_encoders.main(["--quick", "--encoder", str(kept)])
        assert again["measurements"] == {key: networks[name][key] for key in ("margin", "ellips_chosen_for")}


def line(clean: float, certified: float) -> dict[str, Any]:
    return {"certified_accuracy": {"0": clean, "0.5": certified}}


def test_points_ahead_are_told_on_the_line_through_the_margins() -> None:
    networks = {
        "lipnext": {"margin": line(60, 20), "ellips_chosen_for": {"0": line(63, 0), "0.5": line(58, 25)}},
        "lipnext_2": {"margin": line(50, 30)},
        "lipnext_0.2": {"margin": line(62, 10)},
        "torchlip": {"margin": line(58, 90)},
    }
    assert _lipschitz.ahead(networks) == {
        "0": {"over_own_margin": 3, "over_frontier": None},
        "0.5": {"over_own_margin": 5, "over_frontier": 3},
    }


@pytest.mark.parametrize(("radius", "width"), [(2.0, None), (0.3, 0.1)])
def test_training_makes_the_radius_larger_that_it_asks_for(radius: float, width: float | None) -> None:
    torch.manual_seed(0)
    labels = torch.arange(600) % 3
    features = torch.nn.functional.one_hot(labels, 4).float() + 0.5 * torch.randn(600, 4)
    moments = ClassMoments(3, 4)
    moments.update(features, labels)
    start = _lipschitz.fitted(moments.compute(), Regularization(0.8, 0.6))
    loss = CertifiedRadius(radius, gaussians="fitted", width=width)
    ellips = _lipschitz.trained(moments.compute(), {"train": features}, {"train": labels}, loss)
    with torch.no_grad():
        assert loss(features, labels, ellips, 0) < loss(features, labels, start, 0) - 0.001


def test_no_step_within_its_radius_changes_what_trained_gaussians_predict() -> None:
    """Steps to the nearest other class along the gradient of its lead, and 200 at random, for every latent."""
    torch.manual_seed(0)
    labels = torch.arange(150) % 3
    features = torch.nn.functional.one_hot(labels, 4).double() + 0.5 * torch.randn(150, 4, dtype=torch.float64)
    moments = ClassMoments(3, 4)
    moments.update(features, labels)
    loss = CertifiedRadius(1.0, gaussians="fitted")
    ellips = _lipschitz.trained(moments.compute(), {"train": features}, {"train": labels}, loss)
    with torch.no_grad():
        certificate = ellips.certify(features)
    at = features.clone()
    for step in (0.3, 0.3, 0.2, 0.1, 0.1):  # of the radius: never beyond it
        at.requires_grad_()
        scores = ellips(at)
        own = scores.gather(1, certificate.prediction[:, None])
        lead = (own - scores).scatter(1, certificate.prediction[:, None], torch.inf).amin(1)
        (gradient,) = torch.autograd.grad(lead.sum(), at)
        way = torch.nn.functional.normalize(gradient, dim=1)
        at = (at - step * (1 - 1e-9) * certificate.radius[:, None] * way).detach()
        with torch.no_grad():
            assert torch.equal(ellips(at).argmax(1), certificate.prediction)
    away = torch.nn.functional.normalize(torch.randn(200, 150, 4, dtype=torch.float64), dim=2)
    with torch.no_grad():
        there = ellips((features + (1 - 1e-9) * certificate.radius[:, None] * away).flatten(0, 1)).argmax(1)
        assert torch.equal(there.view(200, 150), certificate.prediction.expand(200, -1))
        # Not so a little farther: the attack reaches what is to be reached.
        beyond = features + 1.5 * (at - features)
        assert (ellips(beyond).argmax(1) != certificate.prediction).double().mean() > 0.5
