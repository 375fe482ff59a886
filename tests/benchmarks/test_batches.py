import pytest

from benchmarks.batches import BATCH, CLASSES, draw, main, rows_of


def test_the_quick_run_compares_every_sampler_with_the_shuffle() -> None:
    result = main(["--quick"])
    assert set(result["ratios"]) == {
        f"{value} {norm}, 26 x 4" for value in ("accuracy", "certified", "relative_radius") for norm in ("none", "ball")
    }
    runs = result["measurements"]["test"]
    for norm in ("none", "ball"):
        shuffled, by_class = (runs[f"{norm}, {name}"][0]["accuracy"] for name in ("shuffle", "26 x 4"))
        assert result["ratios"][f"accuracy {norm}, 26 x 4"] == pytest.approx(by_class / shuffled)


def test_a_shuffled_batch_is_as_poor_in_classes_as_the_text_says() -> None:
    labels = draw(20, 0, 0, 0.5).labels
    counts = labels[next(rows_of(None, labels, 0))].bincount(minlength=CLASSES)
    assert len(labels) == 20 * CLASSES
    assert 0.25 < float((counts == 0).double().mean()) < 0.45
    assert 0.25 < float((counts == 1).double().mean()) < 0.45
    found = labels[next(rows_of(4, labels, 0))].bincount(minlength=CLASSES)
    assert set(found.tolist()) == {0, 4}
    assert BATCH - 4 <= int(found.sum()) <= BATCH
