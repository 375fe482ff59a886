"""Attacks on classifiers whose true radii and constants are known."""

from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("art", reason="the audit's attacks come with the extra `bench`")

from ellips.audit import (
    AttackSettings,
    AuditedImage,
    Course,
    attack_balls,
    attack_batches,
    attacks,
    audit_batch,
    audit_series,
    latent_target,
    steepest_slopes,
    verdict,
)
from ellips.audit.attacks import attack_passes
from ellips.encoders import FrozenEncoder
from ellips.files import ImageRecord, records_from_certificate
from ellips.head import EllipsHead
from ellips.input_certifiers import AuditTarget, ByConstant, Chain, InputCertifier, SmoothedDecision, SmoothedEncoder
from ellips.lipschitz import JacobianNorm, KnownConstant
from ellips.pipeline import ImageClassifier
from ellips.types import Series

QUICK = AttackSettings(steps=15, restarts=1, autoattack_points=2, queries=20, batch_size=32)
SIZE = 24


def classifier(factor: float = 2.0) -> tuple[ImageClassifier, Tensor, Tensor]:
    """An encoder that multiplies by a factor: its Lipschitz constant is that factor, exactly."""

    class Multiply(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(factor))

        def forward(self, images: Tensor) -> Tensor:
            return self.weight * images.flatten(1)

    g = torch.Generator().manual_seed(0)
    label = torch.arange(SIZE) % 3
    image = 0.3 * torch.rand(SIZE, 1, 2, 2, generator=g) + 0.25 * label[:, None, None, None]
    encoder = FrozenEncoder(Multiply(), in_channels=1, input_size=2)
    head = EllipsHead(4, 3, latent_dim=None, shrinkage=0.2).fit(encoder(image), label)
    return ImageClassifier(encoder, head), image, label


def claims(
    certifier: InputCertifier, model: ImageClassifier, image: Tensor, label: Tensor
) -> tuple[list[ImageRecord], AuditTarget]:
    """What a certifier claims of each image, and the function that it names for the attack."""
    rows = records_from_certificate(
        model.certify(image, certifier), torch.arange(len(image)), label, series=certifier.series("exact"), seconds=0.0
    )
    return rows, certifier.target(model.chain)


def test_true_certificates_withstand_every_attack() -> None:
    model, image, label = classifier()
    rows, target = claims(ByConstant(KnownConstant(2.0)), model, image, label)
    found = audit_series(rows, image, target, QUICK)
    assert len(found) == SIZE
    assert {entry.series for entry in found} == {"input-exact-known-constant"}
    assert not any(entry.violated_by or entry.refuted for entry in found)
    assert all(1.99 < entry.slope <= 2.0 * (1 + 1e-9) for entry in found)
    outcome = verdict(found)
    assert (outcome["soundness"], outcome["passed"], outcome["violations"]) == ("deterministic", True, 0)


def test_a_constant_that_is_too_small_is_refuted_and_its_radii_are_broken() -> None:
    model, image, label = classifier()
    # Half the true constant: every radius is twice what it may be, and exact radii are reached.
    rows, target = claims(ByConstant(KnownConstant(1.0)), model, image, label)
    found = audit_series(rows, image, target, QUICK)
    assert all(entry.violated_by for entry in found)
    assert all(entry.distance <= entry.radius for entry in found)
    assert all(entry.refuted for entry in found)
    outcome = verdict(found)
    assert (outcome["passed"], outcome["constants_refuted"]) == (False, SIZE)
    assert outcome["largest_slope_over_constant"] == pytest.approx(2.0, rel=1e-6)


def test_latent_certificates_are_attacked_up_to_their_boundary() -> None:
    model, image, label = classifier()
    latents = model.latents(image)
    rows = records_from_certificate(
        model.certify(image), torch.arange(SIZE), label, series=Series("latent", "exact"), seconds=0.0
    )
    target = latent_target(model.head.ellips)
    found = audit_series(rows, latents, target, QUICK)
    assert not any(entry.violated_by for entry in found)
    assert found[0].constant is None
    # The exact radius is the distance to the boundary: a hundredth more and the attack gets through somewhere.
    larger = [replace(row, radius=1.01 * row.radius) for row in rows]
    broken = audit_series(larger, latents, target, QUICK)
    assert sum(entry.violated_by is not None for entry in broken) > SIZE // 2


