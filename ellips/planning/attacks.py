"""What an audit sends through the encoder."""

from __future__ import annotations

from functools import singledispatch
from typing import Final

from ellips.audit import AttackSettings
from ellips.input_certifiers import ByConstant, InputCertifier, MarginClever, SmoothedDecision, SmoothedEncoder
from ellips.planning.certifiers import Images
from ellips.planning.work import Work
from ellips.smoothing.voting import COPIES

_SLOPE_ITERATIONS: Final = 20
_ENDS: Final = 5
"""Images of an ascent beside its steps: both ends once more, and the Jacobian's norm at both and in the middle."""


@singledispatch
def copies(certifier: InputCertifier) -> tuple[int, int]:
    """Return the noisy copies behind a gradient of an attack, and behind a prediction of its judge."""
    return 1, 1


@copies.register
def _(certifier: SmoothedDecision) -> tuple[int, int]:
    return COPIES, min(certifier.num_samples, 1000)


@copies.register
def _(certifier: SmoothedEncoder) -> tuple[int, int]:
    return COPIES, certifier.num_samples


def audit_work(certifier: InputCertifier, settings: AttackSettings, images: Images) -> Work:
    """Return the most that attacks on one series of radii on the image cost.

    An image without a radius is not attacked, and AutoAttack ends when it has succeeded.

    Args:
        certifier: Made the radii.
        settings: How hard to attack.
        images: What was certified.
    """
    behind_gradient, behind_judge = copies(certifier)
    count, hardest = images.count, min(settings.autoattack_points, images.count)
    scores = pgd(settings).times(count) + autoattack(settings, images.classes).times(hardest)
    judged = 2 * count + 3 * hardest
    work = scores.times(behind_gradient) + Work(behind_judge * judged)
    if isinstance(certifier, ByConstant) and not isinstance(certifier, MarginClever):
        work += slopes(settings, images).times(count)
    return work


def pgd(settings: AttackSettings) -> Work:
    """Two attacks on a point, untargeted and at the rival: each start, each step forward and backward.

    Beside the steps: three passes for the two attacks' outcomes of each start, one for scores.
    """
    steps = 2 * settings.restarts * settings.steps
    return Work(steps + 3 * settings.restarts + 1, steps)


def autoattack(settings: AttackSettings, classes: int) -> Work:
    """APGD on two losses (one with two classes) and Square, on a point where neither succeeds."""
    losses = 2 if classes > 2 else 1
    ascents = losses * settings.restarts * settings.steps
    return Work(2 * ascents + 5 * losses * settings.restarts + 3 * settings.queries + 3, ascents)


def slopes(settings: AttackSettings, images: Images) -> Work:
    """The search for a slope steeper than a constant: ascents from the image and from random places."""
    ascents = settings.restarts + 1
    norms = images.products(_SLOPE_ITERATIONS) * (1 + 3 * ascents)
    climbs = 2 * ascents * settings.steps
    return Work(climbs + 1 + _ENDS * ascents, climbs + norms)
