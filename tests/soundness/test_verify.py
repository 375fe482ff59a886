from __future__ import annotations

import decimal
import math
from fractions import Fraction
from pathlib import Path

import mpmath
import pytest
import torch
from mpmath import mpf
from torch import Tensor

from ellips import Ellips
from ellips.certificates import verify
from ellips.certificates.multipliers import find_multipliers
from ellips.certificates.ties import StoredClass, _error, margin_sign
from ellips.certificates.verify import Kernel, positive_definite, rounding
from ellips.certificates.verify_low_rank import kernel_of
from tests.ellips.mixtures import random_mixture
from tests.soundness.generators import DEAR, GENERATORS, Draw, make_case
from tests.soundness.oracle import Balls, nearest_distance, true_distance

SMALL = [name for name in GENERATORS if name not in (*DEAR, "vast")]
ALL = torch.float64


def proves(ellips: Ellips, z: Tensor, prediction: Tensor, rival: Tensor, t: Tensor, radius: Tensor) -> Tensor:
    kernel = kernel_of(ellips)
    _, scores, errors = kernel.whiten(z)
    low, _ = kernel.margins(scores, errors, prediction)
    return kernel.unreached(z, (prediction, rival), low.gather(1, rival.unsqueeze(1)).squeeze(1), t, radius)


def test_the_kernel_is_small_and_knows_nothing_of_the_solvers() -> None:
    text = Path(verify.__file__).read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    imports = [line for line in text.splitlines() if line.startswith(("from", "import"))]
    assert imports == [
        "from __future__ import annotations",
        "import math",
        "import torch",
        "from torch import Tensor",
        "from ellips.gaussians import Mixture",
    ]


@pytest.mark.parametrize("name", SMALL)
def test_what_is_proven_is_proven_by_ball_arithmetic_too(name: str) -> None:
    """Radii on both sides of what can be proven; a positive answer of the kernel is never wrong."""
    proven = tried = 0
    for seed in range(12):
        ellips, z = make_case(name, 1000 + seed, 3)
        certificate, balls = ellips.certify(z), Balls(ellips, 400)
        for factor in (1.0, 1 + 1e-14, 1 + 1e-13, 1 + 1e-12, 1 + 1e-11, 1 + 1e-9, 1 + 1e-6):
            radius, t = certificate.radius * factor, certificate.multiplier
            for shifted in (t, t * (1 - 1e-12), t * (1 + 1e-12)):
                answer = proves(ellips, z, certificate.prediction, certificate.rival, shifted, radius)
                tried += len(z)
                for i in answer.nonzero().flatten().tolist():
                    pair = int(certificate.prediction[i]), int(certificate.rival[i])
                    alike = torch.equal(ellips.means[pair[0]], ellips.means[pair[1]]) and torch.equal(
                        ellips.factors[pair[0]], ellips.factors[pair[1]]
                    )
                    slope = 1 / float(shifted[i])
                    proven += 1
                    assert alike or balls.proves(z[i], *pair, slope, float(radius[i]))
    if name not in ("exact_ties", "low_rank_ties"):
        assert 0 < proven < tried


def test_what_is_proven_in_64_dimensions_is_proven_by_ball_arithmetic_too() -> None:
    for kind in range(2):
        draw = Draw(kind)
        spectra = draw.spectra(3, 64, 6)
        covariances = spectra
        if kind:
            turn = draw.rotations(3, 64)
            covariances = turn @ torch.diag_embed(spectra) @ turn.mT
            covariances = (covariances + covariances.mT) / 2
        ellips = Ellips.from_parameters(draw.normal(3, 64), covariances, draw.priors(3))
        z, _ = ellips.sample(2, torch.Generator().manual_seed(0))
        certificate, balls = ellips.certify(z), Balls(ellips)
        for factor in (1.0, 1 + 1e-12, 1 + 1e-10, 1 + 1e-8):
            radius = certificate.radius * factor
            answer = proves(ellips, z, certificate.prediction, certificate.rival, certificate.multiplier, radius)
            for i in answer.nonzero().flatten().tolist():
                pair = int(certificate.prediction[i]), int(certificate.rival[i])
                assert balls.proves(z[i], *pair, 1 / float(certificate.multiplier[i]), float(radius[i]))


