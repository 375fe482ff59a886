from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from datamodules import DigitsDataModule
from ellips.encoders import Denoised, Denoiser, DenoiserArchitecture, FrozenEncoder, ResidualDenoiser
from ellips.encoders.augmentation import add_noise, step_generator
from ellips.encoders.denoiser import export_denoiser
from ellips.errors import EncoderMismatchError
from ellips.head import EllipsHead
from ellips.input_certifiers import SmoothedDecision
from ellips.pipeline import ImageClassifier, check_fingerprint
from ellips.splits import digits_part
from tests.ellips.encoders.test_denoiser import with_statistics

ARCHITECTURE = DenoiserArchitecture(sigma=0.25, channels=1, depth=3, width=4)


class Half(Denoiser):
    """Halves images: easy to follow."""

    def __init__(self) -> None:
        super().__init__(sigma=0.25, channels=1)

    def denoise(self, images: Tensor) -> Tensor:
        return images / 2


def digits_encoder() -> FrozenEncoder:
    return FrozenEncoder("test_resnet", weights="digits")


@pytest.fixture
def denoised(tmp_path: Path) -> Denoised:
    torch.manual_seed(0)
    export_denoiser(with_statistics(ARCHITECTURE.build()), ARCHITECTURE, tmp_path / "denoiser.safetensors")
    return Denoised(digits_encoder(), ResidualDenoiser(tmp_path / "denoiser.safetensors"))


def test_it_encodes_what_the_denoiser_returns_at_the_images_own_resolution() -> None:
    encoder = digits_encoder()
    images = torch.rand(3, 1, 8, 8)
    both = Denoised(encoder, Half())
    assert torch.equal(both(images), encoder(images / 2))
    torch.testing.assert_close(both.encode(images), encoder.encode(images / 2), rtol=0, atol=0)
    assert both.feature_dim == encoder.feature_dim == 96
    assert not both.encode(images).is_inference()


def test_each_image_is_mapped_by_itself_and_always_in_the_same_way(denoised: Denoised) -> None:
    """All that a smoothed decision needs: no batch statistics, whatever anyone says to train()."""
    images = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    alone = torch.cat([denoised(image[None]) for image in images])
    layers = denoised.denoiser.layers
    for reach in (denoised, denoised.denoiser, layers, layers[3], denoised.backbone):
        reach.train()
        torch.testing.assert_close(denoised(images), alone, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(denoised.encode(images.flip(0)), alone.flip(0), rtol=1e-5, atol=1e-5)
        assert not any(module.training for module in denoised.denoiser.modules())


def test_a_layer_with_batch_statistics_would_be_seen(denoised: Denoised) -> None:
    images = torch.rand(6, 1, 8, 8)
    layers = denoised.denoiser.layers.train()
    with torch.no_grad():
        together, alone = layers(images), torch.cat([layers(image[None]) for image in images])
    assert float((together - alone).abs().max()) > 1e-3


def test_nothing_about_it_ever_changes(denoised: Denoised) -> None:
    before = {name: value.clone() for name, value in denoised.state_dict().items()}
    assert any("running_mean" in name and name.startswith("denoiser.") for name in before)
    nn.Sequential(denoised, nn.Linear(96, 2)).train()
    denoised.denoiser.train()
    denoised(torch.rand(8, 1, 8, 8)).sum()
    assert not any(parameter.requires_grad for parameter in denoised.parameters())
    assert all(torch.equal(value, before[name]) for name, value in denoised.state_dict().items())


def test_gradients_reach_the_images(denoised: Denoised) -> None:
    images = torch.rand(2, 1, 8, 8, requires_grad=True)
    denoised(images).sum().backward()
    assert images.grad is not None
    assert float(images.grad.abs().sum()) > 0


def test_the_fingerprint_covers_both(denoised: Denoised) -> None:
    found = denoised.fingerprint()
    plain = digits_encoder().fingerprint()
    assert plain.items() <= found.items()
    assert "sigma=0.25" in found["denoiser"]
    with pytest.raises(EncoderMismatchError, match="denoiser"):
        check_fingerprint(plain, found)
    with torch.no_grad():
        denoised.denoiser.layers[0].bias[0] += 1
    changed = denoised.fingerprint()
    assert {name for name in found if found[name] != changed[name]} == {"denoiser_weights"}


def test_it_takes_the_place_of_an_encoder_in_datamodule_and_classifier(denoised: Denoised) -> None:
    data = DigitsDataModule(denoised, batch_size=64, keep_images=True)
    data.setup("fit")
    batch = data.encode(next(iter(data.val_dataloader())))
    assert batch.image is not None
    torch.testing.assert_close(batch.feature, denoised(batch.image), rtol=1e-4, atol=1e-5)
    assert data.encoder_fingerprint() == denoised.fingerprint()
    images, labels = digits_part("train")
    head = EllipsHead(96, 10, latent_dim=None, shrinkage=0.5).fit(denoised.encode(images), labels)
    classifier = ImageClassifier(denoised, head)
    assert float((classifier(images).argmax(1) == labels).double().mean()) > 0.5
    digest = classifier.digests()["encoder"]
    with torch.no_grad():
        denoised.denoiser.layers[0].bias[0] += 1
    assert classifier.digests()["encoder"] != digest


def test_decisions_behind_a_denoiser_are_smoothed_like_any_other(denoised: Denoised) -> None:
    images, labels = digits_part("train")
    noisy = add_noise(images, 0.25, step_generator(images.device, 0))
    head = EllipsHead(96, 10, latent_dim=None, shrinkage=0.5).fit(denoised.encode(noisy), labels)
    certifier = SmoothedDecision(sigma=denoised.denoiser.sigma, num_samples=100, num_selection=20, stopping="fixed")
    certificate = ImageClassifier(denoised, head).certify(images[:10], certifier)
    assert certificate.soundness == "probabilistic"
    assert int(((certificate.prediction == labels[:10]) & (certificate.radius > 0)).sum()) >= 7


def test_it_moves_to_float64(denoised: Denoised) -> None:
    images = torch.rand(2, 1, 8, 8)
    single = denoised(images)
    double = denoised.double()(images.double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), single, rtol=1e-3, atol=1e-4)


def test_images_that_do_not_fit_and_a_second_denoiser_are_refused(denoised: Denoised) -> None:
    with pytest.raises(TypeError, match="uint8"):
        denoised(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"\(N, 1, H, W\)"):
        denoised.encode(torch.rand(1, 3, 8, 8))
    with pytest.raises(TypeError, match="without a denoiser"):
        Denoised(denoised, Half())
