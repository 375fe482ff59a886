"""The metrics against a plain NumPy oracle: per batch, aggregated, pickled, over ranks, by dtype."""

import pickle
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torch.distributed as dist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import binomtest
from torch import Tensor

from ellips.metrics import (
    AverageCertifiedRadius,
    CertifiedAccuracy,
    CertifiedAccuracyCurve,
    CertifiedCurve,
    average_certified_radius,
    certified_accuracy,
    certified_accuracy_curve,
    clopper_pearson,
)
from tests.processes import run_together

RADII = [0.0, 0.25, 0.5, 1.0, 1.5]


def batches(
    count: int = 4, size: int = 25, seed: int = 0, dtype: torch.dtype = torch.float64
) -> list[tuple[Tensor, ...]]:
    """Radii on a grid of eighths, so that many meet a threshold exactly in every dtype; some predictions abstain."""
    g = torch.Generator().manual_seed(seed)
    return [
        (
            (torch.randint(0, 16, (size,), generator=g) / 8).to(dtype),
            torch.randint(-1, 3, (size,), generator=g),
            torch.randint(0, 3, (size,), generator=g),
        )
        for _ in range(count)
    ]


def joined(parts: list[tuple[Tensor, ...]]) -> tuple[Tensor, Tensor, Tensor]:
    radius, prediction, target = (torch.cat(column) for column in zip(*parts, strict=True))
    return radius, prediction, target


def oracle_accuracy(radius: Tensor, prediction: Tensor, target: Tensor, radii: list[float]) -> np.ndarray:
    accuracy = []
    for r in radii:
        hits = 0
        for rad, pred, true in zip(radius.tolist(), prediction.tolist(), target.tolist(), strict=True):
            hits += pred == true and rad >= r
        accuracy.append(hits / len(radius))
    return np.array(accuracy)


