import pytest
import torch
from torch import Tensor, nn

from ellips import Ellips
from ellips.certificates import Certificate, Method
from ellips.head import EllipsHead
from ellips.input_certifiers import MarginClever
from ellips.lipschitz import JacobianNorm, KnownConstant
from ellips.pipeline import ImageClassifier
from ellips.reporting.summary import summarize
from ellips.types import ImageBatch
from lightning_modules import Certifier
from tests.soundness.generators import make_case
from tests.soundness.oracle import exact_winner

LABEL = torch.arange(12) % 2
IMAGE = 0.3 * torch.rand(12, 1, 2, 2, generator=torch.Generator().manual_seed(0)) + 0.5 * LABEL[:, None, None, None]


def classifier() -> ImageClassifier:
    head = EllipsHead(4, 2, latent_dim=None, shrinkage=0.3).fit(IMAGE.flatten(1), LABEL)
    return ImageClassifier(nn.Flatten(), head)


def test_every_image_gets_one_record_of_each_series() -> None:
    certifier = Certifier(classifier(), ["pairwise", "exact"], [KnownConstant(2.0)], seed=5)
    names = ["latent-pairwise", "latent-exact", "input-exact-known-constant"]
    assert [series.name for series in certifier.series] == names
    found = certifier.predict_step(ImageBatch(IMAGE, LABEL, torch.arange(100, 112)), 0)
    expected = classifier().certify(IMAGE)
    assert [image.records[0].index for image in found] == list(range(100, 112))
    for i, image in enumerate(found):
        assert [record.series for record in image.records] == certifier.series
        assert image.records[1].radius == expected.radius[i].item()
        assert image.records[2].radius == pytest.approx(expected.radius[i].item() / 2)
        assert image.records[2].latent_radius == pytest.approx(expected.radius[i].item(), rel=1e-14)
        assert image.records[2].soundness == "deterministic"
        assert all(record.seed == 5 and record.seconds > 0 for record in image.records)
        assert torch.equal(image.latent, IMAGE[i].flatten())


def test_certifiers_start_from_the_latent_method_asked_for() -> None:
    certifiers = [KnownConstant(2.0), JacobianNorm(), KnownConstant(4.0), MarginClever(num_batches=2, num_samples=4)]
    certifier = Certifier(classifier(), ["exact"], certifiers, input_method="theorem")
    assert [series.name for series in certifier.series] == [
        "latent-exact",
        "input-theorem-known-constant",
        "input-theorem-jacobian-norm",
        "input-theorem-known-constant-2",
        "input-margin-clever",
    ]
    theorem = classifier().certify(IMAGE, method="theorem").radius
    for i, image in enumerate(certifier.predict_step(ImageBatch(IMAGE, LABEL, torch.arange(12)), 0)):
        assert [record.series for record in image.records] == certifier.series
        for place, constant in ((1, 2.0), (3, 4.0)):
            assert image.records[place].radius == pytest.approx(theorem[i].item() / constant)


def at_ties(seed: int) -> tuple[ImageClassifier, Tensor]:
    """Points up to rounding on the boundary, as images of one row; the encoder is the identity."""
    ellips, z = make_case("near_ties", seed, 20)
    head = EllipsHead(ellips.dim, ellips.num_classes, latent_dim=None)
    head.ellips = ellips
    return ImageClassifier(nn.Flatten(), head), z[:, None, None]


def test_a_prediction_at_a_tie_is_the_same_in_every_record_and_counts_as_it_is() -> None:
    """What float64 takes for the winner there is not; tables, summary and radii on the image have the one that is."""
    corrected = 0
    for seed in range(40):
        classifier, images = at_ties(seed)
        exact = [exact_winner(classifier.head.ellips, z) for z in images.flatten(1)]
        label = torch.tensor(exact)
        certifier = Certifier(classifier, ["exact"], [KnownConstant(2.0), KnownConstant(2.0, soundness="estimated")])
        found = certifier.predict_step(ImageBatch(images, label, torch.arange(20)), 0)
        rows = [i for i, image in enumerate(found) if image.records[0].corrected]
        for i in rows:
            for record in found[i].records:
                assert (record.prediction, record.radius, record.correct) == (exact[i], 0.0, True)
                assert (record.corrected, record.confirmed) == (True, True)
        corrected += len(rows)
        records = [record for image in found for record in image.records]
        summary = summarize(records, range(20), {"latent": [0.1], "input": [0.1]})["series"]
        for entry in summary.values():
            assert entry["clean_accuracy"]["accuracy"] == 1
            assert (entry["corrected"], entry["unconfirmed"]) == (len(rows), 0)
    assert corrected > 5


def test_each_batch_is_encoded_and_each_latent_certificate_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[int] = []
    certified: list[str] = []

    class Counting(nn.Flatten):
        def forward(self, images: Tensor) -> Tensor:
            encoded.append(len(images))
            return super().forward(images)

    original = Ellips.certify

    def counting(ellips: Ellips, z: Tensor, method: Method = "exact", **options: int) -> Certificate:
        certified.append(method)
        return original(ellips, z, method, **options)

    monkeypatch.setattr(Ellips, "certify", counting)
    whole = ImageClassifier(Counting(), classifier().head)
    constants = [KnownConstant(c, soundness="estimated") for c in (1.0, 2.0, 3.0)]
    certifier = Certifier(whole, ["theorem", "exact", "theorem"], constants)
    assert len(certifier.predict_step(ImageBatch(IMAGE, LABEL, torch.arange(12)), 0)[0].records) == 5
    assert encoded == [12]
    assert certified == ["theorem", "exact"]


def test_a_batch_without_images_has_no_rows() -> None:
    certifier = Certifier(classifier(), ["exact"], [JacobianNorm()])
    assert certifier.predict_step(ImageBatch(IMAGE[:0], LABEL[:0], torch.arange(0)), 0) == []


def test_what_cannot_be_certified_is_refused() -> None:
    with pytest.raises(ValueError, match="`methods` to be one of"):
        Certifier(classifier(), ["best"])
    with pytest.raises(ValueError, match="`input_method` to be one of"):
        Certifier(classifier(), input_method="margin")
    with pytest.raises(ValueError, match="at least one method or certifier"):
        Certifier(classifier(), [])
