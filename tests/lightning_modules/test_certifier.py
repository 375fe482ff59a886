import pytest
import torch
from torch import nn

from ellips.head import EllipsHead
from ellips.lipschitz import JacobianNorm, KnownConstant
from ellips.pipeline import ImageClassifier
from ellips.types import ImageBatch
from lightning_modules.certifier import Certifier, source_names

LABEL = torch.arange(12) % 2
IMAGE = 0.3 * torch.rand(12, 1, 2, 2, generator=torch.Generator().manual_seed(0)) + 0.5 * LABEL[:, None, None, None]


def classifier() -> ImageClassifier:
    head = EllipsHead(4, 2, latent_dim=None, shrinkage=0.3).fit(IMAGE.flatten(1), LABEL)
    return ImageClassifier(nn.Flatten(), head)


def test_every_image_gets_one_record_of_each_series() -> None:
    certifier = Certifier(classifier(), ["pairwise", "exact"], [KnownConstant(2.0)], seed=5)
    assert certifier.series == ["latent-pairwise", "latent-exact", "input-known-constant"]
    found = certifier.predict_step(ImageBatch(IMAGE, LABEL, torch.arange(100, 112)), 0)
    expected = classifier().certify(IMAGE)
    assert [image.records[0].index for image in found] == list(range(100, 112))
    for i, image in enumerate(found):
        assert [record.series for record in image.records] == certifier.series
        assert image.records[1].radius == expected.radius[i].item()
        assert image.records[2].radius == pytest.approx(expected.radius[i].item() / 2)
        assert image.records[2].soundness == "deterministic"
        assert all(record.seed == 5 and record.seconds > 0 for record in image.records)
        assert torch.equal(image.latent, IMAGE[i].flatten())


def test_series_are_named_after_their_sources() -> None:
    assert source_names([JacobianNorm(), KnownConstant(1.0), KnownConstant(2.0), KnownConstant(3.0)]) == [
        "input-exact-jacobian-norm",
        "input-known-constant",
        "input-known-constant-2",
        "input-known-constant-3",
    ]


def test_what_cannot_be_certified_is_refused() -> None:
    with pytest.raises(ValueError, match="`methods` out of"):
        Certifier(classifier(), ["best"])
    with pytest.raises(ValueError, match="at least one method or source"):
        Certifier(classifier(), [])
