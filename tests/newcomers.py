"""What a newcomer has: pictures in folders of classes, and a configuration of a few lines."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from ellips.splits import digits_part

CLASSES = ("four", "one", "zero")
VALUES = {"zero": 0, "one": 1, "four": 4}
TRAIN, TEST = 20, 4
YAML = """\
data:
  class_path: ellips.datamodules.ImageFolderDataModule
  init_args:
    root: pictures
    mode: L
    encoder:
      class_path: ellips.encoders.FrozenEncoder
      init_args:
        model: digits
"""
"""The shortest that says where the pictures are, that they are grey, and which encoder sees them."""


def make_pictures(root: Path) -> None:
    """Write some digits as PNG files, ``root/train/<class>/`` and ``root/test/<class>/``."""
    for split, count in (("train", TRAIN), ("test", TEST)):
        images, labels = digits_part("train" if split == "train" else "test")
        for name in CLASSES:
            folder = root / split / name
            folder.mkdir(parents=True)
            for i, image in enumerate(images[labels == VALUES[name]][:count]):
                Image.fromarray((255 * image[0]).round().byte().numpy()).save(folder / f"{i:02}.png")
