"""ℓ2 attacks of the Adversarial Robustness Toolbox, each point inside its own ball.

The toolbox takes one radius for all points. Here every point x with radius r is attacked as x + r·u with u in the unit
ball, so that one radius, 1, fits all.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ellips.audit.course import Course
from ellips.types import ImageMap
from ellips.validation import at_least

# Score margins of Gaussians run into the hundreds, where a softmax is flat and a cross entropy has no gradient; scaled
# to this margin at the point itself, every attack sees a slope.
_MARGIN = 5.0


@dataclass(frozen=True)
class AttackSettings:
    """How hard to attack.

    Attributes:
        steps: Gradient steps of each start.
        restarts: Random starts.
        autoattack_points: How many points AutoAttack (APGD on cross entropy and on the difference of logits ratio, and
            Square) attacks besides PGD, together; it is slow. Those with the smallest radius get it.
        queries: Queries of the Square attack.
        clip: Stay within [0, 1]. Off by default: a certificate holds in the whole ball.
        batch_size: Points that are attacked at once, at most 128.
        seed: Seed of the random starts.
    """

    steps: int = 40
    restarts: int = 2
    autoattack_points: int = 10
    queries: int = 300
    clip: bool = False
    batch_size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        at_least(1, steps=self.steps, restarts=self.restarts, queries=self.queries, batch_size=self.batch_size)
        at_least(0, autoattack_points=self.autoattack_points)
        if self.batch_size > 128:
            raise ValueError(f"Expected `batch_size` to be at most 128 but got {self.batch_size}.")


def attack_passes(points: int, settings: AttackSettings) -> int:
    """Return about how many passes of single points attacks on some points take at most."""
    hardest = min(points, settings.autoattack_points)
    return 2 * points * _pgd_passes(settings) + hardest * (2 * _apgd_passes(settings) + _square_passes(settings))


def _pgd_passes(settings: AttackSettings) -> int:
    return settings.restarts * settings.steps


def _apgd_passes(settings: AttackSettings) -> int:
    return 2 * settings.restarts * settings.steps


def _square_passes(settings: AttackSettings) -> int:
    return 3 * settings.queries


class _UnitBalls(nn.Module):
    """Scores at x + r·u as a function of u; with one point, any number of u."""

    def __init__(self, scores: ImageMap, points: Tensor, radius: Tensor, scale: Tensor, clip: bool) -> None:
        super().__init__()
        self.scores, self.clip = scores, clip
        self.points, self.radius, self.scale = points, radius.view(-1, *[1] * (points.ndim - 1)), scale[:, None]

    def forward(self, u: Tensor) -> Tensor:
        # The toolbox divides by gradient norms, and by step sizes of steps that went nowhere.
        moved = self.points + self.radius.to(u.dtype) * u.nan_to_num()
        if self.clip:
            moved = moved.clamp(0, 1)
        return (self.scores(moved) * self.scale).float()


@dataclass(frozen=True)
class _Attacked:
    """Points that an attack tries together, and the function that it tries them on."""

    scores: ImageMap
    points: Tensor
    radius: Tensor
    scale: Tensor
    label: Tensor
    rival: Tensor
    classes: int

    def at(self, rows: Tensor) -> _Attacked:
        """Return some of the points, with what belongs to them."""
        points, radius, scale = self.points[rows], self.radius[rows], self.scale[rows]
        return _Attacked(self.scores, points, radius, scale, self.label[rows], self.rival[rows], self.classes)


_Attack = Callable[[Any, _Attacked, AttackSettings], Tensor]
"""Takes the toolbox, points and settings; returns moves u of the points, each of length 1 at most."""


def attack_balls(
    scores: ImageMap,
    points: Tensor,
    radius: Tensor,
    rival: Tensor,
    settings: AttackSettings,
    broken: Callable[[str, Tensor, Tensor], Tensor] | None = None,
    course: Course | None = None,
) -> dict[str, Tensor]:
    """Look for points inside balls at which the prediction is another one, the cheapest attacks first.

    Args:
        scores: Maps points to scores ``(N, K)``, differentiable.
        points: Shape ``(N, ...)``, float32.
        radius: Shape ``(N,)``, finite and positive.
        rival: Shape ``(N,)``, the class to aim at besides the untargeted attacks.
        settings: How hard to attack.
        broken: Called after each attack with its name, the positions of the M points that it tried and these points,
            changed; returns which of them, shape ``(M,)``, are broken and need not be attacked any more. None: every
            point gets every attack.
        course: How far it may go on; None: to the end.

    Returns:
        By attack, the changed points that it ended with, float64, each within its radius; the caller judges them.
        Points that an attack did not try are as they were.

    Raises:
        ModuleNotFoundError: If the toolbox is not installed; it comes with the extra ``bench``.
    """
    toolbox, course = _toolbox(), course or Course()
    _seed(settings.seed)
    with torch.no_grad():
        top, order = scores(points).double().sort(dim=1, descending=True)
    scale = (_MARGIN / (top[:, 0] - top[:, 1]).clamp_min(1e-12)).to(points.device)
    everything = _Attacked(scores, points, radius, scale, order[:, 0], rival, top.shape[1])
    whole = torch.ones(len(points), dtype=torch.bool, device=points.device)
    hardest = torch.zeros_like(whole)
    hardest[radius.argsort()[: settings.autoattack_points]] = True
    found: dict[str, Tensor] = {}

    def run(name: str, candidates: Tensor, passes: int, attack: _Attack, wanted: bool) -> None:
        rows = (whole & candidates).nonzero().flatten()
        with course.stage(passes * int(candidates.sum())) as counted:
            if not wanted or not len(rows):
                return
            tried = replace(everything, scores=counted(scores))
            moves = [attack(toolbox, tried.at(part), settings) for part in rows.split(settings.batch_size)]
        moved = _moved(points[rows], radius[rows], torch.cat(moves).to(points), settings.clip)
        found[name] = points.double().index_copy(0, rows, moved)
        if broken is not None:
            whole[rows] &= ~broken(name, rows, moved)

    every = torch.ones_like(whole)
    run("pgd", every, _pgd_passes(settings), _pgd, True)
    run("pgd at the rival", every, _pgd_passes(settings), partial(_pgd, targeted=True), not course.over)
    for name, loss in (("cross entropy", "cross_entropy"), ("logit ratio", "difference_logits_ratio")):
        possible = loss == "cross_entropy" or everything.classes > 2
        ascent = partial(_apgd, loss=loss)
        run(f"autoattack, {name}", hardest, _apgd_passes(settings), ascent, possible and not course.over)
    possible = points.ndim == 4 and min(points.shape[-2:]) >= 5  # it changes squares of several pixels
    run("autoattack, square", hardest, _square_passes(settings), _square, possible and not course.over)
    return found


def _toolbox() -> Any:  # noqa: ANN401 - a module without types
    try:
        from art.attacks import evasion
        from art.estimators import classification
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "The audit attacks with the Adversarial Robustness Toolbox, which is not installed: "
            "pip install 'ellips[bench]'."
        ) from error
    return evasion, classification


def _seed(seed: int) -> None:
    np.random.seed(seed)  # noqa: NPY002 - the toolbox draws from NumPy's global generator, and from Python's
    random.seed(seed)
    torch.manual_seed(seed)


def _estimator(toolbox: Any, attacked: _Attacked, settings: AttackSettings) -> Any:  # noqa: ANN401
    return toolbox[1].PyTorchClassifier(
        _UnitBalls(attacked.scores, attacked.points, attacked.radius, attacked.scale, settings.clip),
        loss=nn.CrossEntropyLoss(),
        input_shape=tuple(attacked.points.shape[1:]),
        nb_classes=attacked.classes,
        clip_values=(-1.0, 1.0),  # no component of a vector in the unit ball is larger
        device_type="gpu" if attacked.points.is_cuda else "cpu",
    )


def _generate(attack: Any, attacked: _Attacked, label: Tensor) -> Tensor:  # noqa: ANN401
    start = np.zeros(tuple(attacked.points.shape), dtype=np.float32)
    return torch.from_numpy(attack.generate(start, label.cpu().numpy())).to(attacked.points.device)


def _pgd(toolbox: Any, attacked: _Attacked, settings: AttackSettings, *, targeted: bool = False) -> Tensor:  # noqa: ANN401
    attack = toolbox[0].ProjectedGradientDescentPyTorch(
        _estimator(toolbox, attacked, settings),
        norm=2,
        eps=1.0,
        eps_step=2.5 / settings.steps,
        max_iter=settings.steps,
        targeted=targeted,
        num_random_init=settings.restarts,
        batch_size=len(attacked.points),
        verbose=False,
    )
    return _generate(attack, attacked, attacked.rival if targeted else attacked.label)


def _apgd(toolbox: Any, attacked: _Attacked, settings: AttackSettings, *, loss: str) -> Tensor:  # noqa: ANN401
    """Ascend from one random start after the other, each for the points that are still whole.

    The toolbox would go on from start to start itself, but with those points of a batch alone, and a row of the batch
    would no longer say which ball it is in.
    """
    u = torch.zeros_like(attacked.points)
    whole = torch.arange(len(u), device=u.device)
    for _ in range(settings.restarts):
        if not len(whole):
            break
        part = attacked.at(whole)
        estimator = _estimator(toolbox, part, settings)
        attack = toolbox[0].AutoProjectedGradientDescent(
            estimator,
            norm=2,
            eps=1.0,
            eps_step=0.5,
            max_iter=settings.steps,
            nb_random_init=1,
            batch_size=len(whole),
            loss_type=loss,
            verbose=False,
        )
        u[whole] = _generate(attack, part, part.label)
        with torch.no_grad():
            whole = whole[estimator.model(u[whole]).argmax(1) == part.label]
    return u


def _square(toolbox: Any, attacked: _Attacked, settings: AttackSettings) -> Tensor:  # noqa: ANN401
    """Change squares at random; the toolbox's needs images that are not higher than wide, and squares within them."""
    height, width = attacked.points.shape[-2:]
    if height > width:
        turned = replace(attacked, scores=lambda x: attacked.scores(x.mT), points=attacked.points.mT)
        return _square(toolbox, turned, settings).mT

    def all_broken(scores: np.ndarray, label: np.ndarray) -> np.ndarray:
        """The toolbox goes on with the points that are not: all of them, so that rows stay where they are, or none."""
        return np.full(len(scores), (scores.argmax(1) != label.argmax(1)).all())

    attack = toolbox[0].SquareAttack(
        _estimator(toolbox, attacked, settings),
        norm=2,
        eps=1.0,
        adv_criterion=all_broken,
        max_iter=settings.queries,
        p_init=min(0.8, (height - 2) ** 2 / (height * width)),  # the first square is smaller than the image
        nb_restarts=1,
        batch_size=len(attacked.points),
        verbose=False,
    )
    with np.errstate(divide="ignore", invalid="ignore"):  # it divides by the length of a change that has none yet
        return _generate(attack, attacked, attacked.label)


def _moved(points: Tensor, radius: Tensor, u: Tensor, clip: bool) -> Tensor:
    """Return x + r·u in float64 with the length of u brought to at most 1."""
    u = u.double().nan_to_num()
    length = torch.linalg.vector_norm(u.flatten(1), dim=1).view(-1, *[1] * (u.ndim - 1))
    # A little less than 1, so that adding and subtracting x again cannot lead out of the ball.
    u = u / (length * (1 + 1e-12)).clamp_min(1.0)
    moved = points.double() + radius.double().view_as(length) * u * (1 - 1e-12)
    return moved.clamp(0, 1) if clip else moved
