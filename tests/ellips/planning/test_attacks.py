"""What an audit sends through an encoder, counted at the encoder."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

pytest.importorskip("art", reason="the audit's attacks come with the extra `bench`")

from ellips.audit import AttackSettings, audit_series
from ellips.files import records_from_certificate
from ellips.input_certifiers import AuditTarget, ByConstant, InputCertifier, SmoothedDecision
from ellips.lipschitz import KnownConstant
from ellips.planning import Images, audit_work
from ellips.types import ImageMap
from tests.ellips.audit.test_audit import SIZE, classifier


def counted(target: AuditTarget, seen: list[int]) -> AuditTarget:
    """The target, whose every function says how many points it is given."""

    def counting(function: ImageMap, copies: int = 1) -> ImageMap:
        def called(points: torch.Tensor) -> torch.Tensor:
            seen.append(copies * len(points))
            return function(points)

        return called

    function = None if target.function is None else counting(target.function)
    return replace(target, scores=counting(target.scores), predict=counting(target.predict), function=function)


@pytest.mark.parametrize("steps", [3, 7])
@pytest.mark.parametrize("restarts", [1, 2])
def test_attacks_in_vain_take_what_was_said(steps: int, restarts: int) -> None:
    model, image, label = classifier()
    settings = AttackSettings(steps=steps, restarts=restarts, autoattack_points=2, queries=9)
    certifier = ByConstant(KnownConstant(2.0))
    certificate = model.certify(image, certifier)
    rows = records_from_certificate(
        certificate, torch.arange(SIZE), label, series=certifier.series("exact"), seconds=0.0
    )
    # Far inside the radius nothing succeeds, so that nothing ends early. The images are too small for Square.
    rows = [replace(row, radius=0.01 * row.radius) for row in rows]
    seen: list[int] = []
    audit_series(rows, image, counted(certifier.target(model.chain), seen), settings)
    said = audit_work(certifier, settings, Images(SIZE, 1, 3, 4, 4)).forward
    assert said - 2 * (3 * settings.queries + 3 + 1) <= sum(seen) <= said


def test_a_smoothed_decision_is_attacked_and_judged_by_noisy_copies() -> None:
    settings = AttackSettings(steps=10, restarts=1, autoattack_points=0)
    images = Images(20, 1, 3, 4, 4)

    def work(certifier: InputCertifier) -> int:
        return audit_work(certifier, settings, images).forward

    plain = 20 * (2 * 10 + 3 + 1)
    assert work(SmoothedDecision(num_samples=500)) == 16 * plain + 500 * 2 * 20
    assert work(SmoothedDecision(num_samples=5000)) == 16 * plain + 1000 * 2 * 20
