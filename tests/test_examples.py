"""The examples are run; the foreign project is run from the wheel, in tests/test_wheel.py."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
import torch

from ellips import Ellips
from ellips.certificates import check

ONE_SCREEN = Path(__file__).parents[1] / "examples" / "one_screen.py"


def test_one_screen_is_one_screen_of_plain_torch() -> None:
    text = ONE_SCREEN.read_text(encoding="utf-8")
    method = text.partition("\nclass ")[2].partition("\nif __name__")[0]
    assert 20 < sum(bool(line.strip()) for line in method.splitlines()) <= 40
    assert "ellips" not in method


def test_one_screen_runs(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(ONE_SCREEN), run_name="__main__")
    printed = capsys.readouterr().out
    assert printed.splitlines()[-2] == "20 of 20 radii are proven by the kernel"
    assert printed.splitlines()[-1].startswith("0 of 20 would be")
    pairs = [(float(a), float(b)) for a, b in re.findall(r"radius ([\d.]+)   exact ([\d.]+)", printed)]
    assert len(pairs) == 20
    assert all(radius == pytest.approx(exact, rel=1e-4) for radius, exact in pairs)


def test_its_radii_are_the_exact_ones_and_an_unfinished_search_gives_no_larger_ones() -> None:
    gaussians = runpy.run_path(str(ONE_SCREEN))["Gaussians"]
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(300) % 4
    z = torch.randn(300, 5, generator=generator) * (1 + labels[:, None]) + 2 * torch.eye(4, 5)[labels]
    mine = gaussians(z, labels)
    theirs = Ellips.from_parameters(mine.means, mine.covariances, mine.priors)
    points = z[:40]
    exact = theirs.certify(points)
    assert bool(check(theirs, points, exact).all())
    for point, prediction, radius in zip(points, exact.prediction.tolist(), exact.radius.tolist(), strict=True):
        assert mine.certify(point)[0] == prediction
        assert mine.certify(point)[1] == pytest.approx(radius, rel=1e-5, abs=1e-5)
        assert mine.certify(point, steps=8)[1] <= radius + 1e-5
