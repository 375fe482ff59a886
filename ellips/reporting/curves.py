"""A curve together with what it claims."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import ROUND_FLOOR, Context

from ellips.metrics.functional import CertifiedCurve
from ellips.types import SPACES, Soundness, Space, weakest
from ellips.validation import one_of

CLAIMS: dict[Soundness, str] = {
    "exact": "proven, with no encoder in between",
    "deterministic": "proven",
    "probabilistic": "holds with probability at least 1 - alpha over our own sampling",
    "estimated": "sampled, no guarantee",
}
"""What each soundness class lets a reader believe, in words for captions."""

AXES: dict[Space, str] = {
    "latent": "ℓ2 radius in latent space",
    "input": "ℓ2 radius on the image, values in [0, 1]",
}
"""The axis label of each space."""


@dataclass(frozen=True)
class LabelledCurve:
    """A certified-accuracy curve and what may be claimed for it.

    Attributes:
        label: Name in legends and tables.
        curve: The curve.
        space: Where its radii are measured.
        soundness: What they may claim.
    """

    label: str
    curve: CertifiedCurve
    space: Space
    soundness: Soundness

    def __post_init__(self) -> None:
        weakest(self.soundness)
        one_of(SPACES, space=self.space)


def radius_text(radius: float, digits: int = 4) -> str:
    """Write a radius of a grid with at most so many digits, never rounded up: an accuracy is not known beyond it."""
    return f"{float(Context(prec=digits, rounding=ROUND_FLOOR).create_decimal(repr(radius))):g}"


def single_claim(curves: Iterable[LabelledCurve]) -> tuple[Space, Soundness]:
    """Return the one space and soundness class of several curves.

    Raises:
        ValueError: If there are none, or they differ: such curves do not belong on one axis or in one column.
    """
    claims = {(curve.space, curve.soundness) for curve in curves}
    if len(claims) != 1:
        got = ", ".join(f"{soundness} in {space} space" for space, soundness in sorted(claims)) or "none"
        raise ValueError(
            f"Expected curves of one space and one soundness class but got {got}; show them in separate figures "
            "and tables."
        )
    return claims.pop()


def group_by_claim(curves: Iterable[LabelledCurve]) -> dict[tuple[Space, Soundness], list[LabelledCurve]]:
    """Sort curves into groups that may be shown together, in order of appearance."""
    groups: dict[tuple[Space, Soundness], list[LabelledCurve]] = {}
    for curve in curves:
        groups.setdefault((curve.space, curve.soundness), []).append(curve)
    return groups
