"""What the parts of the project hand to each other: batches, outputs and the kinds of claim a result may make."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple, get_args

from torch import Tensor

from ellips.validation import all_at_least, one_of

Soundness = Literal["exact", "deterministic", "probabilistic", "estimated"]
"""What a certificate may claim, strongest first.

``exact``: no encoder lies between input and classifier. ``deterministic``: the Lipschitz constant is a proven bound.
``probabilistic``: it holds with probability at least 1 - alpha over our own sampling. ``estimated``: it was sampled,
and nothing is guaranteed.
"""

Space = Literal["latent", "input"]
"""Where a radius is measured: on latents, or on images with values in [0, 1] at dataset resolution."""

SOUNDNESS_ORDER: Final[tuple[Soundness, ...]] = get_args(Soundness)
SPACES: Final[tuple[Space, ...]] = get_args(Space)

DEFAULT_RADII: Final[Mapping[Space, tuple[float, ...]]] = {
    "latent": (0.25, 0.5, 0.75, 1.0, 1.25, 1.5),
    "input": (0.1, 0.25, 0.5, 0.75, 1.0),
}
"""Radii that tables show where none are asked for and the data have none: in units of the latents, on [0, 1] pixels."""

ImageMap = Callable[[Tensor], Tensor]
"""A map of images ``(N, C, H, W)`` with values in [0, 1] to vectors ``(N, d)``, image by image; may be a module."""


@dataclass(frozen=True)
class Series:
    """What may stand in one column or make one curve: one method in one space, carried there in one way.

    Attributes:
        space: Where the radii are measured.
        method: How the latent radius was computed, or what takes its place (``"margin"``).
        source: In input space, the short name of what carried the radius to the image, such as ``"clever"``; None in
            latent space.

    Raises:
        ValueError: If the space is unknown, or a source comes without input space or input space without one.
    """

    space: Space
    method: str
    source: str | None = None

    def __post_init__(self) -> None:
        one_of(SPACES, space=self.space)
        if (self.source is None) != (self.space == "latent"):
            raise ValueError(
                f"Expected `source` with a series in input space and none in latent space but got {self.source!r} in "
                f"{self.space} space."
            )

    @property
    def name(self) -> str:
        """The name in files, logs and tables: ``latent-exact``, ``input-exact-clever``."""
        return "-".join(part for part in (self.space, self.method, self.source) if part is not None)

    @property
    def label(self) -> str:
        """The name where the space is said already."""
        return "-".join(part for part in (self.method, self.source) if part is not None)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class LipschitzBound:
    """Per image: an ℓ2 Lipschitz constant, the ball around the image it is claimed on, and what kind of claim it is.

    Attributes:
        constant: Shape ``(N,)``, float64, at least 0: latent length per unit of image length.
        ball_radius: Shape ``(N,)``, float64: ℓ2 radius of the ball on which the constant is claimed; inf is everywhere.
        soundness: What the claim is worth.
        source: How the constant was obtained, settings included, for the table and the summary.
        diagnostics: Per-image figures by name, each of shape ``(N,)``, such as a fit's p-value or a residual.

    Raises:
        ValueError: If shapes disagree, a number is negative or NaN, or the soundness is unknown.
    """

    constant: Tensor
    ball_radius: Tensor
    soundness: Soundness
    source: str
    diagnostics: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what cannot be a bound."""
        if self.constant.ndim != 1:
            raise ValueError(f"Expected `constant` to have shape (N,) but got {tuple(self.constant.shape)}.")
        one_of(SOUNDNESS_ORDER, soundness=self.soundness)
        for name, value in {"ball_radius": self.ball_radius, **self.diagnostics}.items():
            if value.shape != self.constant.shape:
                raise ValueError(
                    f"Expected `{name}` to have the shape of `constant`, {tuple(self.constant.shape)}, "
                    f"but got {tuple(value.shape)}."
                )
        all_at_least(0, constant=self.constant, ball_radius=self.ball_radius)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.constant)


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
    """What evaluation steps return and callbacks read: the contract between a module of your own and the callbacks.

    A module that certification, Gaussianity or certificates are wanted of has an :class:`ellips.EllipsHead` as its
    attribute ``head``, in eval mode and fitted by the time an evaluation begins, and returns this from
    ``validation_step`` and ``test_step``. Every process returns its own rows; an image may come more than once, as
    samplers pad, and counts once, by its ``index``. All is on the module's device and without gradients.

    Attributes:
        latent: Shape ``(N, d)``, ``head.latents(features)`` in eval mode, not normalised or cast afterwards: radii are
            of exactly this vector.
        scores: Shape ``(N, K)``, float64, ``head.ellips(latent)``.
        label: Shape ``(N,)``, int64 class indices in ``[0, K)``.
        index: Shape ``(N,)``, int64 positions within the split's dataset, the same image having the same position in
            every process and epoch.
        image: Shape ``(N, C, H, W)`` with values in [0, 1], before any normalisation, or None where no radius on images
            is wanted.
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
        one_of(SOUNDNESS_ORDER, soundness=item)
    return max(soundness, key=SOUNDNESS_ORDER.index)
