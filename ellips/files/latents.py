"""Latents by position in one file, each entry appended in one piece: position, width, numbers, checksum."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from torch import Tensor

from ellips.files.checksums import CURE, SIZE, checksum

_HEAD: Final = struct.Struct("<qq")

_WIDEST: Final = 2**24

Entry = tuple[int, "np.ndarray[Any, np.dtype[np.float64]]"]


def write_latent(file: BinaryIO, index: int, latent: Tensor, key: bytes | None) -> None:
    """Append one entry.

    Args:
        file: Open for appending.
        index: Position of the image.
        latent: Shape ``(d,)``.
        key: Of the checksum; None: without, as in journals that were begun before there were any.
    """
    values = np.asarray(latent.detach().cpu().double().numpy(), dtype="<f8")
    piece = _HEAD.pack(index, len(values)) + values.tobytes()
    file.write(piece if key is None else piece + checksum(piece, key))
    file.flush()


def latent_entries(path: Path, key: bytes | None) -> list[Entry]:
    """Return position and latent, float64, of every whole entry; a cut-off last one is left out.

    Raises:
        ValueError: If an entry is damaged; file and place are named.
    """
    return _read(path, key)[0]


def whole_bytes(path: Path, key: bytes | None) -> int:
    """Return the length of a file up to the entry that was cut off.

    Raises:
        ValueError: As :func:`latent_entries`.
    """
    return _read(path, key)[1]


def _read(path: Path, key: bytes | None) -> tuple[list[Entry], int]:
    data = path.read_bytes()
    after = 0 if key is None else SIZE
    entries: list[Entry] = []
    place = 0
    # A machine that crashes may leave zeros where the end of a file was to be.
    while place + _HEAD.size <= len(data) and any(data[place:]):
        index, width = _HEAD.unpack_from(data, place)
        if index < 0 or not 1 <= width <= _WIDEST or (entries and width != len(entries[0][1])):
            raise ValueError(f"{path}, byte {place}: expected a position and a width but got {index}, {width}: {CURE}")
        stop = place + _HEAD.size + 8 * width
        if stop + after > len(data):
            break
        if key is not None and checksum(data[place:stop], key) != data[stop : stop + after]:
            raise ValueError(f"{path}, byte {place}: expected the entry to have its checksum but {CURE}")
        entries.append((index, np.frombuffer(data, "<f8", width, place + _HEAD.size)))
        place = stop + after
    return entries, place