def oracle_acr(radius: Tensor, prediction: Tensor, target: Tensor) -> float:
    rows = zip(radius.tolist(), prediction.tolist(), target.tolist(), strict=True)
    return float(np.mean([rad if pred == true else 0.0 for rad, pred, true in rows]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_batches_and_aggregate_follow_the_oracle(dtype: torch.dtype) -> None:
    data = batches(dtype=dtype)
    accuracy, curve, acr = CertifiedAccuracy(RADII), CertifiedAccuracyCurve(radii=RADII), AverageCertifiedRadius()
    for batch in data:
        expected = oracle_accuracy(*batch, RADII)
        np.testing.assert_array_equal(accuracy(*batch).numpy(), expected)
        np.testing.assert_array_equal(curve(*batch).accuracy.numpy(), expected)
        np.testing.assert_allclose(acr(*batch).item(), oracle_acr(*batch), rtol=1e-14)
    whole = joined(data)
    np.testing.assert_array_equal(accuracy.compute().numpy(), oracle_accuracy(*whole, RADII))
    np.testing.assert_array_equal(certified_accuracy(*whole, RADII).numpy(), oracle_accuracy(*whole, RADII))
    np.testing.assert_array_equal(curve.compute().accuracy.numpy(), oracle_accuracy(*whole, RADII))
    np.testing.assert_allclose(acr.compute().item(), oracle_acr(*whole), rtol=1e-14)
    np.testing.assert_allclose(average_certified_radius(*whole).item(), oracle_acr(*whole), rtol=1e-14)
    assert accuracy.compute().dtype == acr.compute().dtype == torch.float64


def test_functional_curve_equals_the_metric() -> None:
    whole = joined(batches())
    metric = CertifiedAccuracyCurve(max_radius=1.5, num_points=7)
    metric.update(*whole)
    for one, other in zip(
        metric.compute(), certified_accuracy_curve(*whole, max_radius=1.5, num_points=7), strict=True
    ):
        assert torch.equal(one, other)
    assert metric.compute().radii.tolist() == [0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5]


def test_the_threshold_is_inclusive_and_abstentions_stay_in_the_denominator() -> None:
    radius, target = torch.tensor([0.5, 0.5, 9.0, 9.0]), torch.tensor([1, 0, 2, 2])
    prediction = torch.tensor([1, 1, -1, 2])
    assert certified_accuracy(radius, prediction, target, [0.0, 0.5, 0.500001]).tolist() == [0.5, 0.5, 0.25]
    assert average_certified_radius(radius, prediction, target).item() == (0.5 + 9.0) / 4


def test_infinite_radii_count_everywhere_when_right_and_nowhere_when_wrong() -> None:
    radius, target = torch.tensor([torch.inf, torch.inf]), torch.tensor([0, 1])
    assert certified_accuracy(radius, torch.tensor([0, 0]), target, [0.0, 1e300]).tolist() == [0.5, 0.5]
    assert average_certified_radius(radius, torch.tensor([1, 0]), target).item() == 0.0
    assert average_certified_radius(radius, torch.tensor([0, 0]), target).item() == float("inf")


def test_nothing_counted_yet_is_nan_or_an_error() -> None:
    none = (torch.zeros(0), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    assert certified_accuracy(*none, RADII).isnan().all()
    assert average_certified_radius(*none).isnan()
    curve = CertifiedAccuracyCurve()
    with pytest.raises(ValueError, match="at least one certified point"):
        curve.compute()


@pytest.mark.parametrize("metric", [CertifiedAccuracy(RADII), CertifiedAccuracyCurve(), AverageCertifiedRadius()])
def test_pickling_keeps_the_counts(metric: CertifiedAccuracy) -> None:
    metric.update(*batches()[0])
    copy = pickle.loads(pickle.dumps(metric))
    assert str(copy.compute()) == str(metric.compute())
    copy.reset()
    copy.update(*batches()[1])
    assert str(copy.compute()) != str(metric.compute())


def test_casting_the_metric_leaves_its_counts_exact() -> None:
    metric = CertifiedAccuracy([0.1])
    metric.to(torch.float16)
    for _ in range(3):
        metric.update(torch.full((1001,), 0.1, dtype=torch.float64), *(2 * [torch.ones(1001, dtype=torch.int64)]))
    assert metric.total == 3003
    assert metric.compute().item() == 1.0


@pytest.mark.parametrize(("successes", "total"), [(0, 10), (10, 10), (3, 10), (1, 1), (0, 1), (421, 500)])
@pytest.mark.parametrize("confidence", [0.95, 0.999])
def test_intervals_agree_with_scipy(successes: int, total: int, confidence: float) -> None:
    interval = binomtest(successes, total).proportion_ci(confidence, method="exact")
    low, high = clopper_pearson(successes, total, confidence)
    np.testing.assert_allclose([low.item(), high.item()], [interval.low, interval.high], rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32, torch.float16, torch.bfloat16, torch.float32])
def test_intervals_are_those_of_the_counts_in_whatever_type_these_come(dtype: torch.dtype) -> None:
    top = 255 if dtype == torch.uint8 else 127
    counts = [0, 3, top - 1, top]
    narrow = clopper_pearson(torch.tensor(counts, dtype=dtype), torch.tensor(top, dtype=dtype))
    for end, expected in zip(narrow, clopper_pearson(torch.tensor(counts), top), strict=True):
        assert end.dtype == torch.float64
        assert torch.equal(end, expected)


def test_curves_reach_2_in_steps_of_a_fiftieth_unless_told_otherwise() -> None:
    data = joined(batches())
    metric = CertifiedAccuracyCurve()
    metric.update(*data)
    for curve in (metric.compute(), certified_accuracy_curve(*data)):
        assert curve.radii.tolist() == [i / 50 for i in range(101)]


def test_intervals_of_a_metric_surround_its_values() -> None:
    metric = CertifiedAccuracy(RADII)
    value = metric(*joined(batches()))
    low, high = metric.interval()
    assert ((low < value) & (value < high)).all()


def test_plot_draws_on_the_given_axes_and_on_new_ones() -> None:
    metric = CertifiedAccuracyCurve(max_radius=1.5)
    metric.update(*joined(batches()))
    figure, axes = metric.plot(label="a")
    again, same = metric.plot(ax=axes, label="b")
    assert (figure, axes) == (again, same)
    assert [line.get_label() for line in axes.get_lines()] == ["a", "b"]
    np.testing.assert_array_equal(axes.get_lines()[0].get_ydata(), metric.compute().accuracy.numpy())


def test_accuracies_are_drawn_with_their_intervals_and_over_results() -> None:
    metric = CertifiedAccuracy(RADII)
    with pytest.raises(ValueError, match="call `update` first"):
        metric.plot()
    results = [metric(*batch) for batch in batches()]
    figure, axes = metric.plot()
    assert figure is axes.figure
    points, _, (bars,) = axes.containers[0]
    np.testing.assert_array_equal(points.get_ydata(), metric.compute().numpy())
    lower, upper = metric.interval()
    ends = np.array([segment[:, 1] for segment in bars.get_segments()])
    np.testing.assert_allclose(ends, torch.stack((lower, upper), 1).numpy())
    _, axes = metric.plot(results)
    np.testing.assert_array_equal([line.get_ydata() for line in axes.get_lines()], torch.stack(results).T.numpy())
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["0", "0.25", "0.5", "1", "1.5"]
    assert metric.plot(results[0], ax=axes) == (axes.figure, axes)
    for wrong in ([], torch.ones(2), [torch.ones(5), torch.tensor(1.0)]):
        with pytest.raises(ValueError, match=r"one value for each radius, but got \["):
            metric.plot(wrong)


def test_the_mean_radius_is_drawn_and_no_figure_of_pyplot_is_made() -> None:
    metric = AverageCertifiedRadius()
    results = [metric(*batch) for batch in batches()]
    figure, axes = metric.plot()
    assert figure is axes.figure
    assert axes.get_lines()[0].get_ydata()[0] == metric.compute()
    _, axes = metric.plot(results)
    np.testing.assert_array_equal(axes.get_lines()[0].get_ydata(), torch.stack(results).numpy())
    assert plt.get_fignums() == []
    with pytest.raises(ValueError, match="belong to a figure"):
        metric.plot(ax=_without_a_figure())


def _without_a_figure() -> Axes:
    axes = Figure().add_subplot()
    axes.remove()
    return axes


GOOD = (torch.ones(2), torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, torch.ones(3), "one shape"),
        (0, torch.ones(2, dtype=torch.int64), "floating point"),
        (0, torch.tensor([1.0, torch.nan]), "`radius` to be at least 0 but got nan"),
        (0, torch.tensor([1.0, -0.1]), "`radius` to be at least 0 but got -0.1"),
        (1, torch.zeros(2), "`prediction` to be an integer"),
        (1, torch.tensor([0, -2]), "`prediction` to be at least -1"),
        (2, torch.tensor([0, -1]), "`target` to be at least 0"),
        (2, torch.tensor([True, False]), "`target` to be an integer"),
    ],
)
def test_what_cannot_be_counted_is_refused(place: int, value: Tensor, message: str) -> None:
    data = list(GOOD)
    data[place] = value
    with pytest.raises(ValueError, match=message):
        CertifiedAccuracy(RADII).update(*data)
    with pytest.raises(ValueError, match=message):
        AverageCertifiedRadius().update(*data)
    with pytest.raises(ValueError, match=message):
        certified_accuracy(*data, RADII)
    with pytest.raises(ValueError, match=message):
        certified_accuracy_curve(*data)
    with pytest.raises(ValueError, match=message):
        average_certified_radius(*data)


