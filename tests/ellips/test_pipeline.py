from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ellips.encoders import FrozenEncoder
from ellips.errors import EncoderMismatchError
from ellips.head import EllipsHead
from ellips.input_certifiers import SmoothedDecision
from ellips.lipschitz import JacobianNorm
from ellips.pipeline import ImageClassifier

IMAGES = torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(40) % 2


def linear_encoder(seed: int = 0) -> FrozenEncoder:
    torch.manual_seed(seed)
    return FrozenEncoder(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), in_channels=1, input_size=4)


def fitted(encoder: FrozenEncoder) -> EllipsHead:
    head = EllipsHead(3, 2, latent_dim=None, shrinkage=0.5)
    return head.fit(encoder(IMAGES + LABELS[:, None, None, None]), LABELS)


def checkpoint(path: Path, encoder: FrozenEncoder) -> EllipsHead:
    head = fitted(encoder)
    state = {f"head.{name}": value for name, value in head.state_dict().items()}
    content = {"state_dict": state, "head": head.config, "encoder_fingerprint": encoder.fingerprint()}
    torch.save(content, path)
    return head


def test_scores_and_latents_are_those_of_the_parts() -> None:
    encoder = linear_encoder()
    classifier = ImageClassifier(encoder, fitted(encoder))
    assert torch.equal(classifier(IMAGES), classifier.head(encoder(IMAGES)))
    assert torch.equal(classifier.latents(IMAGES), encoder(IMAGES))
    assert not any(module.training for module in classifier.modules())


def test_certificates_name_their_space_and_claim() -> None:
    encoder = linear_encoder()
    classifier = ImageClassifier(encoder, fitted(encoder))
    latent = classifier.certify(IMAGES)
    image = classifier.certify(IMAGES, JacobianNorm(ball_radius=1e9))
    assert (latent.space, latent.soundness) == ("latent", "exact")
    assert (image.space, image.soundness) == ("input", "estimated")
    constant = torch.linalg.matrix_norm(encoder.backbone[1].weight.double(), 2)
    torch.testing.assert_close(image.radius, latent.radius / constant, rtol=1e-5, atol=0)


def test_more_images_than_share_alpha_are_refused() -> None:
    encoder = linear_encoder()
    classifier, certifier = ImageClassifier(encoder, fitted(encoder)), SmoothedDecision(num_samples=50, num_images=2)
    assert len(classifier.certify(IMAGES[:2], certifier)) == 2
    with pytest.raises(ValueError, match="at most num_images=2 images to share alpha"):
        classifier.certify(IMAGES[:3], certifier)


def test_a_checkpoint_gives_the_same_classifier(tmp_path: Path) -> None:
    encoder = linear_encoder()
    head = checkpoint(tmp_path / "a.ckpt", encoder)
    loaded = ImageClassifier.from_checkpoint(tmp_path / "a.ckpt", linear_encoder())
    expected = ImageClassifier(encoder, head)
    assert torch.equal(loaded(IMAGES), expected(IMAGES))
    assert loaded.digests() == expected.digests()


def test_a_checkpoint_of_another_encoder_is_refused(tmp_path: Path) -> None:
    checkpoint(tmp_path / "a.ckpt", linear_encoder())
    with pytest.raises(EncoderMismatchError, match=r"weights: 'sha256:.* against 'sha256:"):
        ImageClassifier.from_checkpoint(tmp_path / "a.ckpt", linear_encoder(seed=1))
    with pytest.raises(EncoderMismatchError, match="no `fingerprint` to tell by; give the whole FrozenEncoder"):
        ImageClassifier.from_checkpoint(tmp_path / "a.ckpt", linear_encoder().backbone)


def test_widths_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="5 features, which the head takes, but got one with 3"):
        ImageClassifier(linear_encoder(), EllipsHead(5, 2, latent_dim=None))


def test_any_module_serves_as_encoder() -> None:
    class Mean(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.mean((2, 3)).repeat(1, 3)

    assert ImageClassifier(Mean(), fitted(linear_encoder()))(IMAGES).shape == (40, 2)
