"""A smoothed classifier (Cohen et al. 2019) of another project as an audit's target."""

from __future__ import annotations

from torch import Tensor

from ellips.audit.foreign import Voting
from ellips.input_certifiers import AuditTarget
from ellips.smoothing import majority, soft_votes
from ellips.smoothing.voting import COPIES, LEVEL
from ellips.types import ImageMap


def voted_target(model: ImageMap, voting: Voting) -> AuditTarget:
    """Return the smoothed classifier of a model as a target.

    Attacks climb the mean of the model's probabilities under a fixed set of noise; predictions are by majority, and −1
    where the two classes with most votes cannot be told apart.

    Args:
        model: Maps images ``(N, C, H, W)`` with values in [0, 1] to scores ``(N, K)``.
        voting: The noise.

    Raises:
        ValueError: If the classifier is not smoothed.
    """
    if voting.sigma is None:
        raise ValueError("Expected `sigma` of a smoothed classifier but got None.")
    sigma = voting.sigma

    def predict(points: Tensor) -> Tensor:
        return majority(
            lambda noisy: model(noisy).argmax(1),
            points.float(),
            sigma,
            copies=voting.copies,
            seed=voting.seed,
            level=LEVEL,
        )

    return AuditTarget(
        scores=lambda images: soft_votes(model, images, sigma, COPIES, voting.seed),
        predict=predict,
        alpha=voting.alpha,
    )
