"""``theory``: the paper's theory on a checkpoint or a run."""

from ellips.theory.__main__ import main

__all__ = ["main"]
