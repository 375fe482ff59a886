"""Randomised smoothing of the decision as the Adversarial Robustness Toolbox computes it: a peer."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ellips.chunks import Chunks
from ellips.input_certifiers.base import Chain, validate_noisy_type
from ellips.input_certifiers.smoothed_decision import SmoothedDecision, Stopping
from ellips.lipschitz.base import owning_module, validate_by_image, validate_eval_mode, validate_images
from ellips.smoothing import ImageNoise, Votes
from ellips.smoothing.voting import MOST
from ellips.types import ImageMap


@dataclass(frozen=True)
class ArtSmoothedDecision(SmoothedDecision):
    """:class:`SmoothedDecision` with a fixed number of draws, by the toolbox's ``certify`` (the extra ``bench``).

    It gets the same noise, so that it must find the same; it is here to be compared with, and to be checked against.

    Raises:
        ValueError: If a setting is out of range, or ``stopping`` is not ``fixed``.
        ModuleNotFoundError: When it certifies, if the toolbox is not installed.
    """

    _: KW_ONLY
    stopping: Stopping = "fixed"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stopping != "fixed":
            raise ValueError(f"Expected `stopping` to be 'fixed', all that the toolbox can, but got {self.stopping!r}.")

    def vote(self, chain: Chain, images: Tensor) -> Votes:
        """Let the toolbox count; votes and rivals, which it does not tell, are −1.

        See :meth:`SmoothedDecision.vote`.
        """
        validate_images(images)
        validate_noisy_type(images)
        validate_eval_mode(chain.latents)
        validate_by_image(self.scores(chain), images, self.sigma, owning_module(chain.latents))
        prediction, radius = _certify(self, self.scores(chain), images.detach())
        unknown = torch.full_like(prediction, -1)
        draws = torch.full_like(prediction, self.num_samples)
        return Votes(prediction, radius, unknown, unknown, draws, torch.full_like(prediction, self.num_selection))


def _certify(certifier: SmoothedDecision, scores: ImageMap, images: Tensor) -> tuple[Tensor, Tensor]:
    try:
        from art.estimators.certification.randomized_smoothing.randomized_smoothing import RandomizedSmoothingMixin
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "This certificate is the Adversarial Robustness Toolbox's, which is not installed: "
            "pip install 'ellips[bench]'."
        ) from error

    class Smoothed(RandomizedSmoothingMixin):  # type: ignore[misc]  # the toolbox ships no types
        def _noisy_samples(self, x: Any, n: int | None = None) -> Any:  # noqa: ANN401
            image = torch.from_numpy(x).to(images)
            copies = image.new_empty((n or 0, *image.shape))
            ImageNoise(image, certifier.sigma, certifier.seed, next(purposes)).fill(copies)
            return copies

        def _predict_classifier(self, x: Tensor, batch_size: int, training_mode: bool, **kwargs: Any) -> Any:  # noqa: ANN401
            del batch_size, training_mode, kwargs
            return chunks.run(lambda part: (scores(part),), x)[0].cpu().numpy()

    chunks = Chunks(certifier.chunk_size, MOST)
    purposes = iter(("selection", "estimation") * len(images))
    alpha = certifier.alpha / certifier.num_images
    toolbox = Smoothed(sample_size=certifier.num_selection, scale=certifier.sigma, alpha=alpha)
    with torch.no_grad():
        found = toolbox.certify(images.cpu().numpy(), n=certifier.num_samples, batch_size=certifier.num_samples)
    prediction, radius = (torch.from_numpy(np.asarray(x)).to(images.device) for x in found)
    return prediction.long(), radius.double().clamp(min=0)
