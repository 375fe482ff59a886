"""What the parts of the project hand to each other: batches, outputs and the kinds of claim a result may make."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple, get_args

from torch import Tensor

Soundness = Literal["exact", "deterministic", "probabilistic", "estimated"]
"""What a certificate may claim, strongest first.

``exact``: no encoder lies between input and classifier. ``deterministic``: the Lipschitz constant is a proven bound.
``probabilistic``: it holds with probability at least 1 - alpha over our own sampling. ``estimated``: it was sampled,
and nothing is guaranteed.
"""

Space = Literal["latent", "input"]
"""Where a radius is measured: on latents, or on images with values in [0, 1] at dataset resolution."""

SOUNDNESS_ORDER: Final[tuple[Soundness, ...]] = get_args(Soundness)


class ImageBatch(NamedTuple):
    """Images as a datamodule delivers them.

    Attributes:
        image: Shape ``(N, C, H, W)``, floating point with values in [0, 1], at the dataset's own resolution.
        label: Shape ``(N,)``, int64 class indices.
        index: Shape ``(N,)``, int64 positions within the split's dataset.
    """

    image: Tensor
    label: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody needs here


class FeatureBatch(NamedTuple):
    """Encoded images.

    Attributes:
        feature: Shape ``(N, D)``, the frozen encoder's output.
        label: Shape ``(N,)``, int64 class indices.
        index: Shape ``(N,)``, int64 positions within the split's dataset.
        image: The images the features came from, or None where the datamodule was not asked to keep them.
    """

    feature: Tensor
    label: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    image: Tensor | None = None


class HeadOutput(NamedTuple):
    """What evaluation steps return and callbacks read.

    Attributes:
        latent: Shape ``(N, d)``, the projector's output.
        scores: Shape ``(N, K)``, float64 scores of the Gaussian classifier.
        label: Shape ``(N,)``, int64 class indices.
        index: Shape ``(N,)``, int64 positions within the split's dataset.
        image: The images behind the latents, or None where they were not kept.
    """

    latent: Tensor
    scores: Tensor
    label: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    image: Tensor | None = None


def weakest(*soundness: Soundness) -> Soundness:
    """Return the weakest of several claims: what a chain of them may claim as a whole.

    Args:
        *soundness: One or more members of :data:`Soundness`.

    Raises:
        ValueError: If none is given or one is not a soundness class.
    """
    if not soundness:
        raise ValueError("Expected at least one soundness class but got none.")
    for item in soundness:
        if item not in SOUNDNESS_ORDER:
            raise ValueError(f"Expected a soundness class out of {SOUNDNESS_ORDER} but got {item!r}.")
    return max(soundness, key=SOUNDNESS_ORDER.index)
