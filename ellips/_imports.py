"""Imports of large libraries without Python's garbage collector."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collection() -> Iterator[None]:
    """Collect no garbage meanwhile.

    Importing makes hundreds of thousands of objects that stay, and no garbage worth the name. Python looks through all
    of them again and again: a quarter of the time that importing torch, torchmetrics and timm takes.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if not gc.get_freeze_count():  # what came in counts as old at once, without being looked through first
            gc.freeze()
            gc.unfreeze()
        if collects:
            gc.enable()
