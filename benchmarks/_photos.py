"""A folder of JPEG files that look like photographs to a decoder: smooth colours, edges and grain."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def write_photos(root: Path, count: int, size: tuple[int, int], classes: int = 2) -> Path:
    """Write ``root/{train,test}/<class>/<number>.jpg``; the training folder holds one file of each class.

    Args:
        root: The folder.
        count: Files of the test split.
        size: Height and width.
        classes: Number of classes.

    Returns:
        The folder.
    """
    for split, number in (("train", classes), ("test", count)):
        for i in range(number):
            path = root / split / f"class{i % classes}" / f"{i:05d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            _photo(size, i).save(path, quality=90)
    return root


def _photo(size: tuple[int, int], seed: int) -> Image.Image:
    height, width = size
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (height // 16 + 2, width // 16 + 2, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)
    edges = np.where(np.add.outer(np.arange(height), np.arange(width)) // 40 % 2, 0, 24)[:, :, None]
    grain = generator.normal(0, 6, (height, width, 1))
    return Image.fromarray((smooth + edges + grain).clip(0, 255).astype(np.uint8))
