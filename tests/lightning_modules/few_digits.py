"""The digits with few images of one class, for configurations of tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from datamodules import DigitsDataModule
from datamodules.base import Split
from datamodules.sources import ArraySource


class FewDigits(DigitsDataModule):
    """Digits, of which the training split has so many nines.

    Args:
        nines: Images of the class.
        **base_args: Of :class:`DigitsDataModule`.
    """

    def __init__(self, nines: int, **base_args: Any) -> None:
        super().__init__(**base_args)
        self.nines = nines

    def make_source(self, split: Split) -> ArraySource:
        """Leave most nines out of the training split."""
        source = super().make_source(split)
        if split != "train":
            return source
        rows = np.flatnonzero(source.labels != 9).tolist() + np.flatnonzero(source.labels == 9)[: self.nines].tolist()
        return ArraySource("few digits", source.images[torch.tensor(rows)], source.labels[rows])