@pytest.mark.parametrize("name", SMALL)
def test_the_last_radius_that_is_proven_is_true(name: str) -> None:
    """Bisection for the largest radius that the kernel proves at a multiplier: that one must hold, too."""
    for seed in range(10):
        ellips, z = make_case(name, 1500 + seed, 4)
        certificate, balls = ellips.certify(z), Balls(ellips, 400)
        pair, t = (certificate.prediction, certificate.rival), certificate.multiplier
        low, high = torch.zeros(4, dtype=ALL), certificate.radius * (1 + 1e-6)
        for _ in range(60):
            middle = (low + high) / 2
            answer = proves(ellips, z, *pair, t, middle)
            low, high = torch.where(answer, middle, low), torch.where(answer, high, middle)
        for i in ((low > 0) & low.isfinite()).nonzero().flatten().tolist():
            assert balls.proves(z[i], int(pair[0][i]), int(pair[1][i]), 1 / float(t[i]), float(low[i]))


def _cancelling(draw: Draw, kind: str) -> tuple[Ellips, Tensor, Tensor]:
    """Two classes almost alike, so that W and b are small differences, and g near the end of what is admissible."""
    dim = draw.integer(1, 5)
    ellips = Ellips(2, dim, covariance_type="full" if kind == "full" else "diagonal")
    ellips.load_state_dict(random_mixture(kind, 2, dim, draw.integer(0, 10**6)).state_dict())
    factors, means = ellips.precision_factors, ellips.means
    factors[1] = factors[0] * (1 + 2.0 ** -draw.integer(1, 45) * draw.normal(*factors.shape[1:]))
    means[1] = means[0] + 2.0 ** -draw.integer(1, 45) * draw.normal(dim)
    if draw.integer(0, 2) == 0:  # of one shape, and apart along its flattest direction, where Pw nearly cancels
        factors[:, -1] *= 2.0 ** draw.integer(0, 20)
        factors[1] = factors[0]
        if kind == "full":
            means[1] = means[0] + torch.linalg.eigh(ellips.precisions[0])[1][:, 0] * draw.normal(1)
    z = means[0] + 2.0 ** draw.integer(-20, 20) * draw.normal(6, dim)
    lowest = float(torch.linalg.eigvalsh(ellips.precisions[1] - ellips.precisions[0])[0])
    g = max(0.0, -lowest) + 2.0 ** -draw.integer(0, 50) * float(factors.square().max())
    if lowest > 0 and draw.integer(0, 1):
        g = 0.0
    return ellips, z, torch.full((6,), g, dtype=ALL)


@pytest.mark.parametrize("kind", ["full", "diagonal"])
def test_the_least_margin_that_is_proven_suffices(kind: str) -> None:
    """Bisection for the margin at which the kernel just proves: W and b with all their rounding must allow it."""
    compared = 0
    for seed in range(150):
        ellips, z, g = _cancelling(Draw(seed), kind)
        kernel, balls, t = Kernel(ellips), Balls(ellips, 400), 1 / g
        pair = torch.zeros(6, dtype=torch.int64), torch.ones(6, dtype=torch.int64)
        low, high = torch.full((6,), -120.0, dtype=ALL), torch.full((6,), 120.0, dtype=ALL)
        kernel.balance = 2.0 ** -(5 * (seed % 4))
        for _ in range(70):
            middle = (low + high) / 2
            answer = kernel.unreached(z, pair, 2**middle, t, torch.zeros(6, dtype=ALL))
            low, high = torch.where(answer, low, middle), torch.where(answer, middle, high)
        for i in (high < 119).nonzero().flatten().tolist():
            compared += 1
            assert balls.proves(z[i], 0, 1, 1 / float(t[i]), 0.0, float(2 ** high[i]))
    assert compared > 300


def test_the_radius_is_squared_and_taken_off_with_every_rounding_upwards() -> None:
    """Where b = 0 and gI + W ≥ 0, M ≻ 0 if m > gR²: in rational numbers, at the last R that is proven."""
    ellips = Ellips(2, 1, covariance_type="diagonal")
    ellips.precision_factors[:] = torch.tensor([[1.0], [2.0]])
    kernel, zero = Kernel(ellips), torch.zeros(1, 1, dtype=ALL)
    pair = torch.tensor([0]), torch.tensor([1])
    draw = Draw(0)
    for _ in range(300):
        margin, t = draw.normal(1).exp(), draw.normal(1).exp()
        low, high = torch.zeros(1, dtype=ALL), torch.full((1,), 1e3, dtype=ALL)
        while bool(torch.nextafter(low, high) < high):
            middle = (low + high) / 2
            answer = kernel.unreached(zero, pair, margin, t, middle)
            low, high = torch.where(answer, middle, low), torch.where(answer, high, middle)
        assert Fraction(1 / float(t)) * Fraction(float(low)) ** 2 < Fraction(float(margin))
        assert float(low) > 0.999 * math.sqrt(float(margin * t))


