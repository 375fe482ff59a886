"""Covariances of low rank under attack: what is stored is what is proven, whatever it is, or nothing is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from mpmath import mpf
from torch import Tensor

from ellips import Ellips
from ellips.certificates import METHODS, check, confirm
from ellips.certificates.verify import Kernel
from ellips.certificates.verify_low_rank import LowRankFarRivals, LowRankKernel
from tests.soundness.generators import Draw, low_rank, low_rank_ties
from tests.soundness.oracle import Balls, exact_winner, nearest_distance, true_distance, working_precision

ALL = torch.float64


def small(draw: Draw, rank: int | None = None, dim: int | None = None) -> tuple[Ellips, Tensor]:
    classes, dim = draw.integer(2, 4), dim or draw.integer(1, 5)
    rank = draw.integer(0, dim) if rank is None else rank
    root = draw.normal(dim, dim)
    covariance = root @ root.T / dim + 0.2 * torch.eye(dim, dtype=ALL)
    widths = torch.exp(draw.normal(classes, rank)) - 1
    directions = draw.rotations(classes, dim)[:, :rank]
    ellips = Ellips.from_low_rank(draw.normal(classes, dim), covariance, directions, widths, draw.priors(classes))
    return ellips, ellips.sample(3, torch.Generator().manual_seed(draw.integer(0, 10**6)))[0]


def skewed(draw: Draw) -> tuple[Ellips, Tensor]:
    """Directions that are neither orthogonal nor of unit length."""
    ellips, z = small(draw, rank=draw.integer(1, 3), dim=draw.integer(3, 5))
    ellips.directions += 0.25 * draw.normal(*ellips.directions.shape) / ellips.dim**0.5
    return ellips, z


def twins(draw: Draw) -> tuple[Ellips, Tensor]:
    """The same direction twice."""
    ellips, z = small(draw, rank=2, dim=3)
    ellips.directions[:, 1] = ellips.directions[:, 0]
    return ellips, z


def one_direction(draw: Draw) -> tuple[Ellips, Tensor]:
    """The same direction six times over, turned and not: ‖Q‖ is √6, all errors of a pull go one way."""
    ellips, z = small(draw, rank=6, dim=6)
    ellips.directions.copy_(ellips.directions[:, :1] * draw.normal(6, 1).sign())
    return ellips, z


def other_scales(draw: Draw) -> tuple[Ellips, Tensor]:
    """D next to −1 and enormous: scales from 1e-7 to 1e7, of either sign."""
    ellips, z = small(draw, rank=draw.integer(1, 3), dim=3)
    ellips.scales.copy_((16 * draw.normal(*ellips.scales.shape).sin()).exp() * draw.normal(*ellips.scales.shape).sign())
    return ellips, z


def of_any_size(draw: Draw) -> tuple[Ellips, Tensor]:
    """Scale 1e±12."""
    ellips, z = small(draw)
    scale = 10.0 ** draw.uniform(-12, 12)
    ellips.means.mul_(scale)
    ellips.precision_factors.div_(scale)
    return ellips, z * scale


def tampered_triangle(draw: Draw) -> tuple[Ellips, Tensor]:
    """Numbers above the diagonal of the common factor, which nobody is to read."""
    ellips, z = small(draw, dim=3)
    ellips.precision_factors += draw.normal(3, 3).triu(1)
    return ellips, z


STORED: dict[str, Callable[[Draw], tuple[Ellips, Tensor]]] = {
    f.__name__: f for f in (small, skewed, twins, one_direction, other_scales, of_any_size, tampered_triangle)
}


@pytest.mark.parametrize("name", STORED)
def test_claims_hold_for_what_is_stored(name: str) -> None:
    """No confirmed radius is above the distance to 120 digits, and every one is proven on its own."""
    compared = 0
    for seed in range(10):
        ellips, z = STORED[name](Draw(seed))
        for i in range(len(z)):
            truth: dict[int, mpf] = {}
            for method in METHODS:
                row = z[i : i + 1]
                certificate = confirm(ellips, row, ellips.certify(row, method))
                assert check(ellips, row, certificate).all()
                first = int(certificate.prediction)
                if first not in truth:
                    truth[first] = nearest_distance(ellips, z[i], first)
                assert mpf(float(certificate.radius)) <= truth[first]
                compared += bool(certificate.radius > 0)
    assert compared > 45


@pytest.mark.parametrize("name", STORED)
def test_what_the_solver_says_is_true_before_any_kernel_has_seen_it(name: str) -> None:
    for seed in range(200, 206):
        ellips, z = STORED[name](Draw(seed))
        exact = ellips.certify(z)
        for i in range(len(z)):
            truth = nearest_distance(ellips, z[i], int(exact.prediction[i]))
            for method in METHODS:
                assert mpf(float(ellips.certify(z[i : i + 1], method).radius)) <= truth


@pytest.mark.parametrize("name", ["small", "other_scales", "of_any_size"])
def test_exact_certificates_lose_next_to_nothing(name: str) -> None:
    for seed in range(10):
        ellips, z = STORED[name](Draw(100 + seed))
        certificate = ellips.certify(z)
        for i in range(len(z)):
            truth = nearest_distance(ellips, z[i], int(certificate.prediction[i]))
            if truth != mpf("inf") and truth > 0.02 * float(ellips.scale):
                assert float(certificate.radius[i]) > (1 - (1e-5 if name == "other_scales" else 1e-8)) * float(truth)


@pytest.mark.parametrize("name", STORED)
def test_the_last_radius_that_is_proven_is_true(name: str) -> None:
    """Bisection for the largest radius that passes at the named rival: ball arithmetic must prove that one, too."""
    proven = 0
    for seed in range(15):
        ellips, z = STORED[name](Draw(seed))
        certificate, balls = ellips.certify(z), Balls(ellips, 400)
        low, high = torch.zeros(len(z), dtype=ALL), certificate.radius * (1 + 1e-5)
        for _ in range(50):
            middle = (low + high) / 2
            held = check(ellips, z, replace(certificate, radius=middle), rivals="named")
            low, high = torch.where(held, middle, low), torch.where(held, high, middle)
        for i in ((low > 0) & low.isfinite()).nonzero().flatten().tolist():
            pair = int(certificate.prediction[i]), int(certificate.rival[i])
            proven += 1
            assert balls.proves(z[i], *pair, 1 / float(certificate.multiplier[i]), float(low[i]))
    assert proven > 20


@pytest.mark.parametrize("name", STORED)
def test_scores_are_within_their_errors(name: str) -> None:
    for seed in range(30):
        ellips, z = STORED[name](Draw(seed))
        kernel, balls = LowRankKernel(ellips), Balls(ellips, 300)
        _, scores, errors = kernel.whiten(z)
        for k in range(ellips.num_classes):
            for i in range(len(z)):
                assert abs(balls.matrix(z[i], k)[2] - float(scores[i, k])) < float(errors[i, k])


@pytest.mark.parametrize("name", STORED)
def test_written_out_matrices_and_pulls_are_within_their_errors(name: str) -> None:
    """W and P v to the bounds that the kernel's proof takes for them, entry by entry."""
    for seed in range(30):
        ellips, z = STORED[name](Draw(seed))
        kernel, balls = LowRankKernel(ellips), Balls(ellips, 300)
        pair = torch.tensor([[1], [0]])
        matrix, pulls = kernel._written(pair, z[:1] - kernel.means[pair])
        n, d, u = kernel.columns, ellips.dim, 2.0**-53
        exact = [balls.matrix(z[0], int(k)) for k in pair]
        for i in range(d):
            for j in range(d):
                error = 1.01 * kernel.entries * u * sum(n[int(k), i] * n[int(k), j] for k in pair)
                assert abs(exact[0][0][i, j] - exact[1][0][i, j] - float(matrix[0, i, j])) < float(error)
        for (_, pull, _), k, found in zip(exact, pair.flatten().tolist(), pulls[:, 0], strict=True):
            h = (n[k] * (z[0] - kernel.means[k]).abs()).sum()
            for i in range(d):
                assert abs(pull[i, 0] - float(found[i])) < float(1.01 * kernel.ops * u * n[k, i] * h)


