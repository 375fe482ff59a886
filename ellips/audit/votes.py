"""A smoothed classifier (Cohen et al. 2019) as an audit's target: votes under Gaussian noise."""

from __future__ import annotations

import torch
from scipy.stats import binomtest
from torch import Tensor
from torch.nn import functional

from ellips.audit.foreign import Voting
from ellips.input_certifiers import AuditTarget
from ellips.lipschitz.sampling import image_generator
from ellips.types import ImageMap

_COPIES = 16  # noisy copies behind each gradient of an attack
_LEVEL = 0.001  # of the test that tells the two classes with most votes apart


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

    def scores(images: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(voting.seed)
        noise = torch.randn((_COPIES, *images.shape[1:]), generator=generator).to(images)
        noisy = (images[:, None] + sigma * noise).flatten(0, 1)
        return functional.softmax(model(noisy), dim=1).view(len(images), _COPIES, -1).mean(1)

    @torch.no_grad()
    def predict(points: Tensor) -> Tensor:
        return torch.tensor([_majority(model, point.float(), voting, sigma) for point in points], device=points.device)

    return AuditTarget(scores=scores, predict=predict, alpha=voting.alpha)


def _majority(model: ImageMap, image: Tensor, voting: Voting, sigma: float) -> int:
    generator = image_generator(image, voting.seed)
    votes = torch.zeros(0, dtype=torch.int64)
    for start in range(0, voting.copies, 256):
        count = min(256, voting.copies - start)
        noise = torch.randn((count, *image.shape), generator=generator).to(image)
        scores = model(image + sigma * noise)
        found = torch.bincount(scores.argmax(1).cpu(), minlength=scores.shape[1])
        votes = found if len(votes) == 0 else votes + found
    top, second = votes.topk(2).values.tolist()
    told_apart = binomtest(top, top + second, 0.5).pvalue <= _LEVEL
    return int(votes.argmax()) if told_apart else -1
