"""One image's certificate in one series of a run, and what it is made from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ellips.certificates import Certificate
from ellips.types import Series, Soundness, Space

ABSTAIN = -1
"""The prediction of a classifier that abstains."""

CARRIED = ("latent_radius", "lipschitz", "ball_radius")
"""Columns that rows in input space have."""


UNNAMED = Series("input", "", "other")
"""The series of a file of another tool, which says nothing but the radius."""


@dataclass(frozen=True)
class ImageRecord:
    """One image's certificate in one series of a run.

    Attributes:
        index: Position in the split's dataset.
        label: True class.
        prediction: Predicted class, −1 for an abstention.
        radius: Certified ℓ2 radius, 0 for an abstention.
        seconds: Time spent on the image.
        series: What the radius may stand in one column with: space, method and source.
        soundness: What it may claim.
        margin: Score of the prediction minus score of the rival.
        rival: The class whose boundary is nearest.
        multiplier: Dual multiplier that proves the latent radius.
        latent_radius: Radius before division by the Lipschitz constant, in input space.
        lipschitz: Lipschitz constant, in input space.
        ball_radius: Radius of the ball on which the constant is claimed, in input space.
        source: How the constant was obtained, in input space.
        seed: Seed of the run.
        lowered: By how much of itself the verified kernel lowered the latent radius; None: not put to it.
        corrected: Whether the prediction is that of the exact numbers at a tie which float64 decides otherwise; None:
            not put to the kernel.
        confirmed: Whether the kernel proves what is left; None: not put to it.
        diagnostics: Further figures by name, such as the p-value of a fit.
    """

    index: int
    label: int
    prediction: int
    radius: float
    seconds: float
    series: Series = UNNAMED
    soundness: Soundness = "exact"
    margin: float = math.nan
    rival: int = ABSTAIN
    multiplier: float = math.nan
    latent_radius: float | None = None
    lipschitz: float | None = None
    ball_radius: float | None = None
    source: str | None = None
    seed: int = 0
    lowered: float | None = None
    corrected: bool | None = None
    confirmed: bool | None = None
    diagnostics: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.radius >= 0:
            raise ValueError(f"Expected `radius` of image {self.index} to be at least 0 but got {self.radius}.")
        if self.prediction == ABSTAIN and self.radius != 0:
            raise ValueError(f"Expected the abstention on image {self.index} to have radius 0 but got {self.radius}.")

    @property
    def space(self) -> Space:
        """Where the radius is measured."""
        return self.series.space

    @property
    def correct(self) -> bool:
        """Whether the prediction is right; an abstention is not."""
        return self.prediction == self.label and self.prediction != ABSTAIN


def records_from_certificate(
    certificate: Certificate, index: Tensor, label: Tensor, *, series: Series, seconds: float, seed: int = 0
) -> list[ImageRecord]:
    """Turn a batch's certificate into records.

    Args:
        certificate: The certificate of N images.
        index: Shape ``(N,)``, positions in the dataset.
        label: Shape ``(N,)``, true classes.
        series: The series.
        seconds: Time spent on each image.
        seed: Seed of the run.
    """
    certificate = certificate.cpu()
    columns = {name: value.tolist() for name, value in certificate.tensors().items()}
    diagnostics = {name: value.tolist() for name, value in certificate.diagnostics.items()}
    lowered, corrected, confirmed = (diagnostics.pop(name, None) for name in ("lowered", "corrected", "confirmed"))
    return [
        ImageRecord(
            index=i,
            label=y,
            series=series,
            seconds=seconds,
            seed=seed,
            soundness=certificate.soundness,
            source=certificate.source,
            lowered=None if lowered is None else lowered[row],
            corrected=None if corrected is None else bool(corrected[row]),
            confirmed=None if confirmed is None else bool(confirmed[row]),
            diagnostics={name: values[row] for name, values in diagnostics.items()},
            **{name: values[row] for name, values in columns.items()},
        )
        for row, (i, y) in enumerate(zip(index.tolist(), label.tolist(), strict=True))
    ]


def certificate_from_records(records: Sequence[ImageRecord]) -> Certificate:
    """Return the certificate that the records of one series came from.

    Raises:
        ValueError: If the records are of several series, or there are none.
    """
    kinds = {(r.series, r.soundness, r.source) for r in records}
    if len(kinds) != 1:
        raise ValueError(f"Expected records of one series but got {len(kinds)}: {sorted(map(str, kinds))}.")

    def column(name: str) -> Tensor | None:
        values = [getattr(record, name) for record in records]
        return None if None in values else torch.tensor(values, dtype=torch.float64)

    radius, prediction, _ = records_to_tensors(records)
    rows: dict[str, Any] = {name: column(name) for name in ("margin", "multiplier", *CARRIED)}
    first = records[0]
    named = set.intersection(*(set(r.diagnostics) for r in records))
    figures = {
        name: torch.tensor([r.diagnostics[name] for r in records], dtype=torch.float64) for name in sorted(named)
    }
    about: dict[str, Any] = {"method": first.series.method, "soundness": first.soundness, "source": first.source}
    return Certificate(
        prediction=prediction,
        radius=radius,
        rival=torch.tensor([r.rival for r in records]),
        space=first.space,
        diagnostics=figures,
        **rows,
        **about,
    )


def records_to_tensors(records: Sequence[ImageRecord]) -> tuple[Tensor, Tensor, Tensor]:
    """Return radius (float64), prediction and label (int64), each ``(N,)``: what the metrics take."""
    return (
        torch.tensor([r.radius for r in records], dtype=torch.float64),
        torch.tensor([r.prediction for r in records], dtype=torch.int64),
        torch.tensor([r.label for r in records], dtype=torch.int64),
    )
