"""Per-image records, from certificates and back."""

import pytest
import torch

from ellips import Ellips
from ellips.files import ImageRecord, certificate_from_records, records_from_certificate, records_to_tensors
from ellips.types import LipschitzBound, Series
from tests.ellips.mixtures import random_mixture, random_points


def test_an_abstention_has_no_radius() -> None:
    with pytest.raises(ValueError, match="abstention"):
        ImageRecord(0, 1, -1, 0.1, 0.25)


def test_an_abstention_is_never_right() -> None:
    """Not of an image of no known class either, whose label is −1."""
    assert not ImageRecord(0, -1, -1, 0.0, 0.1).correct
    assert ImageRecord(0, 3, 3, 0.0, 0.1).correct


def test_records_carry_what_the_certificate_says() -> None:
    ellips = Ellips.from_parameters(
        torch.tensor([[0.0, 0.0], [2.0, 0.0]]), torch.eye(2).repeat(2, 1, 1), torch.ones(2) / 2
    )
    certificate = ellips.certify(torch.tensor([[0.25, 0.0], [3.0, 1.0]]))
    found = records_from_certificate(
        certificate, torch.tensor([7, 9]), torch.tensor([0, 0]), series=Series("latent", "exact"), seconds=0.1, seed=3
    )
    assert [(r.index, r.prediction, r.correct, r.rival, r.seed) for r in found] == [
        (7, 0, True, 1, 3),
        (9, 1, False, 0, 3),
    ]
    assert found[0].radius == certificate.radius[0].item() == pytest.approx(0.75)
    assert (found[0].space, found[0].soundness, found[0].lipschitz) == ("latent", "exact", None)


def test_records_give_the_certificate_back() -> None:
    ellips = random_mixture("full", 3, 4)
    latent = ellips.certify(random_points(ellips, 5))
    bound = LipschitzBound(torch.full((5,), 2.0).double(), torch.full((5,), 0.3).double(), "estimated", "a guess")
    for certificate, series in (
        (latent, Series("latent", "exact")),
        (latent.to_input(bound), Series("input", "exact", "known-constant")),
    ):
        rows = records_from_certificate(certificate, torch.arange(5), torch.zeros(5), series=series, seconds=0.1)
        found = certificate_from_records(rows)
        assert found.tensors().keys() == certificate.tensors().keys()
        assert all(torch.equal(value, found.tensors()[name]) for name, value in certificate.tensors().items())
        for name in ("method", "space", "soundness", "source"):
            assert getattr(found, name) == getattr(certificate, name)


def test_records_of_several_series_make_no_certificate() -> None:
    rows = [ImageRecord(0, 1, 1, 0.5, 0.1, Series("latent", method)) for method in ("exact", "pairwise")]
    with pytest.raises(ValueError, match="one series but got 2"):
        certificate_from_records(rows)
    with pytest.raises(ValueError, match="one series but got 0"):
        certificate_from_records([])


def test_records_become_what_the_metrics_take() -> None:
    rows = [ImageRecord(0, 2, 1, 0.5, 0.1), ImageRecord(1, 0, -1, 0.0, 0.1)]
    radius, prediction, label = records_to_tensors(rows)
    assert (radius.tolist(), prediction.tolist(), label.tolist()) == ([0.5, 0.0], [1, -1], [2, 0])
    assert (radius.dtype, prediction.dtype, label.dtype) == (torch.float64, torch.int64, torch.int64)
