"""What the projector is trained on: losses on the latents of one global batch, composable by weight."""

from ellips.losses.base import LatentLoss, Objective
from ellips.losses.coding_rate import CodingRateReduction, class_coding_rate, coding_rate
from ellips.losses.isotropy import Isotropy, isotropy
from ellips.losses.mmd import ClassMMD

__all__ = [
    "ClassMMD",
    "CodingRateReduction",
    "Isotropy",
    "LatentLoss",
    "Objective",
    "class_coding_rate",
    "coding_rate",
    "isotropy",
]
