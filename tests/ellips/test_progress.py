from __future__ import annotations

import io

import pytest
from rich.console import Console

from ellips.progress import ImageProgress, followed


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("ellips.progress.monotonic", clock)
    return clock


def console(*, terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=120)


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_elsewhere_than_on_a_terminal_a_line_now_and_then(clock: Clock) -> None:
    out = console()
    with ImageProgress("Encoding val", 1000, console=out) as progress:
        for _ in range(9):  # 90 seconds
            clock.now += 10
            progress.advance(100)
    assert written(out).splitlines() == [
        "Encoding val: 300 of 1,000 images, 10 images/s, 0:01:10 left",
        "Encoding val: 600 of 1,000 images, 10 images/s, 0:00:40 left",
        "Encoding val: 900 of 1,000 images, 10 images/s, 0:00:10 left",
    ]


def test_speed_and_time_are_those_of_all_processes(clock: Clock) -> None:
    out = console()
    progress = ImageProgress("Certifying", 10, processes=4, report_every=1, console=out)
    clock.now += 8
    progress.advance(2)
    clock.now += 2
    progress.advance()  # four times three would be more than there are
    progress.close()
    first, second = written(out).splitlines()
    assert first == "Certifying: about 8 of 10 images, 1.00 images/s, 0:00:02 left"
    assert second == "Certifying: about 10 of 10 images, 1.20 images/s, 0:00:00 left"


def test_images_of_one_batch_do_not_look_fast(clock: Clock) -> None:
    out = console()
    progress = ImageProgress("Certifying", 320, report_every=0, console=out)
    clock.now += 64
    for _ in range(32):  # written one by one, in the same moment
        progress.advance()
    assert written(out).splitlines()[-1].endswith("32 of 320 images, 0.50 images/s, 0:09:36 left")


def test_on_a_terminal_a_bar_and_no_lines(clock: Clock) -> None:
    out = console(terminal=True)
    with ImageProgress("Encoding val", 10, report_every=0, console=out) as progress:
        clock.now += 1
        progress.advance(5)
    text = written(out)
    assert "━" in text
    assert "5 of 10 images, 5.00 images/s" in text
    assert "Encoding val:" not in text


@pytest.mark.parametrize("terminal", [True, False])
def test_processes_that_are_not_to_show_it_write_nothing(clock: Clock, terminal: bool) -> None:
    out = console(terminal=terminal)
    with ImageProgress("Encoding val", 10, report_every=0, show=False, console=out) as progress:
        clock.now += 1
        progress.advance(5)
    assert written(out) == ""


def test_by_default_it_goes_to_stderr(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    progress = ImageProgress("Encoding val", 10, report_every=0)
    clock.now += 1
    progress.advance()
    out, err = capsys.readouterr()
    assert out == ""
    assert "Encoding val: 1 of 10 images" in err


def test_nothing_done_has_no_speed(clock: Clock) -> None:
    out = console()
    ImageProgress("Encoding val", 10, report_every=0, console=out).advance(0)
    assert written(out) == ""


@pytest.mark.parametrize("terminal", [True, False])
def test_what_is_over_soon_is_not_told_of(clock: Clock, terminal: bool) -> None:
    quick, slow = console(terminal=terminal), console(terminal=terminal)
    for seconds, out in ((1, quick), (3, slow)):
        for _ in followed(range(4), "Fitting", 8, lambda item: 2, console=out, report_every=0):
            clock.now += seconds
    assert written(quick) == ""
    lines = [line for line in written(slow).splitlines() if "Fitting" in line]
    assert "4 of 8 images, 0.67 images/s, 0:00:06 left" in lines[0]
    assert "8 of 8 images" in lines[-1]
