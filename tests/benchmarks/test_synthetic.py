"""The synthetic experiments: what must hold on every setting of the grid, and a run that goes on where it stood."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import synthetic
from benchmarks._synthetic import Setting, circle_mixture, pgd_breaks, smoothed_certificates
from benchmarks.synthetic import GRID, RADII, compare_table, draw_setting, draw_summary, load_or_run, main, run_setting

SOME_RADII = [0.0, 0.25, 0.5, 1.0, 1.5, 2.0]
OPTIONS = {
    "radii": SOME_RADII, "search_radii": 64, "points": 200, "smoothing_points": 0, "smoothing": [1000], "seed": 0
}  # fmt: skip


def test_the_grid_is_the_papers() -> None:
    assert len(GRID) == len(set(GRID)) == 24
    assert {s.classes for s in GRID} == {2, 3, 5, 10}
    assert {s.distance for s in GRID} == {2.0, 4.0, 6.0}
    assert (RADII[0], RADII[-1]) == (0, 2)


@pytest.mark.parametrize("setting", GRID, ids=lambda s: s.name)
def test_on_every_setting_certificates_stay_below_attacks_and_exact_meets_them(setting: Setting) -> None:
    checks = run_setting(setting, OPTIONS)["checks"]
    assert checks["certified_over_pgd"] <= 0
    assert checks["pgd_over_exact"] <= 0.01
    assert checks["pal_over_exact_interval"] <= 0


def test_the_attack_breaks_points_just_outside_the_exact_radius_and_none_inside() -> None:
    ellips = circle_mixture(Setting(5, 4.0, "anisotropic"))
    z, labels = ellips.sample(300, torch.Generator().manual_seed(3))
    exact = ellips.certify(z)
    right = exact.prediction == labels
    for z_i, y_i, radius in zip(z[right][:25], labels[right][:25], exact.radius[right][:25].tolist(), strict=True):
        broken = pgd_breaks(ellips, z_i[None], y_i[None], [0.0, 0.999 * radius, 1.02 * radius], steps=60, starts=3)
        assert int(broken) == 2
    assert bool((pgd_breaks(ellips, z, labels, RADII)[~right] == 0).all())


def test_covariances_have_the_given_variances_and_different_axes() -> None:
    covariances = circle_mixture(Setting(3, 2.0, "anisotropic")).covariances
    torch.testing.assert_close(torch.linalg.eigvalsh(covariances), torch.tensor([[0.5, 1.5]] * 3, dtype=torch.float64))
    assert not torch.allclose(covariances[0], covariances[1])


def test_the_reference_table_is_reproduced_within_its_sampling_error() -> None:
    results = [
        {"options": {"points": 2000}, **run_setting(s, {**OPTIONS, "points": 2000, "search_radii": 8})}
        for s in synthetic.TABLE
    ]
    # 28 differences of binomial shares: the largest of as many standard normals is below 3.5 with probability 0.99.
    assert compare_table(results)["largest_difference_in_standard_errors"] < 3.5


def test_a_setting_is_computed_once_and_anew_when_options_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting, calls = Setting(2, 2.0, "isotropic"), []
    real = synthetic.run_setting
    monkeypatch.setattr(synthetic, "run_setting", lambda *a: calls.append(1) or real(*a))
    options = {**OPTIONS, "points": 50}
    first = load_or_run(setting, options, tmp_path)
    again = load_or_run(setting, options, tmp_path)
    assert again["resumed"]
    assert {k: v for k, v in again.items() if k != "resumed"} == json.loads(json.dumps(first))
    load_or_run(setting, {**options, "seed": 1}, tmp_path)
    assert len(calls) == 2
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".json", ".png"]


def test_smoothing_certifies_less_than_exact_with_more_samples_more() -> None:
    pytest.importorskip("art", reason="the extra `bench` is not installed")
    setting = Setting(3, 4.0, "isotropic")
    result = run_setting(setting, {**OPTIONS, "points": 100, "smoothing_points": 20, "smoothing": [500, 5000]})
    areas = result["areas"]
    assert 0 < areas["smoothing_500"] < areas["smoothing_5000"] <= 1.05
    assert result["sigma"] in synthetic.SIGMAS
    prediction, radius = smoothed_certificates(circle_mixture(setting), torch.zeros(2, 2), 0.5, 200)
    assert bool((radius[prediction < 0] == 0).all())
    figure = draw_setting(result)
    assert len(figure.axes) == 2
    assert len(draw_summary([{"name": "a", "areas": areas}]).axes) == 1


def test_the_command_writes_figures_and_one_json_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(synthetic, "GRID", [Setting(2, 2.0, "isotropic"), Setting(3, 2.0, "anisotropic")])
    monkeypatch.setattr(
        synthetic, "radius_errors", lambda **_: [
            {"dim": d, "n": n, "median_relative_error": (d / n) ** 0.5, "in_regression": True}
            for d in (2, 8) for n in (10, 100)
        ],
    )  # fmt: skip
    monkeypatch.setattr(synthetic, "ProcessPoolExecutor", InProcess)
    code = main(["--quick", "--points", "60", "--output", str(tmp_path / "out"), "--json", str(tmp_path / "x.json")])
    printed = json.loads(capsys.readouterr().out)
    assert code == 0
    assert printed == json.loads((tmp_path / "x.json").read_text())
    assert set(printed) >= {"ratios", "settings", "machine"}
    assert printed["ratios"]["sample_complexity_slope_n"] == pytest.approx(-0.5)
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert {"summary.png", "sample_complexity.png", "isotropic_K2_dist2.png", "isotropic_K2_dist2.json"} <= names


class InProcess:
    """A pool of one, this process."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def __enter__(self) -> InProcess:
        return self

    def __exit__(self, *_: object) -> None: ...

    def submit(self, function: object, *args: object) -> object:
        from concurrent.futures import Future

        future: Future = Future()
        future.set_result(function(*args))  # type: ignore[operator]
        return future