def test_an_abstention_is_not_right_where_there_is_no_label() -> None:
    """−1 equals −1: a point without a label must not count as rightly abstained from."""
    data = torch.ones(1), torch.tensor([-1]), torch.tensor([-1])
    for count in (average_certified_radius, certified_accuracy_curve):
        with pytest.raises(ValueError, match="`target` to be at least 0"):
            count(*data)


def test_a_table_of_radii_is_not_counted_as_a_row() -> None:
    data = torch.ones(2, 2), torch.zeros(2, 2, dtype=torch.int64), torch.zeros(2, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match="one shape"):
        CertifiedAccuracy(RADII).update(*data)


@pytest.mark.parametrize(
    "radii", [[], [-0.1], [-0.1, 0.5], [0.5, 0.5], [1.0, 0.5], [float("nan")], [0.5, float("nan")]]
)
def test_grids_that_are_none_are_refused(radii: list[float]) -> None:
    with pytest.raises(ValueError, match="strictly ascending"):
        CertifiedAccuracy(radii)


def test_other_arguments_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="max_radius"):
        CertifiedAccuracyCurve(max_radius=0.0)
    with pytest.raises(ValueError, match="num_points"):
        CertifiedAccuracyCurve(num_points=1)
    with pytest.raises(ValueError, match="confidence"):
        CertifiedAccuracy(RADII, confidence=1.0)
    for confidence in (0.0, 1.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match="confidence"):
            clopper_pearson(3, 5, confidence)


