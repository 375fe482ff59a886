"""What is claimed for each image, what an attack makes of it, and what that says about the kind of claim."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ellips.audit.attacks import AttackSettings, attack_balls, attack_passes
from ellips.audit.course import Course
from ellips.audit.slopes import slope_passes, steepest_slopes
from ellips.files import ImageRecord
from ellips.gaussians import Mixture
from ellips.input_certifiers import AuditTarget
from ellips.input_certifiers.base import Predictor, predict
from ellips.types import ImageMap, Soundness

# Slopes and constants are both rounded; only what is steeper by more than this refutes a constant.
_SLOPE_TOLERANCE = 1e-6


@dataclass(frozen=True)
class AuditedImage:
    """What the audit found at one image of one series.

    Attributes:
        series: Name of the series.
        soundness: What was claimed.
        index: Position of the image.
        radius: The claimed radius.
        violated_by: The attack that changed the prediction inside the radius, or None.
        distance: ℓ2 distance of that point, or None.
        valid_image: Whether all its values lie in [0, 1], or None.
        constant: The claimed Lipschitz constant, or None where its claim was not attacked.
        slope: The steepest slope found in the ball that the constant covers, or None.
        cut_short: Whether the time was up before all attacks on it were made.
    """

    series: str
    soundness: Soundness
    index: int
    radius: float
    violated_by: str | None = None
    distance: float | None = None
    valid_image: bool | None = None
    constant: float | None = None
    slope: float | None = None
    cut_short: bool = False

    @property
    def refuted(self) -> bool:
        """Whether a slope steeper than the claimed constant was found."""
        if self.slope is None or self.constant is None:
            return False
        return self.slope > self.constant * (1 + _SLOPE_TOLERANCE)


def latent_target(mixture: Mixture) -> AuditTarget:
    """Return what a series in latent space claims: the points are latents, the classifier is the mixture."""
    return AuditTarget(scores=mixture, predict=lambda z: predict(mixture, z))


@dataclass(frozen=True)
class AttackBatch:
    """Claims that are attacked together. What is found depends on them alone, not on who else is attacked, or where.

    Attributes:
        records: Of one series, each with a positive radius.
        radius: Finite radii to attack, one of each record.
        settings: How hard to attack; AutoAttack gets those of these claims that are among the series' hardest.
    """

    records: tuple[ImageRecord, ...]
    radius: tuple[float, ...]
    settings: AttackSettings


def attack_batches(records: Sequence[ImageRecord], settings: AttackSettings) -> list[AttackBatch]:
    """Cut the claims of a series into batches.

    Args:
        records: Records of the series, of any of its images.
        settings: How hard to attack.

    Returns:
        Every record whose radius is positive, in order, ``settings.batch_size`` in a batch. An infinite radius is
        attacked at 10 times the largest finite one, or 10.
    """
    chosen = [record for record in records if record.radius > 0]
    largest = max((record.radius for record in chosen if math.isfinite(record.radius)), default=1.0)
    radius = [record.radius if math.isfinite(record.radius) else 10 * largest for record in chosen]
    hardest = set(sorted(range(len(chosen)), key=radius.__getitem__)[: settings.autoattack_points])
    batches = []
    for start in range(0, len(chosen), settings.batch_size):
        rows = range(start, min(start + settings.batch_size, len(chosen)))
        own = replace(settings, autoattack_points=len(hardest.intersection(rows)))
        part = slice(start, rows.stop)
        batches.append(AttackBatch(tuple(chosen[part]), tuple(radius[part]), own))
    return batches


def audit_passes(batch: AttackBatch, target: AuditTarget) -> int:
    """Return about how many passes of single points :func:`audit_batch` takes at most, and tells of."""
    return attack_passes(len(batch.records), batch.settings) + _slope_passes(batch, target)


def _slope_passes(batch: AttackBatch, target: AuditTarget) -> int:
    claimed = len(_with_constants(batch.records)) if target.function is not None else 0
    return claimed * slope_passes(batch.settings.steps, batch.settings.restarts)


def audit_batch(
    batch: AttackBatch, points: Tensor, target: AuditTarget, course: Course | None = None
) -> list[AuditedImage]:
    """Attack some claims of a series together, each until it breaks.

    Args:
        batch: The claims.
        points: Shape ``(N, ...)``, the images of its records (the latents, for a series in latent space).
        target: What was claimed, and of which function.
        course: How far it may go on; None: to the end.

    Returns:
        One entry per record.
    """
    course = course or Course()
    records, settings = batch.records, batch.settings
    radius = torch.tensor(batch.radius, dtype=torch.float64, device=points.device)
    prediction = torch.tensor([record.prediction for record in records], device=points.device)
    rival = torch.tensor([max(record.rival, 0) for record in records], device=points.device)
    violations = _Violations(points.double(), radius, prediction, target.predict)
    attack_balls(target.scores, points.float(), radius, rival, settings, violations.add, course)
    short, slopes = course.over, dict[int, dict[str, Any]]()
    with course.stage(_slope_passes(batch, target)) as counted:
        if target.function is not None and not short:
            slopes = _slopes(records, points.double(), counted(target.function), settings)
    return [
        AuditedImage(
            record.series.name,
            record.soundness,
            record.index,
            record.radius,
            **violations.found[i],
            **slopes.get(i, {}),
            cut_short=short and not violations.found[i],
        )
        for i, record in enumerate(records)
    ]


def audit_series(
    records: Sequence[ImageRecord],
    points: Tensor,
    target: AuditTarget,
    settings: AttackSettings,
    course: Course | None = None,
) -> list[AuditedImage]:
    """Attack the claims of one series.

    Args:
        records: Records of the series, of any of its images.
        points: Shape ``(N, ...)``, the images of these records (the latents, for a series in latent space).
        target: What was claimed, and of which function.
        settings: How hard to attack.
        course: How far it may go on; None: to the end.

    Returns:
        One entry per record whose radius is positive; see :func:`attack_batches`.
    """
    rows = torch.tensor([i for i, record in enumerate(records) if record.radius > 0], dtype=torch.int64)
    found: list[AuditedImage] = []
    for batch, part in zip(attack_batches(records, settings), rows.split(settings.batch_size), strict=False):
        found += audit_batch(batch, points[part.to(points.device)], target, course)
    return found


class _Violations:
    """For each point, the first of the changed points that another class was predicted for.

    Args:
        points: Shape ``(N, ...)``, float64.
        radius: Shape ``(N,)``.
        prediction: Shape ``(N,)``, what was claimed.
        judge: Gives the prediction at changed points; −1 is no violation.
    """

    def __init__(self, points: Tensor, radius: Tensor, prediction: Tensor, judge: Predictor) -> None:
        self.points, self.radius, self.prediction, self.judge = points, radius, prediction, judge
        self.found: list[dict[str, Any]] = [{} for _ in points]

    def add(self, name: str, rows: Tensor, moved: Tensor) -> Tensor:
        """Judge what an attack made of some points, and return which of them are broken, shape of ``rows``."""
        # The attack works in float32; what it means to be inside the radius is decided here.
        distance = torch.linalg.vector_norm((moved - self.points[rows]).flatten(1), dim=1)
        judged = self.judge(moved)
        hit: Tensor = (judged != self.prediction[rows]) & (judged >= 0) & (distance <= self.radius[rows])
        for i in hit.nonzero().flatten().tolist():
            row, valid = int(rows[i]), bool(((moved[i] >= 0) & (moved[i] <= 1)).all())
            self.found[row] = {"violated_by": name, "distance": float(distance[i]), "valid_image": valid}
        return hit


def _with_constants(records: Sequence[ImageRecord]) -> list[int]:
    return [i for i, r in enumerate(records) if r.lipschitz is not None and r.ball_radius is not None]


def _slopes(
    records: Sequence[ImageRecord], points: Tensor, function: ImageMap, settings: AttackSettings
) -> dict[int, dict[str, Any]]:
    """For each record with a constant, the steepest slope in the ball that it covers."""
    rows = _with_constants(records)
    if not rows:
        return {}
    # A constant that is claimed everywhere is attacked where it matters: twice as far as the certificate reaches.
    reach = [min(records[i].ball_radius or 0.0, max(2 * records[i].radius, 1e-3)) for i in rows]
    found = steepest_slopes(
        function,
        points[rows],
        torch.tensor(reach),
        steps=settings.steps,
        restarts=settings.restarts,
        seed=settings.seed,
    )
    return {
        i: {"constant": records[i].lipschitz, "slope": slope} for i, slope in zip(rows, found.tolist(), strict=True)
    }


def verdict(images: Sequence[AuditedImage], alpha: float | None = None) -> dict[str, Any]:
    """Sum up the audit of one series.

    Args:
        images: What was found, all of one series.
        alpha: For a ``probabilistic`` series, the share of certificates that are allowed to fail.

    Returns:
        Counts, the largest ratio of a slope to its constant, and ``passed``: whether the kind of claim stands. For
        ``exact`` and ``deterministic`` nothing may be found; for ``probabilistic`` the share of violations may be at
        most alpha; for ``estimated``, which promises nothing, it is None.

    Raises:
        ValueError: If a probabilistic series comes without alpha.
    """
    soundness = images[0].soundness
    violations = sum(image.violated_by is not None for image in images)
    refuted = sum(image.refuted for image in images)
    ratios = [image.slope / image.constant for image in images if image.slope is not None and image.constant]
    match soundness:
        case "exact" | "deterministic":
            passed: bool | None = violations == 0 and refuted == 0
        case "probabilistic":
            if alpha is None:
                raise ValueError("Expected `alpha` for a probabilistic series but got none.")
            passed = violations <= alpha * len(images)
        case _:
            passed = None
    return {
        "soundness": soundness,
        "attacked": len(images),
        "cut_short": sum(image.cut_short for image in images),
        "violations": violations,
        "violations_valid_images": sum(bool(image.valid_image) for image in images),
        "constants_attacked": len(ratios),
        "constants_refuted": refuted,
        "largest_slope_over_constant": max(ratios, default=None),
        "alpha": alpha if soundness == "probabilistic" else None,
        "passed": passed,
    }