def test_bends_are_above_what_differences_of_precisions_do() -> None:
    for seed in range(60):
        ellips, _ = STORED[("small", "skewed", "twins", "other_scales")[seed % 4]](Draw(seed))
        kernel = LowRankKernel(ellips)
        largest = torch.stack(
            [(ellips.precisions[k] - ellips.precisions[0]).abs().sum() for k in range(len(ellips.means))]
        )
        for guess in (
            torch.zeros(2, kernel.classes),
            torch.full((2, kernel.classes), torch.nan),
            largest.expand(2, -1),
        ):
            far = LowRankFarRivals(kernel, guess)
            bends = far.bend(torch.arange(kernel.classes))
            for p in range(kernel.classes):
                w = ellips.precisions - ellips.precisions[p]
                needed = -torch.linalg.eigvalsh(w)[:, 0] - 1e-12 * ellips.precisions.abs().sum()  # as float64 finds it
                assert (bends[p] >= needed).all()


def test_radii_beyond_the_truth_are_refused() -> None:
    for seed in range(12):
        ellips, z = small(Draw(seed))
        certificate = ellips.certify(z)
        for i in range(len(z)):
            truth = true_distance(ellips, z[i], int(certificate.prediction[i]), int(certificate.rival[i]))
            if truth != mpf("inf"):
                radius = torch.tensor([float(truth) * (1 + 1e-12)], dtype=ALL)
                for factor in (1 - 1e-9, 1.0, 1 + 1e-9):
                    t = certificate.multiplier[i : i + 1] * factor
                    assert not check(ellips, z[i : i + 1], replace(certificate[i : i + 1], radius=radius, multiplier=t))


