"""ImageClassifier: the whole certified map, from an image with values in [0, 1] to scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from ellips import encoders
from ellips.certificates import Certificate, Method
from ellips.checkpoints import load_checkpoint
from ellips.encoders import FrozenEncoder
from ellips.encoders.weights import state_digest
from ellips.errors import DataMismatchError, EncoderMismatchError
from ellips.files import RunFolder, build_listed, read_configuration
from ellips.head import EllipsHead
from ellips.input_certifiers import Chain, InputCertifier, as_certifier
from ellips.lipschitz import ConstantSource
from ellips.precision import full_precision
from ellips.validation import validate_pixels

_NAMES = ("CifarResNet", "Denoised", "DiffusionDenoiser", "FrozenEncoder", "LipschitzEncoder", "ResidualDenoiser")
ENCODERS: Final[Mapping[str, type]] = {
    **{f"ellips.encoders.{name}": getattr(encoders, name) for name in _NAMES},
    "torch.nn.Flatten": nn.Flatten,
    "torch.nn.Identity": nn.Identity,
}
"""By class path, what an encoder that nobody vouches for is built of. None of it runs code that a setting names."""


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
        self.description: dict[str, Any] = {}
        """What the checkpoint says of its images: ``class_names``, and ``reading`` (mode, resize, crop), if it does."""
        self.eval()

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes, in the order of the scores; None: unknown."""
        return self.description.get("class_names")

    @classmethod
    def from_run(cls, run: str | PathLike[str], encoder: FrozenEncoder | nn.Module | None = None) -> ImageClassifier:
        """Load the classifier of a training run, with its encoder and the names of its classes.

        Args:
            run: The run folder, ``runs/<name>``, whose best checkpoint is taken, or else its latest; or a checkpoint.
            encoder: The encoder, where it is not one of this project's that plain settings describe; None: built from
                what the checkpoint says, or else the run's ``config.yaml``. Nothing that they name is imported.

        Raises:
            FileNotFoundError: If there is no such run, or its encoder's weights are not where they were.
            ValueError: If neither says which encoder it is.
            EncoderMismatchError: If the encoder that they describe is not the one that was trained on.
        """
        folder = RunFolder(Path(run))
        path = Path(run) if Path(run).is_file() else folder.checkpoint()
        checkpoint = load_checkpoint(path)
        return cls._of(checkpoint, path, encoder or _recorded_encoder(checkpoint, path, folder))

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
        return cls._of(load_checkpoint(path), path, encoder)

    @classmethod
    def _of(cls, checkpoint: Any, path: str | PathLike[str], encoder: FrozenEncoder | nn.Module) -> ImageClassifier:  # noqa: ANN401
        head = EllipsHead.from_loaded(checkpoint, path)
        fingerprint = getattr(encoder, "fingerprint", None)
        if fingerprint is not None and "encoder_fingerprint" not in checkpoint:
            raise EncoderMismatchError(
                f"Expected {path} to say which encoder its head was trained on but it has no `encoder_fingerprint`; "
                "take the checkpoint as it was written, or join the two yourself: ImageClassifier(encoder, head)."
            )
        recorded = checkpoint.get("encoder_fingerprint")
        if recorded is not None:
            if fingerprint is None:
                raise EncoderMismatchError(
                    f"Expected the encoder that the head of {path} was trained on but {type(encoder).__name__} has no "
                    "`fingerprint` to tell by; give the whole FrozenEncoder, not its backbone, or join the two "
                    "yourself: ImageClassifier(encoder, head)."
                )
            check_fingerprint(recorded, fingerprint())
        classifier = cls(encoder, head)
        classifier.description = dict(checkpoint.get("data") or {})
        return classifier

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
            ValueError: If an image has values outside [0, 1], or the certifier's claim does not cover so many.
        """
        validate_pixels(images)
        with full_precision():
            with torch.no_grad():
                # An encoder may write to what it is given, and return the same memory again.
                latents = self.latents(images.clone()).clone()
                certificate = self.head.ellips.certify(latents, method=method)
            if certifier is None:
                return certificate
            carrying = as_certifier(certifier)
            carrying.validate_run(len(images))
            return carrying.certify(self.chain, images.clone(), latents, certificate)

    def digests(self) -> dict[str, str]:
        """Return SHA-256 digests of the encoder's and the head's whole state, to name what was certified."""
        return {"encoder": f"sha256:{state_digest(self.encoder)}", "head": f"sha256:{state_digest(self.head)}"}


def _recorded_encoder(checkpoint: Mapping[str, Any], path: Path, folder: RunFolder) -> FrozenEncoder | nn.Module:
    """Build the encoder that a checkpoint describes, or else the configuration of its run."""
    found, where = (checkpoint.get("data") or {}).get("encoder"), path
    if found is None and folder.config.is_file():
        settings, where = read_configuration(folder.config), folder.config
        found = ((settings.get("data") or {}).get("init_args") or {}).get("encoder")
    cure = "Build the encoder yourself and give it: from_run(run, encoder)."
    if found is None:
        raise ValueError(f"Expected {path} to say which encoder it belongs to but it does not. {cure}")
    encoder = build_listed(found, where, ENCODERS, cure=cure)
    if not isinstance(encoder, nn.Module):
        raise ValueError(f"{where}: expected an encoder but got {encoder!r}. {cure}")
    return encoder


def check_description(recorded: Mapping[str, Any], present: Mapping[str, Any]) -> None:
    """Refuse images that a classifier was not made for.

    Args:
        recorded: From the checkpoint; what it does not say is not compared.
        present: Of the datamodule at hand.

    Raises:
        DataMismatchError: If there are other classes, or files are read in another way.
    """
    then, now = recorded.get("class_names"), present.get("class_names")
    if then is not None and now is not None and list(then) != list(now):
        lacking, other = sorted(set(then) - set(now)), sorted(set(now) - set(then))
        raise DataMismatchError(
            f"Expected the {len(then)} classes that the classifier was trained on, {_some(then)}, but the data have "
            f"{len(now)}, {_some(now)} (lacking: {_some(lacking)}; besides: {_some(other)}). Give the data of these "
            "classes, in this order, or train on the new ones."
        )
    then, now = recorded.get("reading"), present.get("reading")
    if then and now:
        differing = [
            f"{k}: {then[k]} against {now.get(k)}" for k in ("mode", "resize", "crop") if then[k] != now.get(k)
        ]
        if differing:
            raise DataMismatchError(
                "Expected images that are read as in training but they are not (trained on, present): "
                f"{'; '.join(differing)}. Set mode, resize and crop of the data to what they were."
            )


def _some(names: Sequence[object], shown: int = 5) -> str:
    listed = ", ".join(map(str, names[:shown]))
    return (listed or "none") + (f" and {len(names) - shown} more" if len(names) > shown else "")


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
