"""ImageClassifier: the whole certified map, from an image with values in [0, 1] to scores."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike

import torch
from torch import Tensor, nn

from ellips.certificates import Certificate, Method
from ellips.checkpoints import load_checkpoint
from ellips.encoders import FrozenEncoder
from ellips.encoders.weights import state_digest
from ellips.errors import EncoderMismatchError
from ellips.head import EllipsHead
from ellips.input_certifiers import Chain, InputCertifier, as_certifier
from ellips.lipschitz import ConstantSource
from ellips.precision import full_precision
from ellips.validation import validate_pixels


class ImageClassifier(nn.Module):
    """A frozen encoder and a fitted head as one module, for use and for certification.

    Resizing, normalisation, backbone and projector all lie inside :meth:`latents`, so a radius in input space is an
    ℓ2 norm on the image as the dataset delivers it.

    Args:
        encoder: Images to features; usually a :class:`ellips.FrozenEncoder`. Its ``feature_dim``, if it has one, must
            be what the head takes.
        head: Features to latents and scores. It is put into eval mode.

    Raises:
        ValueError: If the encoder's feature width is not what the head takes.

    Example:
        >>> from ellips.lipschitz import JacobianNorm
        >>> encoder = FrozenEncoder("test_resnet", weights="digits")
        >>> images, labels = torch.rand(60, 1, 8, 8), torch.arange(60) % 3
        >>> head = EllipsHead(96, 3, latent_dim=None, shrinkage=0.5).fit(encoder(images), labels)
        >>> classifier = ImageClassifier(encoder, head)  # or ImageClassifier.from_checkpoint("last.ckpt", encoder)
        >>> certificate = classifier.certify(images[:4], JacobianNorm())
        >>> certificate.space, certificate.soundness, certificate.radius.shape
        ('input', 'estimated', torch.Size([4]))
    """

    def __init__(self, encoder: FrozenEncoder | nn.Module, head: EllipsHead) -> None:
        super().__init__()
        width = getattr(encoder, "feature_dim", head.in_features)
        if width != head.in_features:
            raise ValueError(
                f"Expected an encoder with {head.in_features} features, which the head takes, but got one with {width}."
            )
        self.encoder = encoder
        self.head = head
        self.eval()

    @classmethod
    def from_checkpoint(cls, path: str | PathLike[str], encoder: FrozenEncoder | nn.Module) -> ImageClassifier:
        """Load the head of a training run's checkpoint and join it to its encoder.

        Args:
            path: The ``.ckpt`` file. It is read as data only; no code in it is run.
            encoder: The encoder the head was trained on.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file holds no head.
            EncoderMismatchError: If the checkpoint was made with another encoder.
        """
        checkpoint = load_checkpoint(path)
        head = EllipsHead.from_loaded(checkpoint, path)
        fingerprint = getattr(encoder, "fingerprint", None)
        if fingerprint is not None and "encoder_fingerprint" not in checkpoint:
            raise EncoderMismatchError(
                f"Expected {path} to say which encoder its head was trained on but it has no `encoder_fingerprint`; "
                "take the checkpoint as it was written, or join the two yourself: ImageClassifier(encoder, head)."
            )
        recorded = checkpoint.get("encoder_fingerprint")
        if recorded is not None and fingerprint is not None:
            check_fingerprint(recorded, fingerprint())
        return cls(encoder, head)

    def latents(self, images: Tensor) -> Tensor:
        """Return latents ``(N, d)`` of images ``(N, C, H, W)`` in [0, 1], differentiable in the images."""
        return self.head.latents(self.encoder(images))

    def forward(self, images: Tensor) -> Tensor:
        """Return scores ``(N, K)``, float64, of images ``(N, C, H, W)`` in [0, 1]."""
        scores: Tensor = self.head.ellips(self.latents(images))
        return scores

    @property
    def chain(self) -> Chain:
        """The map that input certifiers take."""
        return Chain(self.latents, self.head.ellips, self.encoder)

    def certify(
        self, images: Tensor, certifier: InputCertifier | ConstantSource | None = None, method: Method = "exact"
    ) -> Certificate:
        """Certify images.

        Args:
            images: Shape ``(N, C, H, W)``, values in [0, 1].
            certifier: How the latent certificate is carried to the image, or the source of a Lipschitz constant of
                :meth:`latents` to divide by; None: stay in latent space.
            method: ``"exact"``, ``"pairwise"`` or ``"theorem"``: how the latent radius is computed.

        Returns:
            A certificate in input space, or in latent space without a certifier.

        Raises:
            NotFittedError: If the head's Gaussians were not fitted.
            ValueError: If an image has values outside [0, 1].
        """
        validate_pixels(images)
        with full_precision():
            with torch.no_grad():
                latents = self.latents(images)
                certificate = self.head.ellips.certify(latents, method=method)
            if certifier is None:
                return certificate
            return as_certifier(certifier).certify(self.chain, images, latents, certificate)

    def digests(self) -> dict[str, str]:
        """Return SHA-256 digests of the encoder's and the head's whole state, to name what was certified."""
        return {"encoder": f"sha256:{state_digest(self.encoder)}", "head": f"sha256:{state_digest(self.head)}"}


def check_fingerprint(recorded: Mapping[str, object], present: Mapping[str, object]) -> None:
    """Refuse an encoder that is not the one a head was trained on.

    Args:
        recorded: Fingerprint from the checkpoint. One that does not name its precision, as version 0.1 wrote them, is
            of float32, which is what that version certified in.
        present: Fingerprint of the encoder at hand.

    Raises:
        EncoderMismatchError: If they differ; every difference is named.
    """
    recorded, present = {"precision": "32", **recorded}, {"precision": "32", **present}
    keys = sorted(recorded.keys() | present.keys())
    differing = [
        f"{k}: {recorded.get(k)!r} against {present.get(k)!r}" for k in keys if recorded.get(k) != present.get(k)
    ]
    if differing:
        raise EncoderMismatchError(
            "Expected the encoder that this head was trained on but got another one (trained on, present): "
            f"{'; '.join(differing)}. Use the encoder of the checkpoint, its `precision` included, or fit a new head."
        )
