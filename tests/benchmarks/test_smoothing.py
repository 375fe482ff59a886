from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import _outcomes, _votes, smoothing
from ellips.regularization_search import RegularizationSearch


def test_every_ratio_is_measured_on_the_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = smoothing.Sizes(draws=300, images=3, digits=3, copies=2, held_out=12, votes=40, rounds=1, compared=5)
    monkeypatch.setitem(smoothing.SIZES, "quick", sizes)
    result = smoothing.main(["--quick", "--json", str(tmp_path / "result.json")])
    assert result["ratios"].keys() == {
        f"{name}_digits"
        for name in (
            "passes_saved_by_stopping",
            "passes_saved_by_stopping_3_sigma",
            "points_lost_by_stopping",
            "points_lost_by_stopping_3_sigma",
            "decision_over_encoder_mean_radius",
            "ellips_over_linear_mean_radius",
            "ellips_over_linear_mean_radius_300",
            "votes_over_bare_encoder",
        )
    }
    assert result["ratios"]["passes_saved_by_stopping_digits"] >= 1
    assert result["ratios"]["decision_over_encoder_mean_radius_digits"] > 1
    found = result["measurements"]["digits"]["classifiers"]
    assert found["ellips"]["passes_per_image"] == 400
    assert found["early"]["passes_per_image"] <= 400
    errors = result["measurements"]["digits"]["ellips_over_linear_standard_error"]
    assert all(0 < error < 1 for error in errors.values())
    assert result["measurements"]["digits"]["images_compared"] == 5
    assert (tmp_path / "result.json").is_file()


def test_a_folder_needs_its_encoder(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        smoothing.main(["--quick", "--cifar", "somewhere"])
    assert "--encoder" in capsys.readouterr().err


def test_features_are_chosen_by_votes_and_means_of_cells_are_those_of_the_image() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 2
    # Where the cells differ between the classes and their mean does not, the grid must be chosen.
    cells = torch.tensor([[1.0, -1, 1, -1], [-1, 1, -1, 1]])[labels]
    features = cells[:, None, :].repeat(1, 20, 3) + 0.3 * torch.randn(60, 20, 12, generator=generator)
    search = RegularizationSearch(0.1, sigma=0.25, alpha=0.01, pooling=(0.5, 1.0), shrinkage=(0.1,))
    found = _votes.fit_for_votes(features[:40], labels[:40], features[40:], labels[40:], search, 2)
    assert found.grid == 2
    assert found.candidate.accuracy == 1
    assert "2x2 cells" in found.describe()
    plain = _votes.over_cells(features)
    assert plain.shape == (60, 20, 3)
    assert torch.equal(plain, features.view(60, 20, 3, 4).mean(-1))
    assert torch.equal(_votes.chosen_features(features, found), features)


def test_the_spread_of_a_ratio_is_that_of_repeated_draws() -> None:
    generator = torch.Generator().manual_seed(0)
    theirs = torch.rand(300, 400, generator=generator, dtype=torch.float64)
    ours = theirs + 0.2 * torch.rand(300, 400, generator=generator, dtype=torch.float64)
    ratios = ours.mean(1) / theirs.mean(1)
    assert _outcomes.spread_of_ratio(ours[0], theirs[0]) == pytest.approx(float(ratios.std()), rel=0.2)


def test_what_stopping_loses_is_the_average_over_votes_drawn_anew() -> None:
    right = torch.ones(40, dtype=torch.bool)
    radii, draws = (0.125, 0.25), 1000

    def lost(share: float) -> float:
        votes = torch.full((40,), round(share * draws))
        fixed = _outcomes.Outcome(torch.zeros(40), right, votes, votes)
        return _outcomes.points_lost(fixed, draws, radii, repetitions=20)

    assert lost(0.99) == 0  # proven long before the last draw, in any order
    assert lost(0.6) == 0  # at no radius proven by all draws either
    close = [lost(float(v) / draws) for v in range(700, 900, 5)]
    assert max(close) > 2  # just enough for all draws together is too little for a plan that looks before
    assert min(close) < 1
