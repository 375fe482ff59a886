from pathlib import Path

import pytest
import torch
from rich.console import Console

from ellips.files import ImageRecord
from ellips.metrics import certified_accuracy_curve
from ellips.reporting import LabelledCurve, accuracy_table, plot_curves, save_figure, single_claim
from ellips.reporting.curves import radius_text
from ellips.reporting.html import choose_images
from ellips.reporting.summary import completeness, records_by_series, summarize
from ellips.types import Series

LATENT = Series("latent", "exact")
RADII = {"latent": [0.5, 1.0], "input": [0.25]}


def record(
    index: int, radius: float = 0.5, prediction: int = 1, series: Series = LATENT, **more: object
) -> ImageRecord:
    return ImageRecord(index, 1, prediction, radius, 0.1 * (index + 1), series, **more)


def curve(soundness: str, space: str = "input") -> LabelledCurve:
    ones = torch.ones(4, dtype=torch.int64)
    return LabelledCurve("a", certified_accuracy_curve(torch.rand(4), ones, ones), space, soundness)


def test_figures_and_tables_refuse_two_kinds_of_claim(tmp_path: Path) -> None:
    mixed = [curve("estimated"), curve("deterministic")]
    for show in (single_claim, plot_curves, lambda rows: accuracy_table(rows, "title")):
        with pytest.raises(ValueError, match="deterministic in input space, estimated in input space"):
            show(mixed)
    with pytest.raises(ValueError, match="exact in input space, exact in latent space"):
        plot_curves([curve("exact"), curve("exact", "latent")])
    with pytest.raises(ValueError, match="but got none"):
        plot_curves([])
    with pytest.raises(ValueError, match="`space` to be one of"):
        curve("exact", "outer")


def test_a_figure_names_its_space_and_claim_and_is_the_same_twice(tmp_path: Path) -> None:
    torch.manual_seed(0)
    item = curve("estimated")
    first, second = (
        save_figure(plot_curves([item]), tmp_path / f"{name}.svg")[0].read_bytes() for name in ("one", "two")
    )
    assert first == second
    assert b"values in [0, 1]" in first
    assert b"estimated: sampled, no guarantee" in first


def test_a_table_shows_percentages_with_intervals() -> None:
    console = Console(record=True, width=100)
    correct = torch.tensor([1, 1, 1, 0])
    points = certified_accuracy_curve(
        torch.tensor([0.5, 1.0, 2.0, 3.0]), correct, torch.ones(4, dtype=torch.int64), radii=[0, 1]
    )
    console.print(
        accuracy_table([LabelledCurve("mine", points, "latent", "exact")], "Title", extra=[("images", ["4"])])
    )
    text = console.export_text()
    assert "clean" in text
    assert "75.0" in text
    assert "50.0" in text
    assert "19–100" in text
    with pytest.raises(ValueError, match="share one grid"):
        accuracy_table([curve("exact"), LabelledCurve("b", points, "input", "exact")], "Title")


@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_table_of_many_radii_goes_on_beneath_and_nothing_is_cut_off(width: int) -> None:
    console, radii = Console(record=True, width=width), [0.0625 * k for k in range(20)]
    points = certified_accuracy_curve(torch.rand(8), *2 * [torch.ones(8, dtype=torch.int64)], radii=radii)
    rows = [LabelledCurve(f"a method with a long name [{i}]", points, "latent", "exact") for i in range(2)]
    console.print(accuracy_table(rows, "Title", extra=[("ms", ["12,300", "7,890"])]))
    text = console.export_text()
    assert "…" not in text
    assert max(map(len, text.splitlines()[4:])) <= width
    words = text.split()
    for heading in ("clean", *map(radius_text, radii[1:]), "12,300"):
        assert words.count(heading) == 1
    assert len([word for word in words if "–" in word]) == 2 * len(radii)
    assert "[0]" in text
    assert "[1]" in text


def test_completeness_names_what_is_missing_repeated_and_unexpected() -> None:
    found = completeness([record(0), record(2), record(2), record(9)], [0, 2, 4, 6])
    assert found == {
        "complete": False,
        "expected": 4,
        "present": 2,
        "missing_count": 2,
        "missing": [4, 6],
        "repeated": [2],
        "unexpected": [9],
    }
    assert completeness([record(0), record(2)], [0, 2])["complete"] is True


def test_a_summary_counts_what_is_there() -> None:
    rows = [record(0, 0.5), record(1, 1.0), record(2, 2.0, prediction=0), record(3, 0.0, prediction=-1)]
    entry = summarize(rows, range(4), RADII)["series"]["latent-exact"]
    assert entry["clean_accuracy"]["accuracy"] == 0.5
    assert [(p["radius"], p["accuracy"]) for p in entry["certified_accuracy"]] == [(0.5, 0.5), (1.0, 0.25)]
    assert entry["average_certified_radius"] == 0.375
    assert entry["abstentions"] == 1
    assert entry["seconds_per_image"]["median"] == pytest.approx(0.25)
    assert entry["curve"]["radii"][-1] == 1.0
    nothing = {"complete": False, "expected": 4, "confidence": 0.95, "radii": {}, "series": {}}
    assert summarize([], range(4), RADII) == nothing


def test_radii_that_are_not_given_are_those_of_all_series_of_a_space() -> None:
    small, image = Series("latent", "theorem"), Series("input", "exact", "clever")
    rows = [record(i, 0.002 * (i + 1)) for i in range(10)] + [record(i, 0.0001, series=small) for i in range(10)]
    rows += [record(i, 0.3, series=image, soundness="estimated") for i in range(10)]
    rows += [record(10, 9.0, prediction=0), record(10, 9.0, prediction=0, series=small)]  # wrong: not looked at
    summary = summarize(rows, range(11), {"latent": None, "input": [0.25]})
    found = summary["radii"]["latent"]
    assert found["chosen"] == "quantiles of the radii found"
    assert summary["radii"]["input"] == {"radii": [0.25], "chosen": "as given"}
    assert found["radii"][0] == 0.0001
    assert 0.01 <= found["radii"][-1] <= 0.02
    points = [entry["certified_accuracy"] for name, entry in summary["series"].items() if name.startswith("latent")]
    assert [[point["radius"] for point in series] for series in points] == [found["radii"]] * 2
    assert 0 < points[0][-1]["accuracy"] < points[0][0]["accuracy"]
    assert summarize(rows[::-1], range(11), {"latent": None})["radii"]["latent"] == found


def test_one_series_makes_one_kind_of_claim() -> None:
    with pytest.raises(ValueError, match="one kind of claim"):
        records_by_series([record(0), record(1, soundness="estimated")])


def test_the_images_worth_a_look() -> None:
    rows = [record(0, 0.1), record(1, 0.9), record(2, 0.4, prediction=0), record(3, 0.8, prediction=0), record(4, 0.5)]
    worst, weakest, best = choose_images(rows, 2).values()
    assert [r.index for r in worst] == [3, 2]
    assert [r.index for r in weakest] == [0, 4]
    assert [r.index for r in best] == [1, 4]


def test_closed_forms_by_weyl_are_named_so() -> None:
    theorem = Series("latent", "theorem")
    plain, weyl = record(0, series=theorem), record(0, series=theorem, diagnostics={"weyl": 1.0})
    for row, label in ((plain, "theorem"), (weyl, "theorem (Weyl)")):
        found = summarize([row, record(0)], [0], RADII)["series"]
        assert {name: entry["label"] for name, entry in found.items()} == {
            "latent-theorem": label,
            "latent-exact": "exact",
        }