@pytest.mark.parametrize("dim", [1, 3, 40])
def test_squares_are_completed_with_every_rounding_upwards(dim: int) -> None:
    draw = Draw(dim)
    for _ in range(100):
        stiff, b = draw.normal(dim).abs(), draw.normal(dim).abs()
        exact = sum(
            (Fraction(x) ** 2 / Fraction(s) for x, s in zip(b.tolist(), stiff.tolist(), strict=True)), Fraction(0)
        )
        below = float(exact)
        below = below if Fraction(below) <= exact else math.nextafter(below, 0)
        for corner in (below, math.nextafter(below, 0), below * (1 - 1e-15)):
            assert not verify._arrow(stiff.unsqueeze(0), b.unsqueeze(0), torch.tensor([corner], dtype=ALL))
        above = torch.tensor([below * (1 + 1e-13)], dtype=ALL)
        assert verify._arrow(stiff.unsqueeze(0), b.unsqueeze(0), above)
        assert not verify._arrow(-stiff.unsqueeze(0), b.unsqueeze(0), above)


@pytest.mark.parametrize("name", SMALL)
def test_nothing_beyond_the_true_distance_is_proven(name: str) -> None:
    """The next float above the distance to 120 digits, at the best multiplier, and 1e-6 above."""
    for seed in range(60):
        ellips, z = make_case(name, 2000 + seed, 2)
        if ellips.dim > 6 or ellips.num_classes > 5:
            continue
        certificate = ellips.certify(z)
        prediction, rival = certificate.prediction, certificate.rival
        exact = [true_distance(ellips, z[i], int(prediction[i]), int(rival[i])) for i in range(2)]
        best = find_multipliers(ellips, z, prediction, torch.arange(2), rival, torch.zeros(2, dtype=ALL))
        for i, truth in enumerate(exact):
            if truth == mpf("inf"):
                continue
            above = float(truth)
            above = above if mpf(above) > truth else math.nextafter(above, math.inf)
            for radius in (above, above * (1 + 1e-12), above * (1 + 1e-6), math.inf):
                for t in (certificate.multiplier[i], best[i], torch.tensor(math.inf)):
                    row = slice(i, i + 1)
                    r = torch.tensor([radius], dtype=ALL)
                    assert not proves(ellips, z[row], prediction[row], rival[row], t.view(1).double(), r)
            assert mpf(float(certificate.radius[i])) <= nearest_distance(ellips, z[i], int(prediction[i]))


@pytest.mark.parametrize("kind", ["full", "diagonal"])
def test_scores_whose_sums_cancel_are_within_their_errors(kind: str) -> None:
    """A(z−μ) is a small difference of large terms, and so is the log-determinant."""
    for seed in range(100):
        draw = Draw(seed)
        dim = draw.integer(2, 6)
        ellips = Ellips(2, dim, covariance_type=kind)  # type: ignore[arg-type]
        factor = torch.eye(dim, dtype=ALL) + draw.normal(dim, dim).tril()
        factor[-1] *= 2.0 ** draw.integer(0, 24)
        diagonal = torch.exp(draw.normal(dim) * 20)
        diagonal[-1] = 1 / diagonal[:-1].prod()
        ellips.precision_factors[:] = factor if kind == "full" else diagonal
        ellips.log_priors.copy_(-draw.normal(2).abs())
        ellips.fitted.fill_(True)
        ellips.means.copy_(draw.normal(2, dim))
        flattest = torch.linalg.eigh(factor.T @ factor)[1][:, 0] if kind == "full" else 0 * draw.normal(dim)
        z = ellips.means + flattest
        kernel, balls = Kernel(ellips), Balls(ellips, 300)
        _, scores, errors = kernel.whiten(z)
        for i in range(2):
            for k in range(2):
                assert abs(balls.matrix(z[i], k)[2] - float(scores[i, k])) < float(errors[i, k])


@pytest.mark.parametrize("name", [*SMALL, *DEAR])
def test_scores_are_within_their_errors(name: str) -> None:
    for seed in range(2 if name in DEAR else 8):
        ellips, z = make_case(name, 3000 + seed, 2)
        kernel, balls = kernel_of(ellips), Balls(ellips, 300)
        _, scores, errors = kernel.whiten(z)
        assert (errors > 0).all()
        for k in range(min(3, ellips.num_classes)):
            for i in range(len(z)):
                _, _, exact = balls.matrix(z[i], k)
                assert abs(exact - float(scores[i, k])) < float(errors[i, k])


