from __future__ import annotations

import numpy as np
import pytest

from ellips.splits import digits_part, stratified_split


def test_parts_hold_every_position_once_with_the_class_shares() -> None:
    labels = np.repeat([0, 1, 2], [100, 200, 300])
    parts = stratified_split(labels, {"val": 0.1, "test": 0.2}, seed=3)
    assert np.array_equal(np.sort(np.concatenate(list(parts.values()))), np.arange(600))
    assert np.bincount(labels[parts["val"]]).tolist() == [10, 20, 30]
    assert np.bincount(labels[parts["test"]]).tolist() == [20, 40, 60]
    again = stratified_split(labels, {"val": 0.1, "test": 0.2}, seed=3)
    assert all(np.array_equal(parts[name], again[name]) for name in parts)
    other = stratified_split(labels, {"val": 0.1, "test": 0.2}, seed=4)
    assert not np.array_equal(parts["val"], other["val"])


def test_an_empty_part_is_empty() -> None:
    assert stratified_split([0, 1, 0, 1], {"val": 0.0}, seed=0)["val"].size == 0


@pytest.mark.parametrize("fractions", [{"val": 1.0}, {"val": -0.1}, {"val": 0.5, "test": 0.5}, {"train": 0.1}])
def test_wrong_fractions_are_refused(fractions: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="fractions"):
        stratified_split([0, 1] * 10, fractions, seed=0)


def test_digits_are_scaled_and_split_once_for_all() -> None:
    sizes = {}
    for part in ("train", "val", "test"):
        images, labels = digits_part(part)
        assert images.shape[1:] == (1, 8, 8)
        assert float(images.min()) == 0
        assert float(images.max()) == 1
        assert set(labels.tolist()) == set(range(10))
        sizes[part] = len(images)
    assert sizes == {"train": 1168, "val": 270, "test": 359}