def test_attacks_stay_in_the_ball_and_on_images_if_asked() -> None:
    model, image, label = classifier()
    radius = torch.linspace(0.1, 0.9, SIZE, dtype=torch.float64)
    for clip in (False, True):
        settings = replace(QUICK, clip=clip)
        for moved in attack_balls(model, image, radius, (label + 1) % 3, settings).values():
            distance = torch.linalg.vector_norm((moved - image.double()).flatten(1), dim=1)
            assert (distance <= radius).all()
            assert not clip or (0 <= moved.min() and moved.max() <= 1)


def test_what_is_broken_is_not_attacked_again_and_the_cheapest_attack_comes_first() -> None:
    model, image, label = classifier(0.5)
    radius = torch.linspace(0.4, 0.5, SIZE, dtype=torch.float64)  # the first has the smallest, and gets AutoAttack
    asked: dict[str, list[int]] = {}

    def all_but_the_first(name: str, rows: Tensor, moved: Tensor) -> Tensor:
        asked[name] = rows.tolist()
        return rows > 0

    counts: list[int] = []
    found = attack_balls(model, image, radius, (label + 1) % 3, QUICK, all_but_the_first, Course(counts.append))
    later = ["pgd at the rival", "autoattack, cross entropy", "autoattack, logit ratio"]
    assert asked == {"pgd": [*range(SIZE)]} | {name: [0] for name in later}
    assert list(found) == list(asked)
    changed = [(moved - image.double()).flatten(1).norm(dim=1) > 0 for moved in found.values()]
    assert bool(changed[0].sum() > 1), "the first attack tries every point"
    assert not torch.stack(changed[1:])[:, 1:].any()
    assert sum(counts) == attack_passes(SIZE, QUICK)
    nothing = attack_balls(model, image, radius, label, QUICK, lambda name, rows, moved: rows >= 0)
    assert list(nothing) == ["pgd"]


@pytest.mark.parametrize("size", [(7, 7), (9, 5), (5, 8)])
@pytest.mark.parametrize("kind", ["ascent", "square"])
def test_points_that_are_attacked_together_keep_to_their_own_balls(kind: str, size: tuple[int, int]) -> None:
    """The margins of a linear classifier tell the exact radii: beyond them points break, whoever else has broken."""
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(3, size[0] * size[1], generator=g).cumsum(1)
    points = torch.rand(12, 1, *size, generator=g)

    def scores(x: Tensor) -> Tensor:
        return x.flatten(1) @ weight.to(x).mT

    def margin(x: Tensor) -> Tensor:
        others = scores(x).scatter(1, label[:, None], -torch.inf)
        return scores(x).gather(1, label[:, None])[:, 0] - others.amax(1)

    label, beyond = scores(points).argmax(1), torch.arange(12) % 3 > 0
    lengths = torch.cdist(weight, weight)[label].scatter(1, label[:, None], torch.inf)
    exact = ((scores(points).gather(1, label[:, None]) - scores(points)) / lengths).where(lengths.isfinite(), torch.inf)
    radius = torch.where(beyond, 2.0, 0.9) * exact.amin(1)
    attacked = attacks._Attacked(scores, points, radius, 5 / margin(points), label, label, 3)
    attacks._seed(0)
    attack = attacks._square if kind == "square" else partial(attacks._apgd, loss="difference_logits_ratio")
    u = attack(attacks._toolbox(), attacked, replace(QUICK, restarts=3, queries=100))
    after = margin(attacks._moved(points, radius, u, clip=False).float())
    if kind == "ascent":
        assert ((after < 0) == beyond).all()
    else:  # a random search, of which each point keeps what leads it on
        assert (after <= margin(points) + 1e-4).all()
        assert (after < 0.9 * margin(points)).sum() > 6


def test_an_audit_whose_time_is_up_makes_the_first_attack_and_says_what_it_left_out() -> None:
    model, image, label = classifier(0.5)
    rows, target = claims(ByConstant(KnownConstant(0.2)), model, image, label)  # radii that are too large
    rows = [row for row in rows if row.radius > 0]
    points = image[[row.index for row in rows]]
    (batch,) = attack_batches(rows, QUICK)
    found = audit_batch(batch, points, target, Course(end=float("-inf")))
    assert {entry.violated_by for entry in found} <= {"pgd", None}
    assert [entry.cut_short for entry in found] == [entry.violated_by is None for entry in found]
    assert all(entry.slope is None for entry in found)
    assert verdict(found)["cut_short"] == sum(entry.cut_short for entry in found)
    whole = audit_batch(batch, points, target)
    assert not any(entry.cut_short for entry in whole)
    assert all(entry.slope is not None for entry in whole)