@pytest.mark.parametrize("size", [2, 3, 5, 17, 65])
def test_singular_and_indefinite_matrices_are_never_proven(size: int) -> None:
    """BBᵀ of integers is exact, and singular if B is thin; so is it of any scales that are powers of two."""
    generator = torch.Generator().manual_seed(size)
    for trial in range(200):
        b = torch.randint(-9, 10, (size, size - 1), generator=generator).double()
        scales = 2.0 ** torch.randint(-60, 61, (size,), generator=generator)
        matrix = (b @ b.T) * scales.unsqueeze(1) * scales
        none = torch.zeros(1, size, dtype=ALL)
        assert not positive_definite(matrix.unsqueeze(0).clone(), none)
        lower = torch.nextafter(matrix.diagonal(), torch.tensor(-torch.inf).double())
        matrix[trial % size, trial % size] = lower[trial % size]
        assert not positive_definite(matrix.unsqueeze(0).clone(), none)


@pytest.mark.parametrize("size", [2, 9, 33, 129])
def test_matrices_a_little_above_singular_are_proven(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    b = torch.randint(-9, 10, (20, size, size - 1), generator=generator).double()
    matrix = b @ b.mT
    diagonal = matrix.diagonal(dim1=1, dim2=2)
    diagonal *= 1 + 2 * rounding(size * ((size + 1) / 2 + 8))
    usable = (diagonal > 0).all(1)
    assert positive_definite(matrix.tril(), torch.zeros(20, size, dtype=ALL))[usable].all()
    assert usable.any()


def test_classes_of_one_shape_take_no_errors_from_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many problems as dimensions, of very different sizes: where b vanishes, there is only what it rounds by."""
    pulls: list[Tensor] = []

    def spy(stiff: Tensor, b: Tensor, corner: Tensor) -> Tensor:
        pulls.append(b)
        return torch.zeros(len(b), dtype=torch.bool)

    monkeypatch.setattr(verify, "_arrow", spy)
    ellips = Ellips(5, 4)
    ellips.precision_factors[:] = torch.eye(4, dtype=ALL)
    ellips.means[:4] = torch.eye(4, dtype=ALL) * 2.0 ** torch.tensor([0, 40, -20, 7]).double()
    ellips.fitted.fill_(True)
    kernel, z, one = Kernel(ellips), ellips.means[:4], torch.ones(4, dtype=ALL)
    p, r = torch.arange(4), torch.full((4,), 4)
    kernel.unreached(z, (p, r), 9 * one, one, one)
    for i in range(4):
        row = slice(i, i + 1)
        kernel.unreached(z[row], (p[row], r[row]), 9 * one[row], one[row], one[row])
        for j in range(4):
            size = float(ellips.means[i, i])
            assert float(pulls[-1][0, j]) == pytest.approx(size if i == j else rounding(12) * size, rel=1e-9)
    assert torch.allclose(pulls[0], torch.cat(pulls[1:]), rtol=1e-10, atol=0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0, 0.0, 1e-200, 1e305])
@pytest.mark.parametrize("place", [(0, 0), (2, 2), (2, 0), (1, 0)])
def test_numbers_out_of_range_prove_nothing(value: float, place: tuple[int, int]) -> None:
    matrix = torch.eye(3, dtype=ALL).unsqueeze(0)
    matrix[0, place[0], place[1]] = value
    harmless = place[0] != place[1] and abs(value) < 1
    assert bool(positive_definite(matrix.clone(), torch.zeros(1, 3, dtype=ALL))) == harmless
    assert not positive_definite(torch.eye(3, dtype=ALL).unsqueeze(0), torch.tensor([[0.0, value, 0.0]]).double()) or (
        0 <= value < 0.5 or value == -1.0
    )


def test_the_sign_of_a_margin_is_exact() -> None:
    one = StoredClass((0.0, 0.0), ((1.0,), (0.0, 1.0)), -0.5)
    two = StoredClass((2.0, 0.0), ((1.0,), (0.0, 1.0)), -0.5)
    assert margin_sign((1.0, 7.0), one, two) == 0
    assert margin_sign((math.nextafter(1, 0), 7.0), one, two) == 1
    assert margin_sign((math.nextafter(1, 2), 7.0), one, two) == -1
    assert (
        margin_sign((5e-324, 0.0), StoredClass((0.0, 0.0), (1.0, 1.0), 0.0), StoredClass((0.0, 0.0), (1.0, 1.0), 0.0))
        == 0
    )
    assert margin_sign((1e200, 0.0), one, two) == -1
    # Factors of one determinant: ρ = 1; then a transcendental logarithm against its nearest float64.
    assert (
        margin_sign((0.0, 0.0), StoredClass((0.0, 0.0), (2.0, 0.5), 0.0), StoredClass((0.0, 0.0), (1.0, 1.0), 0.0)) == 0
    )
    wide, narrow = StoredClass((0.0,), (1.0,), math.log(3.0)), StoredClass((0.0,), (3.0,), 0.0)
    with decimal.localcontext(decimal.Context(prec=60)):
        exact = 1 if decimal.Decimal(math.log(3.0)) > decimal.Decimal(3).ln() else -1
    assert margin_sign((0.0,), wide, narrow) == exact == -margin_sign((0.0,), narrow, wide)
    for broken in (math.nan, math.inf):
        assert margin_sign((broken, 0.0), one, two) is None
        assert margin_sign((0.0, 0.0), one._replace(log_prior=broken), two) is None
    assert margin_sign((0.0,), wide, StoredClass((0.0,), (0.0,), 0.0)) is None


def test_the_sign_counts_squares_and_priors_alike_and_determinants_without_their_sign() -> None:
    zero, one = StoredClass((0.0,), (1.0,), 0.0), StoredClass((1.0,), (-1.0,), 0.5)
    assert margin_sign((0.0,), zero, one) == 0  # 1² = 2 · 0.5, and |−1| = 1
    assert margin_sign((2.0**-20,), zero, one) == -1
    assert margin_sign((0.0,), zero, one._replace(log_prior=math.nextafter(0.5, 0))) == 1
    wide, narrow = StoredClass((0.0,), (-3.0,), 0.0), StoredClass((0.0,), (3.0,), 0.0)
    assert margin_sign((0.0,), wide, narrow) == margin_sign((0.0,), narrow, wide) == 0
    assert margin_sign((0.0,), wide, zero) == 1
    least = 2.0**-1074
    three, two = StoredClass((0.0,), (3 * least,), 0.0), StoredClass((0.0,), (2 * least,), 0.0)
    assert margin_sign((0.0,), three, two) == 1 == -margin_sign((0.0,), two, three)
    for singular in (StoredClass((0.0,), (0.0,), 0.0), StoredClass((0.0,), ((0.0,),), 0.0)):
        assert margin_sign((0.0,), singular, zero) is None
        assert margin_sign((0.0,), zero, singular) is None


@pytest.mark.parametrize("digits", range(44, 70, 2))
def test_the_sign_is_right_where_no_fixed_number_of_digits_tells(digits: int) -> None:
    """Squares that add up to log 9 but for about 10^-digits, on either side of it."""
    with mpmath.workdps(200):
        target, gap = mpmath.log(9), mpf(10) ** -digits
        away: list[float] = []
        while (rest := target - mpmath.fsum(mpf(v) ** 2 for v in away)) > gap:
            away.append(math.nextafter(float(mpmath.sqrt(rest)), 0))
        for last in (0.0, math.sqrt(float(rest + gap)), math.sqrt(float(rest + gap / 7))):
            margin = mpmath.fsum(mpf(v) ** 2 for v in (*away, last)) - target
            here = StoredClass((0.0,) * (len(away) + 2), (1.0,) * (len(away) + 2), 0.0)
            there = StoredClass((0.0, *away, last), (3.0, *here.factor[1:]), 0.0)
            assert margin_sign(here.mean, here, there) == (1 if margin > 0 else -1)
            assert margin_sign(here.mean, there, here) == (-1 if margin > 0 else 1)
            assert (margin > 0) == (last > 0)


@pytest.mark.parametrize("digits", [50, 100, 400])
def test_the_error_of_a_sum_of_logarithms_is_allowed_for(digits: int) -> None:
    parts = [decimal.Decimal(x) for x in ("3.25", "-1.5", "0", "-1e-30")]
    needed = sum(abs(part) for part in parts) * 25
    assert _error(parts, digits) >= needed.scaleb(-digits)
    assert _error(parts, digits) <= 100 * needed.scaleb(-digits)


def test_signs_agree_with_ball_arithmetic_at_near_ties() -> None:
    compared = 0
    for seed in range(30):
        ellips, z = make_case("near_ties", 4000 + seed, 4)
        if ellips.dim > 8:
            continue
        kernel, balls = Kernel(ellips), Balls(ellips, 1000)
        stored = [
            StoredClass(kernel.means[k].tolist(), kernel.factors[k].tolist(), float(kernel.log_priors[k]))
            for k in (0, 1)
        ]
        for point in z:
            gap = balls.matrix(point, 0)[2] - balls.matrix(point, 1)[2]
            assert margin_sign(point.tolist(), *stored) == (1 if gap > 0 else -1)
            compared += 1
    assert compared > 20
