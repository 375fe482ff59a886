"""A denoiser in front of a frozen encoder that never saw noise."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ellips.encoders.denoiser import Denoiser
from ellips.encoders.frozen import FrozenEncoder
from ellips.encoders.weights import state_digest


class Denoised(FrozenEncoder):
    """Denoiser, resize, normalise, backbone: a frozen encoder for noisy images (Salman et al. 2020).

    The denoiser works on images as the data set delivers them, before anything is resized: there the noise has the
    level that it knows. Smoothing the decision of a classifier on these features needs nothing of denoiser or encoder
    but that each image is mapped by itself and always in the same way. Its Gaussians should be fitted to features of
    noisy images.

    Args:
        encoder: The encoder; its backbone and preprocessing are taken over, not copied, and the denoiser computes in
            its precision, too.
        denoiser: The denoiser; frozen from now on.

    Attributes:
        denoiser: The denoiser; its ``sigma`` is the noise that the whole is made for.

    Raises:
        TypeError: If the encoder has a denoiser already.
    """

    def __init__(self, encoder: FrozenEncoder, denoiser: Denoiser) -> None:
        # Not FrozenEncoder's: everything that it finds out, the encoder has found out.
        nn.Module.__init__(self)
        if isinstance(encoder, Denoised):
            raise TypeError("Expected an encoder without a denoiser but got one that has one.")
        self.precision = encoder.precision
        self.architecture = encoder.architecture
        self.feature_dim = encoder.feature_dim
        self.preprocess = encoder.preprocess
        self.backbone = encoder.backbone
        self.denoiser = denoiser
        self.requires_grad_(False)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Denoise and encode images.

        Args:
            images: Shape ``(N, C, H, W)``, values in [0, 1] but for noise, of a kind that the denoiser takes.

        Returns:
            Features ``(N, feature_dim)``; float32 even where their values are those of half precision.

        Raises:
            TypeError: If the images are not floating point.
            ValueError: If their shape does not fit.
        """
        return super().forward(self._denoise(images))

    def encode(self, images: Tensor) -> Tensor:
        """Like :meth:`forward`, for images whose gradients nobody will ask for; see :meth:`FrozenEncoder.encode`."""
        with torch.inference_mode():
            denoised = self._denoise(images)
        return super().encode(denoised)

    def fingerprint(self) -> dict[str, str]:
        """That of the encoder, with ``denoiser`` and ``denoiser_weights`` besides."""
        return {
            **super().fingerprint(),
            "denoiser": self.denoiser.describe(),
            "denoiser_weights": f"sha256:{state_digest(self.denoiser)}",
        }

    def extra_repr(self) -> str:
        """Architecture, feature width and denoiser, for ``print``."""
        return f"{super().extra_repr()}, denoiser={self.denoiser.describe()}"

    def _denoise(self, images: Tensor) -> Tensor:
        self._stay_frozen()
        known = images.is_floating_point()  # what is not, the denoiser refuses
        with self.arithmetic(images.device):
            denoised: Tensor = self.denoiser(images.to(self.preprocess.mean.dtype) if known else images)
        return denoised

    def _stay_frozen(self) -> None:
        super()._stay_frozen()
        if any(module.training for module in self.denoiser.modules()):  # someone reached past train()
            self.denoiser.eval()
