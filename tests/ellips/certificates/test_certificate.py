from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import pytest
import torch

from ellips.certificates import Certificate, round_down
from ellips.types import LipschitzBound


def _certificate(radius: list[float]) -> Certificate:
    n = len(radius)
    zeros, ones = torch.zeros(n, dtype=torch.int64), torch.ones(n, dtype=torch.int64)
    return Certificate(zeros, torch.tensor(radius).double(), ones, torch.ones(n), torch.ones(n), "exact")


def _bound(constant: list[float], ball: list[float], soundness: str = "estimated") -> LipschitzBound:
    return LipschitzBound(torch.tensor(constant), torch.tensor(ball), soundness, "test", {})  # type: ignore[arg-type]


def test_the_input_radius_is_the_smaller_of_ratio_and_ball() -> None:
    certificate = _certificate([1.0, 1.0, math.inf, math.inf, 0.0, 1.0, math.inf, 0.3])
    bound = _bound([2.0, 0.5, 3.0, 1.0, 0.0, math.inf, math.inf, 1.0], [9.0, 0.7, 0.4, math.inf, 5.0, 1.0, 1.0, 8.0])
    moved = certificate.to_input(bound)
    expected = torch.tensor([0.5, 0.7, 0.4, math.inf, 0.0, 0.0, 0.0, 0.3]).double()
    torch.testing.assert_close(moved.radius, expected, rtol=1e-6, atol=0)
    assert (moved.radius * bound.constant.double() <= certificate.radius)[:2].all()
    assert (moved.space, moved.soundness, moved.source) == ("input", "estimated", "test")
    assert torch.equal(moved.latent_radius, certificate.radius)  # type: ignore[arg-type]


def test_a_constant_of_zero_leaves_only_the_ball() -> None:
    assert float(_certificate([1.0]).to_input(_bound([0.0], [0.3])).radius) == pytest.approx(0.3)


def test_what_is_divided_or_taken_off_never_leaves_more_than_there_was() -> None:
    """In rational numbers: radius · L ≤ R, and what is left is at most R − uncertainty."""
    draw = torch.Generator().manual_seed(0)
    latent, constant, lost = (torch.rand(3000, generator=draw, dtype=torch.float64) for _ in range(3))
    n = len(latent)
    zeros = torch.zeros(n, dtype=torch.int64)
    certificate = Certificate(zeros, latent, zeros + 1, latent, latent, "exact")
    bound = LipschitzBound(constant, torch.full((n,), math.inf).double(), "deterministic", "test", {})
    moved, less = certificate.to_input(bound).radius, certificate.less(lost).radius
    for radius, slope, whole, off, left in zip(
        *(x.tolist() for x in (moved, constant, latent, lost, less)), strict=True
    ):
        assert Fraction(radius) * Fraction(slope) <= Fraction(whole)
        assert radius * slope >= whole * (1 - 1e-14)
        assert left == 0 if whole <= off else Fraction(left) <= Fraction(whole) - Fraction(off)
        assert left >= (whole - off) - 1e-14 * whole


@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_neither_narrow_nor_subnormal_numbers_leave_more_than_there_was(kind: torch.dtype) -> None:
    """Balls were rounded to the type of the radii, and the last unit of a subnormal number is no small part of it."""
    draw, tiny = torch.Generator().manual_seed(2), torch.finfo(kind).tiny
    latent = torch.cat([torch.rand(200, generator=draw), tiny * torch.rand(200, generator=draw, dtype=torch.float64)])
    latent, (lost, ball) = latent.to(kind), torch.rand(2, len(latent), generator=draw, dtype=torch.float64)
    certificate = Certificate(*([torch.zeros(len(latent)).long(), latent] * 2), latent, "exact")
    for slope, off in ((1.0, 1e-9 * lost), (1e40, tiny * lost)):
        constant = torch.full_like(ball, slope)
        moved = certificate.to_input(LipschitzBound(constant, ball, "deterministic", "test", {})).radius.tolist()
        left = certificate.less(off).radius.tolist()
        rows = zip(moved, left, *(x.tolist() for x in (constant, ball, latent, off)), strict=True)
        for radius, rest, steep, limit, whole, error in rows:
            assert radius <= limit
            assert Fraction(radius) * Fraction(steep) <= Fraction(whole)
            assert rest == 0 or Fraction(rest) <= Fraction(whole) - Fraction(error)


