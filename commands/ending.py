"""How a command ends: with a code that says what became of it, and with one message where its input was wrong."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from subprocess import Popen
from types import FrameType
from typing import Final

from ellips.distributed import close_process_group
from ellips.errors import NotFittedError

REFUSED: Final = 2
"""Exit code where the input, or where it shall go, cannot be used; jsonargparse's, too."""

TRACEBACK: Final = "ELLIPS_TRACEBACK"
"""Set this variable of the environment to see where an error was raised."""

STARTED: Final[list[Popen[bytes]]] = []
"""Processes that this one has started to share its work; they end with it."""


def ended(work: Callable[[], int | None]) -> int:
    """Do a command's work as a program does: an error that its user can mend is one message on stderr.

    What is none of those, a mistake of this program that is, keeps its traceback, and the code is 1.

    Args:
        work: Returns the exit code; None means 0.

    Returns:
        The exit code.
    """
    try:
        code = work() or 0
        close_process_group()
        return code
    except (ValueError, TypeError, OSError, NotFittedError, ImportError) as error:
        if os.environ.get(TRACEBACK):
            raise
        said = str(error) or type(error).__name__
        print(f"error: {said}\n({TRACEBACK}=1 shows where it was raised.)", file=sys.stderr)
        return REFUSED
    except SystemExit as stop:
        if not isinstance(stop.code, str):
            raise
        print(f"error: {stop.code}", file=sys.stderr)
        return REFUSED


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
