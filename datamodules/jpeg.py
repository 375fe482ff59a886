"""JPEG files straight through libjpeg-turbo: the very pixels that Pillow gives, in about half of its time.

Pillow decodes with the same library, but its own memory layout and its reading in pieces cost as much again. Here only
what both read bit for bit alike is decoded: 8-bit grey or YCbCr with the usual subsamplings, and not a single warning
on the way. Everything else is left to Pillow, which so decides alone what is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

_START = b"\xff\xd8\xff"  # what Pillow tells a JPEG file by
_KINDS = {"RGB": "YCbCr", "L": "Gray"}
_COLORSPACES = {"RGB": "RGB", "L": "GRAY"}
_SUBSAMPLINGS = ("444", "422", "420", "Gray")


def read_jpeg(path: Path, mode: Literal["RGB", "L"], least: int | None = None) -> NDArray[np.uint8] | None:
    """Decode a file.

    Args:
        path: The file.
        mode: What its pixels have to be: ``"RGB"`` or ``"L"``.
        least: Decode at 1/2, 1/4 or 1/8 of the size as long as both sides keep this length, as Pillow's
            :meth:`~PIL.Image.Image.draft` does; None: at full size.

    Returns:
        Shape ``(H, W, C)``, or None if Pillow has to look at the file.

    Raises:
        OSError: If the file cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(len(_START))
        data = start + file.read() if start == _START else b""
    if not data:
        return None
    try:
        height, width, kind, subsampling = simplejpeg.decode_jpeg_header(data)
        bomb = Image.MAX_IMAGE_PIXELS is not None and height * width > Image.MAX_IMAGE_PIXELS
        if kind != _KINDS[mode] or subsampling not in _SUBSAMPLINGS or bomb:
            return None
        scale = draft_scale(height, width, least)
        size = -(-height // scale), -(-width // scale)
        smaller = {"min_height": size[0], "min_width": size[1], "min_factor": scale} if scale > 1 else {}
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, _COLORSPACES[mode], **smaller)
    except (ValueError, RuntimeError):  # a warning or an error of the library
        return None
    return pixels if pixels.shape[:2] == size else None


def draft_scale(height: int, width: int, least: int | None) -> int:
    """Return 8, 4, 2 or 1: the largest by which both sides can be divided and keep at least the length ``least``."""
    return next(s for s in (8, 4, 2, 1) if s == 1 or (least is not None and min(height, width) >= s * least))
