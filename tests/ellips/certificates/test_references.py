"""Certificates that were solved as semidefinite programs, by a method that shares nothing with ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ellips import Ellips
from ellips.certificates import check
from tests.ellips.mixtures import random_mixture, random_points

CASES = json.loads((Path(__file__).parents[2] / "data" / "certificates_sdp.json").read_text())["cases"]


def _classifier(case: dict[str, Any]) -> tuple[Ellips, torch.Tensor]:
    parameters = (torch.tensor(case[name], dtype=torch.float64) for name in ("means", "covariances", "priors"))
    z = torch.tensor([point["z"] for point in case["points"]], dtype=torch.float64)
    return Ellips.from_parameters(*parameters), z


def test_there_are_120_points() -> None:
    assert sum(len(case["points"]) for case in CASES) == 120


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['kind']}-{len(case['means'])}x{len(case['means'][0])}")
def test_reproduces_the_reference(case: dict[str, Any]) -> None:
    ellips, z = _classifier(case)
    for method, tolerance in (("theorem", 1e-9), ("pairwise", 1e-9), ("exact", 1e-5)):
        certificate = ellips.certify(z, method)
        assert certificate.prediction.tolist() == [point["prediction"] for point in case["points"]]
        for radius, point in zip(certificate.radius.tolist(), case["points"], strict=True):
            expected = float("inf") if point[method] is None else point[method]
            assert radius == pytest.approx(expected, rel=tolerance)
            assert radius <= expected + 1e-5
        assert check(ellips, z, certificate).all()


AXIS_ALIGNED = [case for case in CASES if case["kind"] in ("isotropic", "spherical", "diagonal")]


@pytest.mark.parametrize("case", AXIS_ALIGNED[:8], ids=lambda case: case["kind"])
def test_diagonal_and_full_storage_agree(case: dict[str, Any]) -> None:
    full, z = _classifier(case)
    variances = full.covariances.diagonal(dim1=1, dim2=2)
    diagonal = Ellips.from_parameters(full.means, variances, full.priors)
    torch.testing.assert_close(diagonal(z), full(z), rtol=1e-12, atol=1e-12)
    for method in ("theorem", "pairwise", "exact"):
        radius = diagonal.certify(z, method).radius
        torch.testing.assert_close(radius, full.certify(z, method).radius, rtol=1e-9, atol=1e-12)


CONIC = json.loads((Path(__file__).parents[2] / "data" / "certificates_conic.json").read_text())["cases"]


@pytest.mark.parametrize("case", CONIC, ids=lambda case: f"{case['kind']}-{case['classes']}x{case['dim']}")
def test_reproduces_the_conic_solver_in_many_dimensions(case: dict[str, Any]) -> None:
    # Made by make_references.py beside this file.
    arguments = {name: case[name] for name in ("kind", "classes", "dim", "seed", "spread")}
    ellips = random_mixture(**arguments)
    z = random_points(ellips, len(case["exact"]), case["seed"])
    drawn = float(ellips.means.sum() + z.sum())
    assert drawn == pytest.approx(case["sum"], rel=1e-9), "this version of torch draws other numbers from the seed"
    radius = ellips.certify(z).radius
    torch.testing.assert_close(radius, torch.tensor(case["exact"]).double(), rtol=1e-5, atol=0)
    assert (radius <= torch.tensor(case["exact"]).double() + 1e-5).all()