def test_a_ball_is_never_left() -> None:
    draw = torch.Generator().manual_seed(1)
    latent, ball = (torch.rand(100, generator=draw, dtype=torch.float64) for _ in range(2))
    moved = _certificate(latent.tolist()).to_input(_bound([1.0] * 100, ball.tolist()))
    assert (moved.radius <= ball.float().double()).all()
    assert (moved.radius == moved.ball_radius).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_narrower_types_round_no_constant_to_zero_and_no_ball_up(dtype: torch.dtype) -> None:
    one = torch.ones(2, dtype=dtype)
    classes = torch.zeros(2, dtype=torch.int64)
    bound = LipschitzBound(
        torch.tensor([1e-50, 1e-3], dtype=torch.float64),
        torch.tensor([math.inf, 0.1], dtype=torch.float64),
        "deterministic",
        "test",
        {},
    )
    moved = Certificate(classes, one, classes + 1, one, one, "exact").to_input(bound)
    assert float(moved.radius[0]) == pytest.approx(1e50)
    assert Fraction(float(moved.radius[0])) * Fraction(1e-50) <= 1
    assert float(moved.radius[1]) == 0.1


def test_of_the_smallest_numbers_nothing_is_left_by_rounding_down() -> None:
    """A third of the last place is rounded to it, and no unit below it is left to take off."""
    smallest = 2.0**-1074
    moved = _certificate([smallest]).to_input(_bound([1.5], [math.inf]))
    assert float(moved.radius[0]) == 0
    assert round_down(torch.tensor([2.0**-1022]).double()) < 2.0**-1022


def test_the_weaker_claim_wins() -> None:
    for soundness in ("exact", "deterministic", "probabilistic", "estimated"):
        assert _certificate([1.0]).to_input(_bound([1.0], [1.0], soundness)).soundness == soundness


def test_a_radius_on_the_image_is_not_called_exact_by_default() -> None:
    """Who forgets `soundness` in a certifier of his own does not get the strongest word."""
    latent, one = _certificate([1.0]), torch.ones(1)
    for constants in ({}, {"lipschitz": 0.5 * one}, {"lipschitz": 2 * one}):
        with pytest.raises(ValueError, match="`soundness` to say what a radius on the image may claim"):
            replace(latent, space="input", **constants)
        assert len(replace(latent, space="input", soundness="estimated", **constants)) == 1
    with pytest.raises(ValueError, match="`soundness`"):
        latent.to_input(_bound([1e-6], [1.0], "exact"))
    with pytest.raises(ValueError, match="`soundness`"):  # of one image among others, too
        _certificate([1.0, 1.0]).to_input(_bound([1.0, 1e-6], [1.0, 1.0], "exact"))
    assert replace(latent, space="input", lipschitz=one).soundness == "exact"


def test_misuse_is_named() -> None:
    with pytest.raises(ValueError, match="`radius` to be at least 0 but got nan"):
        _certificate([math.nan])
    with pytest.raises(ValueError, match="in input space already"):
        _certificate([1.0]).to_input(_bound([1.0], [1.0])).to_input(_bound([1.0], [1.0]))
    with pytest.raises(ValueError, match="each of 2 points but got 1"):
        _certificate([1.0, 2.0]).to_input(_bound([1.0], [1.0]))
    with pytest.raises(ValueError, match="one kind"):
        Certificate.cat([_certificate([1.0]), _certificate([1.0]).to_input(_bound([1.0], [1.0]))])
    with pytest.raises(ValueError, match="at least one"):
        Certificate.cat([])
    marked = replace(_certificate([1.0]), diagnostics={"latent_error": torch.zeros(1)})
    with pytest.raises(ValueError, match="same tensors and diagnostics"):
        Certificate.cat([_certificate([1.0]), marked])
    with pytest.raises(ValueError, match="`uncertainty` to be at least 0 but got -1"):
        _certificate([1.0]).less(torch.tensor([-1.0]))
    with pytest.raises(ValueError, match="`radius` to have shape"):  # a diagnostic of that name does not hide it
        replace(_certificate([1.0, 2.0]), radius=torch.ones(1), diagnostics={"radius": torch.ones(2)})
    with pytest.raises(ValueError, match="`rival` to have shape"):
        Certificate(torch.zeros(2), torch.zeros(2), torch.zeros(3), torch.zeros(2), torch.zeros(2), "exact")


def test_parts_join_to_the_whole() -> None:
    whole = _certificate([1.0, 2.0, 3.0])
    joined = Certificate.cat([whole[:1], whole[1:]])
    assert torch.equal(joined.radius, whole.radius)
    assert len(joined) == 3
    assert torch.equal(Certificate.cat([whole]).radius, whole.radius)