def test_a_smoothed_encoder_is_judged_by_its_own_predictions() -> None:
    model, image, label = classifier(0.5)
    certifier = SmoothedEncoder(sigma=0.05, num_samples=4000, norm_bound=2.0)
    rows, target = claims(certifier, model, image[:4], label[:4])
    rows = [row for row in rows if row.prediction >= 0]
    assert target.function is None
    assert target.alpha == certifier.alpha
    assert rows, "nothing was certified"
    found = audit_series(rows, image[[row.index for row in rows]], target, QUICK)
    outcome = verdict(found, target.alpha)
    assert (outcome["soundness"], outcome["passed"]) == ("probabilistic", True)


@pytest.mark.parametrize("stopping", ["early", "fixed"])
def test_a_smoothed_decision_withstands_and_radii_that_are_too_large_do_not(stopping: str) -> None:
    model, image, label = classifier(0.5)
    certifier = SmoothedDecision(sigma=0.05, num_samples=500, stopping=stopping)  # type: ignore[arg-type]
    rows, target = claims(certifier, model, image[:6], label[:6])
    rows = [row for row in rows if row.radius > 0]
    assert len(rows) > 3
    points = image[[row.index for row in rows]]
    outcome = verdict(audit_series(rows, points, target, QUICK), target.alpha)
    assert (outcome["soundness"], outcome["passed"]) == ("probabilistic", True)
    too_large = [replace(row, radius=4 * row.radius) for row in rows]
    broken = verdict(audit_series(too_large, points, target, QUICK), target.alpha)
    assert broken["violations"] > 0
    assert not broken["passed"]


def test_what_is_attacked_is_what_the_certifier_names_and_nothing_else() -> None:
    """A certifier of a classifier of its own: its claims are broken there, though the chain itself withstands."""

    @dataclass(frozen=True)
    class Own(ByConstant):
        def target(self, chain: Chain) -> AuditTarget:
            named = super().target(chain)
            return replace(named, predict=lambda points: (named.predict(points) + 1) % 3)

    model, image, label = classifier()
    rows, target = claims(Own(KnownConstant(2.0)), model, image, label)
    assert all(entry.violated_by for entry in audit_series(rows, image, target, QUICK))


def test_the_search_for_slopes_finds_the_steepest_direction() -> None:
    g = torch.Generator().manual_seed(1)
    matrix = torch.randn(3, 4, generator=g, dtype=torch.float64)
    images = torch.rand(5, 1, 2, 2, generator=g, dtype=torch.float64)
    found = steepest_slopes(lambda x: x.flatten(1) @ matrix.mT, images, torch.full((5,), 0.3), steps=5)
    torch.testing.assert_close(found, torch.linalg.matrix_norm(matrix, 2).expand(5))


def test_the_search_for_slopes_leaves_the_image_where_it_is_steeper_elsewhere() -> None:
    # The slope of |x|² is 2‖x‖: within the ball it is largest at its rim.
    images = torch.full((3, 1, 2, 2), 0.5, dtype=torch.float64)
    found = steepest_slopes(
        lambda x: x.flatten(1).square().sum(1, keepdim=True), images, torch.full((3,), 0.2, dtype=torch.float64)
    )
    assert (found > 2 * 1.19).all()
    assert (found <= 2 * 1.2 * (1 + 1e-9)).all()


def test_verdicts_depend_on_what_was_promised() -> None:
    broken = AuditedImage("s", "estimated", 0, 1.0, "pgd", 0.5, True)
    kept = AuditedImage("s", "estimated", 1, 1.0)
    assert verdict([broken, kept])["passed"] is None
    assert verdict([replace(broken, soundness="exact")])["passed"] is False
    few = [replace(broken, soundness="probabilistic"), *[replace(kept, soundness="probabilistic")] * 9]
    assert verdict(few, alpha=0.1)["passed"] is True
    assert verdict(few, alpha=0.05)["passed"] is False
    with pytest.raises(ValueError, match="alpha"):
        verdict(few)


def test_images_without_a_radius_are_left_out() -> None:
    model, image, label = classifier()
    rows, target = claims(ByConstant(JacobianNorm()), model, image, label)
    assert audit_series([replace(row, radius=0.0) for row in rows], image, target, QUICK) == []


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="`steps`"):
        AttackSettings(steps=0)
    with pytest.raises(ValueError, match="autoattack_points"):
        AttackSettings(autoattack_points=-1)