FORGED = {
    "an infinite direction": lambda e: e.directions[0, 0].fill_(torch.inf),
    "a direction that is no number": lambda e: e.directions[0, 0].fill_(torch.nan),
    "a direction of no length": lambda e: e.directions[0, 0].fill_(0.0),
    "a direction out of all bounds": lambda e: e.directions[0, 0].mul_(1e3),
    "an infinite scale": lambda e: e.scales[0].fill_(torch.inf),
    "a scale that is no number": lambda e: e.scales[0].fill_(torch.nan),
    "a scale of nothing": lambda e: e.scales[0].fill_(0.0),
    "an enormous scale": lambda e: e.scales[0].fill_(1e200),
    "an infinite factor": lambda e: e.precision_factors[0, 0].fill_(torch.inf),
}


@pytest.mark.parametrize("name", FORGED)
def test_of_numbers_that_are_none_nothing_is_proven(name: str) -> None:
    ellips, z = small(Draw(3), rank=2, dim=3)
    certificate = ellips.certify(z)
    certificate = replace(
        certificate, prediction=torch.zeros_like(certificate.prediction), rival=torch.ones_like(z[:, 0]).long()
    )
    FORGED[name](ellips)
    for radius in (torch.zeros(len(z), dtype=ALL), torch.full((len(z),), 1e-9, dtype=ALL)):
        assert not check(ellips, z, replace(certificate, radius=radius)).any()


@pytest.mark.parametrize("name", ["directions", "scales", "precision_factors", "means", "log_priors"])
def test_factors_that_were_changed_afterwards_are_noticed(name: str) -> None:
    """Changed without a trace, through NumPy: what is remembered of the mixture must not stand."""
    ellips, z = small(Draw(5), rank=2, dim=4)
    certificate = ellips.certify(z)
    assert check(ellips, z, certificate).all()
    values = getattr(ellips, name).numpy()
    values[...] = (
        values[::-1] * 1.5 if name == "log_priors" else values * 0.7 if name != "means" else values[::-1].copy()
    )
    fresh = Ellips(ellips.num_classes, 4, covariance_type="low_rank", rank=2)
    fresh.load_state_dict({key: value.clone() for key, value in ellips.state_dict().items()})
    again, expected = ellips.certify(z), fresh.certify(z)
    assert torch.equal(again.radius, expected.radius)
    assert not torch.equal(again.radius, certificate.radius)
    assert torch.equal(check(ellips, z, certificate), check(fresh, z, certificate))


def test_ties_are_decided_in_exact_arithmetic() -> None:
    corrected = 0
    for seed in range(60):
        ellips, z = low_rank_ties(Draw(seed), 4)
        z[:, 0] += ellips.means[1, 0] * 2.0**-60 * torch.tensor([-1.0, 0.0, 1.0, 2.0], dtype=ALL)
        certificate = confirm(ellips, z, ellips.certify(z))
        assert certificate.diagnostics["confirmed"].all()
        with working_precision(4000):
            assert [exact_winner(ellips, row) for row in z] == certificate.prediction.tolist()
        corrected += int(certificate.diagnostics["corrected"].sum())
    assert corrected > 0


def test_the_plain_kernel_does_not_take_what_it_does_not_know() -> None:
    ellips, _ = low_rank(Draw(0), 2)
    with pytest.raises(ValueError, match="unpack"):
        Kernel(ellips)
