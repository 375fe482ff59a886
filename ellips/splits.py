"""Stratified splits that are the same wherever they are made, and the digits under theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import StratifiedShuffleSplit
from torch import Tensor

DIGITS_SPLIT_SEED = 0
DIGITS_FRACTIONS: Mapping[str, float] = {"val": 0.15, "test": 0.2}


def stratified_split(
    labels: Sequence[int] | NDArray[np.int64], fractions: Mapping[str, float], seed: int
) -> dict[str, NDArray[np.int64]]:
    """Split positions into parts with the class shares of the whole.

    Args:
        labels: One class index per position.
        fractions: Share of the whole for each named part, e.g. ``{"val": 0.1}``; what remains is ``"train"``.
        seed: Seed of the shuffle.

    Returns:
        Sorted positions of ``"train"`` and of each named part; together they hold every position exactly once.

    Raises:
        ValueError: If a fraction is not in [0, 1), nothing is left for training, or a class is too small to be split.
    """
    if any(not 0 <= share < 1 for share in fractions.values()) or sum(fractions.values()) >= 1 or "train" in fractions:
        raise ValueError(
            f"Expected `fractions` to be in [0, 1), to sum to less than 1 and without 'train': {fractions}."
        )
    targets = np.asarray(labels)
    parts = {}
    rest = np.arange(len(targets))
    for offset, (name, share) in enumerate(fractions.items()):
        size = round(share * len(targets))
        if size == 0:
            parts[name] = rest[:0]
            continue
        splitter = StratifiedShuffleSplit(n_splits=1, test_size=size, random_state=seed + offset)
        keep, part = next(splitter.split(rest, targets[rest]))
        parts[name] = np.sort(rest[part])
        rest = np.sort(rest[keep])
    return {"train": rest, **parts}


def digits_part(part: str) -> tuple[Tensor, Tensor]:
    """Load one part of scikit-learn's handwritten digits, under the one split that this project uses.

    The split takes no seed on purpose: the shipped encoder was trained on this ``"train"`` part, so under another split
    its training images would be among those it is judged by.

    Args:
        part: ``"train"``, ``"val"`` or ``"test"``.

    Returns:
        Images ``(N, 1, 8, 8)``, their 17 grey levels scaled to [0, 1], and labels ``(N,)``.
    """
    digits = load_digits()
    rows = stratified_split(digits.target, DIGITS_FRACTIONS, DIGITS_SPLIT_SEED)[part]
    images = torch.from_numpy((digits.images[rows] / 16).astype(np.float32)).unsqueeze(1)
    return images, torch.from_numpy(digits.target[rows].astype(np.int64))
