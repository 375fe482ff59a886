"""How a command ends when it is told to: at once, with the code of the signal, and its processes with it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from subprocess import Popen
from types import FrameType
from typing import Final

STARTED: Final[list[Popen[bytes]]] = []
"""Processes that this one has started to share its work; they end with it."""


@contextmanager
def stopping(*, at_sigterm: bool = True) -> Iterator[None]:
    """Let SIGTERM and SIGINT end what goes on inside at once, as an error would: files are closed, codes say why.

    Args:
        at_sigterm: Whether SIGTERM is waited for here, and not by Lightning's trainer, which lets a batch end.

    Raises:
        SystemExit: With 128 + the signal's number.
    """
    here = threading.current_thread() is threading.main_thread()  # no other one may say what signals do
    waits = at_sigterm and here
    before = signal.signal(signal.SIGTERM, _stop) if waits else None
    try:
        yield
    except KeyboardInterrupt as stop:
        raise SystemExit(128 + signal.SIGINT) from stop
    except SystemExit as stop:
        if stop.code == 128 + signal.SIGTERM:
            for process in STARTED:
                process.terminate()
        raise
    finally:
        if waits:
            signal.signal(signal.SIGTERM, before)


def _stop(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
