"""Checksums of what is appended piece by piece, bound to the settings of the run that it is of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

SIZE: Final = 8
CURE: Final = "it was damaged, or is of another run. Remove this one file: what it held is done again."


def key_of(settings: Mapping[str, Any]) -> bytes:
    """Return what makes the checksums of one run differ from those of any other."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).digest()


def checksum(piece: bytes, key: bytes) -> bytes:
    """Return the 8 bytes that follow a piece."""
    return hashlib.blake2b(piece, key=key, digest_size=SIZE).digest()
