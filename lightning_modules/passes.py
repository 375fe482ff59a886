"""Passes over a split outside Lightning's own loops: how far they are, and what their errors call a class."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L

from ellips.progress import followed

_CLASS = re.compile(r"\bclass (\d+)\b")


def followed_batches(trainer: L.Trainer, loader: Iterable[Any], title: str) -> Iterable[Any]:
    """Show how far a pass over a split is, if it takes long and the trainer shows how far it is itself."""
    total = len(getattr(loader, "dataset", ()))
    show = total > 0 and shows_progress(trainer)
    return followed(loader, title, total, lambda batch: len(batch.label), processes=trainer.world_size, show=show)


def shows_progress(trainer: L.Trainer) -> bool:
    """Whether this process of a trainer shows how far it is."""
    return trainer.is_global_zero and trainer.progress_bar_callback is not None


@contextmanager
def naming_classes(names: Iterable[str]) -> Iterator[None]:
    """Let errors about a class, which the library knows by its number, say its name, too.

    Args:
        names: Of the classes, in the order of their labels; may be empty.

    Raises:
        ValueError: With the message of the one that was raised inside, and names.
    """
    try:
        yield
    except ValueError as error:
        known = list(names)

        def named(found: re.Match[str]) -> str:
            k = int(found[1])
            return f"{found[0]} ({known[k]})" if k < len(known) and known[k] != found[1] else found[0]

        text = _CLASS.sub(named, str(error))
        if text == str(error):
            raise
        raise ValueError(text) from error
