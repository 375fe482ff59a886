"""The command line: what ``ellips``, ``train.py``, ``certify.py`` and ``train_encoder.py`` do."""

import gc

import ellips  # noqa: F401 - first: it sees to it that `commands` and `ellips.commands` are the same

from .program import console, main

# What has been imported by now stays to the end of the program: no search for garbage has to look through it again.
gc.freeze()

__all__ = ["console", "main"]
