"""What the projector is trained on: losses on the latents of one global batch, composable by weight."""

from ellips.losses.base import LatentLoss, Objective
from ellips.losses.coding_rate import CodingRateReduction, class_coding_rate, coding_rate
from ellips.losses.isotropy import Isotropy, isotropy
from ellips.losses.margin import emma, offset_cross_entropy
from ellips.losses.mixture import CertifiedRadius, MixtureLoss, ScoreCrossEntropy, signed_radius
from ellips.losses.mmd import ClassMMD
from ellips.losses.votes import VoteCrossEntropy, VoteLoss, VoteRadius

__all__ = [
    "CertifiedRadius",
    "ClassMMD",
    "CodingRateReduction",
    "Isotropy",
    "LatentLoss",
    "MixtureLoss",
    "Objective",
    "ScoreCrossEntropy",
    "VoteCrossEntropy",
    "VoteLoss",
    "VoteRadius",
    "class_coding_rate",
    "coding_rate",
    "emma",
    "isotropy",
    "offset_cross_entropy",
    "signed_radius",
]