@pytest.mark.parametrize(("successes", "total"), [(3, 2), (-1, 2), (0, 0), ([1, 3], 2), ([0, -1], 2), ([0, 1], [0, 2])])
def test_counts_that_are_none_have_no_interval(successes: int | list[int], total: int | list[int]) -> None:
    with pytest.raises(ValueError, match="successes"):
        clopper_pearson(*(torch.tensor(x) if isinstance(x, list) else x for x in (successes, total)))


def test_intervals_cover_95_per_cent_unless_told_otherwise() -> None:
    expected = [float(end) for end in binomtest(7, 20).proportion_ci(0.95, method="exact")]
    np.testing.assert_allclose([float(end) for end in clopper_pearson(7, 20)], expected, rtol=1e-8)
    whole = joined(batches())
    for curve in (certified_accuracy_curve(*whole, radii=RADII), _curve_of(*whole)):
        assert curve.radii.tolist() == RADII
        for accuracy, lower, upper in zip(curve.accuracy, curve.lower, curve.upper, strict=True):
            count = round(float(accuracy) * len(whole[0]))
            expected = [float(end) for end in binomtest(count, len(whole[0])).proportion_ci(0.95, method="exact")]
            np.testing.assert_allclose([float(lower), float(upper)], expected, rtol=1e-8)
    accuracy_metric = CertifiedAccuracy(RADII)
    accuracy_metric.update(*whole)
    assert torch.equal(accuracy_metric.interval()[0], _curve_of(*whole).lower)


def _curve_of(*data: Tensor) -> CertifiedCurve:
    metric = CertifiedAccuracyCurve(radii=RADII)
    metric.update(*data)
    return metric.compute()


def _count_on_a_rank(folder: Path) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    accuracy, curve, acr = CertifiedAccuracy(RADII), CertifiedAccuracyCurve(radii=RADII), AverageCertifiedRadius()
    # Uneven shares: rank 0 gets three batches of four.
    for batch in batches()[:3] if rank == 0 else batches()[3:]:
        for metric in (accuracy, curve, acr):
            metric.update(*batch)
    torch.save((accuracy.compute(), tuple(curve.compute()), acr.compute()), folder / f"{rank}.pt")


def test_two_ranks_give_what_one_process_gives(tmp_path: Path) -> None:
    run_together(_count_on_a_rank, tmp_path)
    whole = joined(batches())
    for rank in range(2):
        accuracy, curve, acr = torch.load(tmp_path / f"{rank}.pt")
        assert torch.equal(accuracy, certified_accuracy(*whole, RADII))
        assert all(torch.equal(a, b) for a, b in zip(curve, certified_accuracy_curve(*whole, radii=RADII), strict=True))
        torch.testing.assert_close(acr, average_certified_radius(*whole), rtol=1e-14, atol=0)
