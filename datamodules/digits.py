"""scikit-learn's handwritten digits."""

from __future__ import annotations

from ellips.splits import digits_part

from .base import Split
from .encoded import EncodedDataModule
from .sources import ArraySource


class DigitsDataModule(EncodedDataModule):
    """1,797 real handwritten digits, 8x8 grey; they come with scikit-learn and nothing is downloaded.

    The stratified split is fixed (see :func:`ellips.splits.digits_part`): 1,168 for training, 270 for validation, 359
    for the test. Arguments are those of :class:`EncodedDataModule`.
    """

    @property
    def class_names(self) -> list[str]:
        """``"0"`` to ``"9"``."""
        return [str(digit) for digit in range(10)]

    def make_source(self, split: Split) -> ArraySource:
        """Load the images of a split."""
        images, labels = digits_part(split)
        return ArraySource(f"digits/{split}", images, labels.numpy())
