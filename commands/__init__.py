"""The command line: what ``ellips``, ``train.py``, ``certify.py`` and ``train_encoder.py`` do."""

import ellips  # noqa: F401 - first: it sees to it that `commands` and `ellips.commands` are the same

from .program import main

__all__ = ["main"]
