"""ℓ2 attacks of the Adversarial Robustness Toolbox, each point inside its own ball.

The toolbox takes one radius for all points. Here every point x with radius r is attacked as x + r·u with u in the unit
ball, so that one radius, 1, fits all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

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
            Square) attacks besides PGD; it goes point by point and is slow. Those with the smallest radius come first.
        queries: Queries of the Square attack.
        clip: Stay within [0, 1]. Off by default: a certificate holds in the whole ball.
        batch_size: Points that PGD attacks at once, at most 128.
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


@dataclass(frozen=True)
class Course:
    """How an audit goes on, and until when; what is found may depend on it, if it ends before all attacks were made.

    Attributes:
        advance: Called with the number of attacks that were made, or need not be made any more.
        end: Reading of :func:`time.monotonic` after which nothing but the first, cheapest attack on a point is begun.
    """

    advance: Callable[[int], object] = lambda count: None
    end: float = math.inf

    @property
    def over(self) -> bool:
        """Whether the time is up."""
        return monotonic() > self.end


def number_of_attacks(points: int, settings: AttackSettings) -> int:
    """Return how many attacks some points get at most: two each, and AutoAttack for some of them."""
    return 2 * points + min(points, settings.autoattack_points)


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


def attack_balls(
    scores: ImageMap,
    points: Tensor,
    radius: Tensor,
    rival: Tensor,
    settings: AttackSettings,
    broken: Callable[[str, Tensor], Tensor] | None = None,
    course: Course | None = None,
) -> dict[str, Tensor]:
    """Look for points inside balls at which the prediction is another one, the cheapest attacks first.

    Args:
        scores: Maps points to scores ``(N, K)``, differentiable.
        points: Shape ``(N, ...)``, float32.
        radius: Shape ``(N,)``, finite and positive.
        rival: Shape ``(N,)``, the class to aim at besides the untargeted attacks.
        settings: How hard to attack.
        broken: Called after each attack with its name and the changed points; returns which of them, shape ``(N,)``,
            are broken and need not be attacked any more. None: every point gets every attack.
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
        top = scores(points).double().topk(2, dim=1).values
    scale = (_MARGIN / (top[:, 0] - top[:, 1]).clamp_min(1e-12)).to(points.device)
    whole = torch.ones(len(points), dtype=torch.bool, device=points.device)
    found: dict[str, Tensor] = {}

    def judge(name: str, rows: Tensor, moves: list[Tensor]) -> None:
        u = torch.zeros_like(points)
        u[rows] = torch.cat(moves).to(u)
        found[name] = _moved(points, radius, u, settings.clip)
        if broken is not None:
            whole.logical_and_(~broken(name, found[name]))

    for name, targeted in (("pgd", False), ("pgd at the rival", True)):
        rows = whole.nonzero().flatten()
        if len(rows) and not (targeted and course.over):
            moves = [
                _pgd(toolbox, scores, points[i], radius[i], scale[i], rival[i] if targeted else None, settings)
                for i in rows.split(settings.batch_size)
            ]
            judge(name, rows, moves)
        course.advance(len(points))
    tried, moves = list[int](), list[Tensor]()
    for i in radius.argsort()[: settings.autoattack_points].tolist():
        if whole[i] and not course.over:
            moves.append(_autoattack(toolbox, scores, points[[i]], radius[[i]], scale[[i]], settings))
            tried.append(i)
        course.advance(1)
    if tried:
        judge("autoattack", torch.tensor(tried, device=points.device), moves)
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
    np.random.seed(seed)  # noqa: NPY002 - the toolbox draws from NumPy's global generator
    torch.manual_seed(seed)


def _estimator(toolbox: Any, model: _UnitBalls) -> Any:  # noqa: ANN401
    with torch.no_grad():
        classes = model(torch.zeros_like(model.points)).shape[1]
    return toolbox[1].PyTorchClassifier(
        model,
        loss=nn.CrossEntropyLoss(),
        input_shape=tuple(model.points.shape[1:]),
        nb_classes=classes,
        clip_values=(-1.0, 1.0),  # no component of a vector in the unit ball is larger
        device_type="gpu" if model.points.is_cuda else "cpu",
    )


def _pgd(
    toolbox: Any,  # noqa: ANN401
    scores: ImageMap,
    points: Tensor,
    radius: Tensor,
    scale: Tensor,
    target: Tensor | None,
    settings: AttackSettings,
) -> Tensor:
    model = _UnitBalls(scores, points, radius, scale, settings.clip)
    attack = toolbox[0].ProjectedGradientDescentPyTorch(
        _estimator(toolbox, model),
        norm=2,
        eps=1.0,
        eps_step=2.5 / settings.steps,
        max_iter=settings.steps,
        targeted=target is not None,
        num_random_init=settings.restarts,
        batch_size=len(points),
        verbose=False,
    )
    if target is None:
        with torch.no_grad():
            target = scores(points).argmax(1)
    start = np.zeros(tuple(points.shape), dtype=np.float32)
    return torch.from_numpy(attack.generate(start, target.cpu().numpy())).to(points.device)


def _autoattack(
    toolbox: Any,  # noqa: ANN401
    scores: ImageMap,
    point: Tensor,
    radius: Tensor,
    scale: Tensor,
    settings: AttackSettings,
) -> Tensor:
    estimator = _estimator(toolbox, _UnitBalls(scores, point, radius, scale, settings.clip))
    common: dict[str, Any] = {"norm": 2, "eps": 1.0}
    losses = ["cross_entropy"] + (["difference_logits_ratio"] if estimator.nb_classes > 2 else [])
    attacks = [
        toolbox[0].AutoProjectedGradientDescent(
            estimator,
            eps_step=0.5,
            max_iter=settings.steps,
            nb_random_init=settings.restarts,
            batch_size=1,
            loss_type=loss,
            verbose=False,
            **common,
        )
        for loss in losses
    ]
    if point.ndim == 4 and min(point.shape[-2:]) >= 5:  # it changes squares of several pixels
        square = toolbox[0].SquareAttack(estimator, max_iter=settings.queries, nb_restarts=1, verbose=False, **common)
        attacks.append(square)
    attack = toolbox[0].AutoAttack(estimator, eps_step=0.5, attacks=attacks, batch_size=1, **common)
    start = np.zeros(tuple(point.shape), dtype=np.float32)
    with torch.no_grad():
        label = scores(point).argmax(1).cpu().numpy()
    return torch.from_numpy(attack.generate(start, label)).to(point.device)


def _moved(points: Tensor, radius: Tensor, u: Tensor, clip: bool) -> Tensor:
    """Return x + r·u in float64 with the length of u brought to at most 1."""
    u = u.double().nan_to_num()
    length = torch.linalg.vector_norm(u.flatten(1), dim=1).view(-1, *[1] * (u.ndim - 1))
    # A little less than 1, so that adding and subtracting x again cannot lead out of the ball.
    u = u / (length * (1 + 1e-12)).clamp_min(1.0)
    moved = points.double() + radius.double().view_as(length) * u * (1 - 1e-12)
    return moved.clamp(0, 1) if clip else moved
