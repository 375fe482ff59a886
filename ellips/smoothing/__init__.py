"""Votes under Gaussian noise: drawing them, and what can be concluded from how many."""

from ellips.smoothing.confidence import MixtureTest, clopper_pearson_lower, votes_needed
from ellips.smoothing.noise import BLOCK, ImageNoise, add_noise
from ellips.smoothing.plan import VotePlan
from ellips.smoothing.voting import Decision, Votes, count_votes, majority, soft_votes

__all__ = [
    "BLOCK",
    "Decision",
    "ImageNoise",
    "MixtureTest",
    "VotePlan",
    "Votes",
    "add_noise",
    "clopper_pearson_lower",
    "count_votes",
    "majority",
    "soft_votes",
    "votes_needed",
]
