"""How far a long job is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Iterator
from time import monotonic
from types import TracebackType
from typing import Any, Self, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

Item = TypeVar("Item")


def followed(
    items: Iterable[Item], title: str, total: int, size: Callable[[Item], int], **options: Any
) -> Iterator[Item]:
    """Go through items and show how far that is, if it takes longer than five seconds.

    Args:
        items: What to go through.
        title: What is done.
        total: Images of all processes.
        size: The number of images of an item.
        options: Of :class:`ImageProgress`.

    Yields:
        The items.
    """
    with ImageProgress(title, total, **{"after": 5.0, **options}) as progress:
        for item in items:
            yield item
            progress.advance(size(item))


class ImageProgress:
    """Shows images done, images per second and the time left, of all processes; one process shows it.

    Speed and time left are means since the start: images come in batches, so that those of the last moments alone would
    say little. Everything goes to stderr. Use it as a context manager, or call :meth:`close`.

    Args:
        title: What is done.
        total: Images of all processes.
        processes: Number of processes; each is taken to be as fast as this one.
        report_every: Seconds between two lines where there is no terminal (a batch job's log).
        show: Whether to show anything.
        console: Where to; None: stderr.
        unit: What is counted.
        after: Seconds before anything is shown: what is over by then need not be told of.
    """

    def __init__(
        self,
        title: str,
        total: int,
        *,
        processes: int = 1,
        report_every: float = 30.0,
        show: bool = True,
        console: Console | None = None,
        unit: str = "images",
        after: float = 0.0,
    ) -> None:
        self.title, self.total, self.processes = title, total, processes
        self.report_every, self.show = report_every, show
        self.unit, self.after = unit, after
        self.console = console or Console(stderr=True)
        self.count = 0
        self.start = self.reported = monotonic()
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.fields[state]}"))
        self.bar = Progress(*columns, console=self.console, disable=not (show and self.console.is_terminal))
        self.task = self.bar.add_task(title, total=total, state="")
        if not after:
            self.bar.start()

    def advance(self, count: int = 1) -> None:
        """Count images that this process has done."""
        self.count += count
        if not self.show or not self.count:
            return
        now = monotonic()
        if now - self.start < self.after:
            return
        self.bar.update(self.task, completed=self._done(), state=self._state(now - self.start))
        if not (self.bar.disable or self.bar.live.is_started):
            self.bar.start()
        if self.bar.disable and now - self.reported >= self.report_every:
            self.reported = now
            line = f"{self.title}: {self._state(now - self.start)}"
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def close(self) -> None:
        """End the bar."""
        if self.bar.live.is_started:  # one that was never shown would end its line all the same
            self.bar.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _done(self) -> int:
        return min(self.count * self.processes, self.total)

    def _state(self, elapsed: float) -> str:
        speed = self.count * self.processes / max(elapsed, 1e-9)
        left = datetime.timedelta(seconds=round((self.total - self._done()) / speed))
        about = "about " if self.processes > 1 else ""
        digits = 2 if speed < 10 else 0  # certification takes seconds per image, encoding milliseconds
        return f"{about}{self._done():,} of {self.total:,} {self.unit}, {speed:,.{digits}f} {self.unit}/s, {left} left"
