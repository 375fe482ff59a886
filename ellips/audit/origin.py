"""Whether a run's claims are about the images, the classifier and the certifiers that its folder names.

A folder of a stranger says which classes its images have, which latents were certified, and what its radii may claim.
None of it is in the proofs: latents at the means of their classes have large radii, and all of them can be proven.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from ellips.files import ImageRecord
from ellips.input_certifiers import Chain, InputCertifier
from ellips.lipschitz.base import owning_module
from ellips.precision import full_precision, reduced_precision
from ellips.types import SOUNDNESS_ORDER, Series

COMPARED = 32
"""Images that are encoded anew."""

_FULL, _HALF = 1e-2, 1e-1
"""How far latents may be from the run's, in units of the mixture's scale: on other hardware they differ a little."""


def refuse_other_rows(records: Iterable[ImageRecord], expected: Sequence[int], labels: Sequence[int] | None) -> None:
    """Refuse rows of images that were not to be certified, or with another class than the data's.

    Args:
        records: Of any series.
        expected: Positions of the images.
        labels: True class by position; None: not known without reading all images.

    Raises:
        ValueError: If there are such rows; their positions are named.
    """
    records, wanted = list(records), set(expected)
    if other := sorted({record.index for record in records if record.index not in wanted}):
        raise ValueError(f"Expected rows of the images that were certified but the table has others: {other[:10]}.")
    moved = {r.index for r in records if labels is not None and labels[r.index] != r.label}
    if moved:
        raise ValueError(
            f"Expected the labels of the data but those of {len(moved)} images in the table are others: "
            f"{sorted(moved)[:10]}."
        )


def refuse_stronger_claims(certifiers: Mapping[Series, InputCertifier], claimed: Mapping[Series, str]) -> None:
    """Refuse words that a certifier never gives its radii.

    Args:
        certifiers: By series.
        claimed: The soundness that the table gives each series.

    Raises:
        ValueError: If one is stronger than the certifier's strongest.
    """
    for series, certifier in certifiers.items():
        most, said = certifier.strongest, claimed[series]
        if most is not None and SOUNDNESS_ORDER.index(said) < SOUNDNESS_ORDER.index(most):
            raise ValueError(
                f"Expected {series} to claim {most!r} at most, which is all that {certifier.source_name} does, but the "
                f"table says {said!r}."
            )


@full_precision()
@torch.no_grad()
def refuse_other_latents(chain: Chain, images: Tensor, latents: Tensor, index: Sequence[int]) -> None:
    """Refuse latents that are not those of their images.

    Args:
        chain: The classifier.
        images: Shape ``(N, C, H, W)``, values in [0, 1].
        latents: Shape ``(N, d)``, as the run recorded them.
        index: Positions of the images, for the message.

    Raises:
        ValueError: If the encoder gives others; the images are named.
    """
    allowed = _HALF if reduced_precision(owning_module(chain.latents)) else _FULL
    gap = (chain.latents(images).double() - latents.to(images.device)).norm(dim=1) / chain.ellips.scale
    if bool((wrong := ~(gap <= allowed)).any()):
        rows = [position for position, bad in zip(index, wrong.tolist(), strict=True) if bad]
        raise ValueError(
            f"Expected the run's latents to be those of its images but of {len(rows)} of the {len(index)} that were "
            f"encoded anew they are others ({rows[:10]}): the encoder computes otherwise here, or they were changed."
        )
